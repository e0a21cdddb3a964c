# SPDX-License-Identifier: Apache-2.0
"""Trains the regressors of method ace_g."""
