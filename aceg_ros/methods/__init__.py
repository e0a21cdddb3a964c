"""One file per published system, behind the two protocols of `base`."""
