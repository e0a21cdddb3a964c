"""Images and 3D scenes for people to look at."""
