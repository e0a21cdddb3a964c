# SPDX-License-Identifier: Apache-2.0
"""Objects that are there are exempted from collections; those that nothing needs any more are collected first."""

import gc
import weakref

from aceg_ros.utils.garbage import exempt_present_objects


class Node:
    def __init__(self) -> None:
        self.itself = self


def test_present_objects_are_exempted_until_nothing_needs_them():
    node = Node()
    alive = weakref.ref(node)
    try:
        exempt_present_objects()
        assert gc.get_freeze_count() > 1000
        del node
        gc.collect()
        assert alive() is not None              # a cycle, which no collection looks at
        exempt_present_objects()
        assert alive() is None
    finally:
        gc.unfreeze()
