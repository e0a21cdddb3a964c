# SPDX-License-Identifier: Apache-2.0
"""One file per published system, behind the two protocols of `base`."""
