# SPDX-License-Identifier: Apache-2.0
"""Torch modules alone: no frames, no clock."""
