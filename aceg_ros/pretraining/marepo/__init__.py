"""Pre-training of the pose transformer (marepo, CVPR 2024)."""
