"""Small helpers that are independent of images and maps."""
