"""Torch modules alone: no frames, no clock."""
