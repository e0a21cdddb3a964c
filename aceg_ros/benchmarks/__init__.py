# SPDX-License-Identifier: Apache-2.0
"""Benchmarks, each a command: `python -m aceg_ros.benchmarks.<name>`."""
