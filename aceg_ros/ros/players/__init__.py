# SPDX-License-Identifier: Apache-2.0
"""Nodes that publish a recording or a rendered room as a camera driver would."""
