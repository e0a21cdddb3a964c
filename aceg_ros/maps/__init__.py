# SPDX-License-Identifier: Apache-2.0
"""The map file: its header and its sections."""
