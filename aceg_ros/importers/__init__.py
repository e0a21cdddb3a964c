# SPDX-License-Identifier: Apache-2.0
"""Imports of published weights, one module per release."""
