# SPDX-License-Identifier: Apache-2.0
"""Trains the encoder that ships with the package."""
