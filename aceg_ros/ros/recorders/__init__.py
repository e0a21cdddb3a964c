"""Nodes that write topics to disk."""
