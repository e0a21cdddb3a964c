# SPDX-License-Identifier: Apache-2.0
"""Small helpers that are independent of images and maps."""
