# SPDX-License-Identifier: Apache-2.0
"""`python -m aceg_ros.cli` is `aceg`."""

import sys

from aceg_ros.cli import main

if __name__ == "__main__":
    sys.exit(main())
