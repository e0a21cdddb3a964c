"""Imports of published weights, one module per release."""
