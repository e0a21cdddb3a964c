"""Published weights to files of this package, one module a release."""
