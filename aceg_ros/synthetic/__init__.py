"""Procedural rooms, rendered by ray casting with exact depth and scene coordinates."""
