"""Visual localization that a robot can trust: posed images -> map -> pose of a new image, or a reasoned refusal."""

__version__ = "0.1.0"

import os

# Torch's OpenMP threads spin while they wait for each other. On a robot whose cores are shared with other nodes a
# spinning thread holds the core that the other one needs (measured on 2 cores beside one busy process: five times
# slower). A short spin costs nothing there and saves 10 % where the cores are free. Has to be set before torch is
# loaded; a user's own setting wins.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
