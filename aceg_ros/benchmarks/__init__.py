"""Benchmarks, each a command: `python -m aceg_ros.benchmarks.<name>`."""
