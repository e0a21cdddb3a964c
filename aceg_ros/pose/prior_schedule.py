# SPDX-License-Identifier: Apache-2.0
"""Decides which images are localized with a prior, so that a wrong one cannot keep itself alive."""

from __future__ import annotations


class PriorSchedule:
    """Leaves every `period`-th image without a prior, and all images once an answer speaks against it.

    Priors come back with the first answer that was found without one and agrees.
    """

    def __init__(self, period: int) -> None:
        self.period = period
        self._since_check, self._is_doubted = 0, False

    def reset(self) -> None:
        """Forget what was noted: the next image may have a prior."""
        self._since_check, self._is_doubted = 0, False

    def next_has_prior(self) -> bool:
        """Return whether the next image is to be localized with the prior, if there is one."""
        self._since_check += 1
        if self._is_doubted or self._since_check >= self.period:
            self._since_check = 0
            return False
        return True

    def note(self, *, agrees: bool, had_prior: bool) -> None:
        """Note an answer: whether it agrees with the prediction that priors are made from, and was found with one."""
        if not agrees:
            self._is_doubted = True
        elif not had_prior:
            self._is_doubted = False
