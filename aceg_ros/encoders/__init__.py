"""Image -> feature grid."""
