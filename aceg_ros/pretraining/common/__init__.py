"""Shared by all pre-trainings: the training loop, run folders, several processes, scores."""
