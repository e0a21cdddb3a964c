# SPDX-License-Identifier: Apache-2.0
"""Encoders: image -> `FeatureMap`."""
