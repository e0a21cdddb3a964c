"""Evaluation of a running localizer node: accuracy over topics, and speed."""
