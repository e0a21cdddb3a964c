# SPDX-License-Identifier: Apache-2.0
"""Training of the weights that ship with the package."""
