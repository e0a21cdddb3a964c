# SPDX-License-Identifier: Apache-2.0
"""The checks of `aceg_ros.benchmarks.gpu_check`, by subject."""
