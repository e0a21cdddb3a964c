# SPDX-License-Identifier: Apache-2.0
"""Encoders: image -> `FeatureMap`."""

SHIPPED_ENCODERS = ("compact", "compact2", "compact3", "compact4")
