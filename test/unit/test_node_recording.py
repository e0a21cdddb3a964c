# SPDX-License-Identifier: Apache-2.0
"""Results of a running node from its messages: what was evaluated, what was not, and the frames' results."""

import numpy as np
import pytest

from aceg_ros.estimate import Status
from aceg_ros.evaluation.node_recording import ImageStatus, NodeRecording

NS = 1_700_000_000_000_000_000


def status(name: str, **values: str) -> ImageStatus:
    return ImageStatus(status=name, message=f"{name}.", values={"age_ms": "40.0"} | values)


@pytest.fixture
def recording() -> NodeRecording:
    """Five images: accepted, rejected, replaced, without an answer, accepted but without a true pose."""
    stamps = [NS + index for index in range(5)]
    pose = np.eye(4)
    pose[0, 3] = 0.1
    values = {"inliers": "120", "inlier_ratio": "0.5", "reprojection_rms_px": "2.5", "stage_ms.encode": "30.0"}
    return NodeRecording(
        images=stamps, truths={stamp: np.eye(4) for stamp in stamps[:4]},
        poses={stamps[0]: (pose, np.eye(6)), stamps[4]: (pose, np.eye(6))},
        statuses={stamps[0]: status("accepted", **values), stamps[1]: status("no_consensus"),
                  stamps[2]: status("replaced"), stamps[4]: status("accepted")})


def test_images_that_were_not_evaluated_are_counted_by_status(recording):
    assert recording.not_evaluated() == {"lost": 1, "replaced": 1}
    assert [recording.evaluated(stamp) for stamp in recording.images] == [True, True, False, False, True]


def test_results_are_those_of_evaluated_images_with_a_true_pose(recording):
    accepted, rejected = recording.frame_results()
    assert (accepted.name, accepted.stamp_s, accepted.latency_ms) == ("image 0", pytest.approx(1.7e9), 40.0)
    assert accepted.errors == pytest.approx((0.1, 0.0))
    estimate = accepted.estimate
    assert (estimate.inliers, estimate.inlier_ratio, estimate.reprojection_rms_px) == (120, 0.5, 2.5)
    assert estimate.stage_ms == {"encode": 30.0}
    assert (rejected.name, rejected.errors, rejected.estimate.status) == ("image 1", None, Status.NO_CONSENSUS)


def test_recorded_names_stamps_and_speed(recording):
    (result, _) = recording.frame_results({NS: ("0001.png", 0.5)}, speed=2.0)
    assert (result.name, result.stamp_s, result.latency_ms) == ("0001.png", 0.5, 20.0)
