"""Evaluation of maps: metrics and reports."""
