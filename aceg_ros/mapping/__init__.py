"""Patch buffer, augmentation, losses and the one training loop."""
