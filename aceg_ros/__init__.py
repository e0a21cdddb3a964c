"""Visual localization that a robot can trust: posed images -> map -> pose of a new image, or a reasoned refusal."""

__version__ = "0.1.0"
