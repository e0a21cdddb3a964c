# SPDX-License-Identifier: Apache-2.0
"""Trains the cross-image regressor of method sacreg."""
