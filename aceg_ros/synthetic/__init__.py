# SPDX-License-Identifier: Apache-2.0
"""Procedural rooms, rendered by ray casting with exact depth and scene coordinates."""
