"""Trains the encoder that ships with the package."""
