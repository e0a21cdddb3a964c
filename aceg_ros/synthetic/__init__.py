"""Procedural rooms, ray-cast: images, depth, exact scene coordinates."""
