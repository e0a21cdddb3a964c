"""Trains a small relative pose network for method reloc3r."""
