"""Nodes that publish recordings and rendered rooms as a camera."""
