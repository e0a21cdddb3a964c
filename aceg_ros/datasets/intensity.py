# SPDX-License-Identifier: Apache-2.0
"""Converts grey values and colours of more than 8 bits to 8 bits, without losing the contrast of a narrow range.

Images with 16 bits per channel rarely use the full range: a 12-bit sensor uses a sixteenth, a thermal camera a few
hundred values far from zero. If the image (0.5th to 99.5th percentile) covers at least a quarter of the range, the
full range is mapped, as in cv_bridge. Otherwise these percentiles become 0 and 255. The result depends on this image
alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from aceg_ros.errors import UserError

PERCENTILES = (0.5, 99.5)
MIN_COVERAGE = 0.25             # of the range; below it the contrast is stretched
MIN_CONTRAST = 1 / 1024         # of the range; less is noise, which is not stretched to full contrast
_FULL = {np.dtype(np.uint8): 255.0, np.dtype(np.int8): 127.0, np.dtype(np.uint16): 65535.0, np.dtype(np.int16): 32767.0}
_MAX_SAMPLES = 100_000


@dataclass(frozen=True, kw_only=True)
class IntensityRange:
    """The values that become 0 and 255. stretched: whether they are percentiles of the image, not the full range."""

    low: float
    high: float
    stretched: bool

    def to_8_bits(self, values: np.ndarray) -> np.ndarray:
        """Convert to uint8 of the same shape; values outside the range, or not finite, become 0 or 255."""
        scaled = (values.astype(np.float32) - np.float32(self.low)) * np.float32(255.0 / (self.high - self.low))
        scaled = np.nan_to_num(scaled, nan=0.0, posinf=255.0, neginf=0.0)
        return np.rint(np.clip(scaled, 0.0, 255.0)).astype(np.uint8)


def intensity_range(values: np.ndarray) -> IntensityRange:
    """Find the intensity range of an image of integers or floating-point numbers (without alpha).

    The full range of floating-point numbers is assumed to be 0 to 1 or 0 to 255, if the percentiles are within it;
    otherwise it is not known. Raises UserError if no value is finite.
    """
    samples = values.reshape(-1)
    step = len(samples) // _MAX_SAMPLES
    samples = samples[::step + 1 - step % 2] if step else samples       # odd: every cell of a Bayer pattern
    if samples.dtype.kind == "f":
        samples = samples[np.isfinite(samples)]
    if not len(samples):
        raise UserError("The image holds no finite value.")
    low, high = (float(value) for value in np.percentile(samples, PERCENTILES))
    full = _FULL.get(values.dtype) or next((limit for limit in (1.0, 255.0) if high <= limit), high - low)
    if low >= 0 and full != high - low and high - low >= MIN_COVERAGE * full:
        return IntensityRange(low=0.0, high=full, stretched=False)
    missing = max(full * MIN_CONTRAST - (high - low), 0.0) or (0.0 if high > low else 1.0)
    return IntensityRange(low=low - missing / 2, high=high + missing / 2, stretched=True)
