# SPDX-License-Identifier: Apache-2.0
"""Pre-training of the pose transformer (marepo, CVPR 2024)."""
