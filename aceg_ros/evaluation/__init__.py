# SPDX-License-Identifier: Apache-2.0
"""Evaluation of maps: metrics and reports."""
