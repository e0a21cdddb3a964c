"""What a mapping run leaves behind, as a file."""
