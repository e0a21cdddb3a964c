"""The map file: its header and its sections."""
