# SPDX-License-Identifier: Apache-2.0
"""From posed frames and a budget to what is in a map: triangulation, patch buffer, losses, training, calibration."""
