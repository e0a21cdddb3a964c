"""Debug images and the Rerun viewer."""
