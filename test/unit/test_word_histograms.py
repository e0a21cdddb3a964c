# SPDX-License-Identifier: Apache-2.0
"""Counts and rarity of visual words."""

import numpy as np
import pytest

from aceg_ros.maps.word_histograms import count_words, rarity_of


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.int64])
def test_words_are_counted_by_keyframe(kind):
    words, starts = np.array([3, 1, 3, 0, 3], kind), np.array([0, 3, 3, 5], kind)
    counts = count_words(words, starts, 5)
    assert counts.toarray().tolist() == [[0, 1, 0, 2, 0], [0] * 5, [1, 0, 0, 1, 0]]
    assert counts.indices.tolist() == [1, 3, 0, 3]
    assert words.tolist() == [3, 1, 3, 0, 3] and starts.tolist() == [0, 3, 3, 5]


def test_a_word_of_few_keyframes_tells_more():
    rarity = rarity_of(count_words(np.array([0, 0, 1, 0]), np.array([0, 1, 3, 4]), 3))
    assert rarity.dtype == np.float32
    np.testing.assert_allclose(rarity, np.log([4 / 4, 4 / 2, 4 / 1]), rtol=1e-6)
