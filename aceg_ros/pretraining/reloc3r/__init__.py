# SPDX-License-Identifier: Apache-2.0
"""Trains a small relative pose network for method reloc3r."""
