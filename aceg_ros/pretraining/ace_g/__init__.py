"""Trains the regressors of method ace_g."""
