"""Nodes that record topics to disk."""
