"""What is measured, and the commands that repeat it."""
