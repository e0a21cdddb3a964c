"""Trains the cross-image regressor of method sacreg."""
