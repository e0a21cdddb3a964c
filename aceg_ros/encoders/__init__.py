"""Encoders: image -> `FeatureMap`."""
