# SPDX-License-Identifier: Apache-2.0
"""2D-3D correspondences to one verified pose."""
