"""What every pre-training shares."""
