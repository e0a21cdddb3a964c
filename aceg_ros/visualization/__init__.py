# SPDX-License-Identifier: Apache-2.0
"""Debug images and the Rerun viewer."""
