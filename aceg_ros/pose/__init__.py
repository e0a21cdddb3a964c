"""2D-3D correspondences to one verified pose."""
