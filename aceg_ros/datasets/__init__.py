"""Readers, one per format, all yielding frames."""
