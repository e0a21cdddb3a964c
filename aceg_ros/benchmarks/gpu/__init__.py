"""The checks of `aceg_ros.benchmarks.gpu_check`, by subject."""
