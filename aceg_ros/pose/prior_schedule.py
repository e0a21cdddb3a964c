# SPDX-License-Identifier: Apache-2.0
"""Decides which images are localized with a prior, so that a wrong one cannot keep itself alive."""

from __future__ import annotations

import math


class PriorSchedule:
    """Leaves every `period`-th image without a prior, and all images once an answer speaks against it.

    Of many images a second, fewer are left without: one in `period_s` seconds. Priors come back with the first answer
    that was found without one and agrees.
    """

    def __init__(self, period: int, period_s: float = 0.0) -> None:
        self.period, self.period_s = period, period_s
        self.reset()

    def reset(self) -> None:
        """Forget what was noted: the next image may have a prior."""
        self._since_check, self._is_doubted, self._checked_s = 0, False, -math.inf

    def next_has_prior(self, stamp_s: float) -> bool:
        """Return whether the next image, with this stamp, is to be localized with the prior, if there is one."""
        self._since_check += 1
        is_soon = 0.0 <= stamp_s - self._checked_s < self.period_s          # not if time was set back
        if self._is_doubted or (self._since_check >= self.period and not is_soon):
            self._since_check, self._checked_s = 0, stamp_s
            return False
        return True

    def note(self, *, agrees: bool, had_prior: bool) -> None:
        """Note an answer: whether it agrees with the prediction that priors are made from, and was found with one."""
        if not agrees:
            self._is_doubted = True
        elif not had_prior:
            self._is_doubted = False
