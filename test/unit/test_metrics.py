# SPDX-License-Identifier: Apache-2.0
"""Statistics of a run against values worked out by hand; covariances against errors drawn from them."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from aceg_ros.camera import Camera, Frame
from aceg_ros.estimate import PoseEstimate, Status
from aceg_ros.evaluation.metrics import FrameResult, availability, consistency, summarize
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.calibration import (
    MIN_HELD_OUT,
    calibrate_covariance_scale,
    held_out_indices,
    normalized_error_squared,
)
from aceg_ros.maps.header import MIN_COVARIANCE_SCALE

COVARIANCE = np.diag([1e-4, 4e-4, 1e-4, 1e-5, 1e-5, 4e-5])


def shifted(pose: np.ndarray, error: np.ndarray) -> np.ndarray:
    moved = pose.copy()
    moved[:3, 3] += error[:3]
    moved[:3, :3] = Rotation.from_rotvec(error[3:]).as_matrix() @ pose[:3, :3]
    return moved


def result(stamp_s: float, error=None, covariance=COVARIANCE) -> FrameResult:
    truth = np.eye(4)
    truth[0, 3] = stamp_s
    truth[:3, :3] = Rotation.from_rotvec([0.3, 0.2, 1.0]).as_matrix()
    if error is None:
        estimate = PoseEstimate(status=Status.NO_CONSENSUS, message="No.")
    else:
        estimate = PoseEstimate(status=Status.ACCEPTED, message="Yes.",
                                map_from_camera=shifted(truth, np.asarray(error)), covariance=covariance, inliers=100,
                                inlier_ratio=0.5, reprojection_rms_px=1.0)
    return FrameResult(name=f"{stamp_s:.1f}", stamp_s=stamp_s, truth=truth, estimate=estimate, latency_ms=10.0)


def test_errors_of_position_and_motion():
    made = [result(0.0, [0.03, 0, 0, 0, 0, 0]), result(1.0, [0.03, 0.04, 0, 0, 0, 0]), result(2.0),
            result(3.0, [0, 0, 0.7, 0, 0, 0])]
    summary = summarize(made)
    assert (summary.frames, summary.localized, summary.rejected) == (4, 3, {"no_consensus": 1})
    assert summary.false_accepts == 1
    assert summary.ate_m == pytest.approx(np.sqrt((0.03**2 + 0.05**2 + 0.7**2) / 3))
    assert summary.rpe_m == pytest.approx(0.04) and summary.rpe_deg == pytest.approx(0, abs=1e-5)
    assert summary.recall["0.1m_5deg"] == 0.5


def test_availability_is_the_share_of_time_with_a_young_pose():
    none = [0.0] * 6
    made = [result(float(second), None if second in (1, 2, 3) else none) for second in range(11)]
    assert availability(made) == {"0.2s": pytest.approx(0.14), "0.5s": pytest.approx(0.35),
                                  "1s": pytest.approx(0.7), "2s": pytest.approx(0.8)}
    assert all(np.isnan(value) for value in availability(made[:1]).values())


@pytest.mark.parametrize(("factor", "low", "high"), [(1.0, 0.93, 0.97), (4.0, 0.15, 0.30)])
def test_consistency_tells_true_covariances_from_those_that_promise_too_much(factor, low, high):
    rng = np.random.default_rng(0)
    errors = rng.multivariate_normal(np.zeros(6), factor * COVARIANCE, 2000)
    found = consistency([result(0.1 * index, error) for index, error in enumerate(errors)])
    assert low < found.inside_95 < high
    assert found.median_nees == pytest.approx(5.35 * factor, rel=0.1)
    assert found.median_std_m == pytest.approx(np.sqrt(6e-4))


class Scripted:
    """A localizer that errs as it is told."""

    def __init__(self, errors, accepted=True):
        self.errors, self.accepted = iter(errors), accepted

    def localize(self, frame):
        assert frame.map_from_camera is None, "the truth is not told"
        if not self.accepted:
            return PoseEstimate(status=Status.NO_CONSENSUS, message="No.")
        return PoseEstimate(status=Status.ACCEPTED, message="Yes.",
                            map_from_camera=shifted(np.eye(4), next(self.errors)), covariance=COVARIANCE, inliers=100,
                            inlier_ratio=0.5, reprojection_rms_px=1.0)


def frames(count: int) -> list[Frame]:
    camera = Camera(width=96, height=64, fx=90.0, fy=91.0, cx=47.0, cy=31.0)
    return [Frame(image=np.zeros((64, 96, 3), np.uint8), camera=camera, stamp_s=index, map_from_camera=np.eye(4))
            for index in range(count)]


@pytest.mark.parametrize(("factor", "expected"), [(0.2, MIN_COVARIANCE_SCALE), (3.0, 3.0), (100.0, 60.0)])
def test_the_scale_explains_the_errors_within_bounds(factor, expected):
    rng = np.random.default_rng(0)
    errors = rng.multivariate_normal(np.zeros(6), factor * COVARIANCE, 400)
    scale = calibrate_covariance_scale(Scripted(errors).localize, frames(400), MappingBudget.start())
    assert scale == pytest.approx(expected, rel=0.12)


@pytest.mark.parametrize("count", [4, 8, 20])
def test_a_scale_by_few_images_is_seldom_too_small(count):
    """Errors three times what the solver claims: most such samples have to say so, if not by how much."""
    rng = np.random.default_rng(0)
    localizers = [Scripted(rng.multivariate_normal(np.zeros(6), 3 * COVARIANCE, count)) for _ in range(200)]
    scales = [calibrate_covariance_scale(one.localize, frames(count), MappingBudget.start()) for one in localizers]
    assert np.mean(np.greater_equal(scales, 3.0)) > 0.6
    assert np.median(scales) < 5.5, "nor the largest there is"


def test_too_few_images_calibrate_nothing():
    errors, budget = 10 * np.ones((MIN_HELD_OUT, 6)), MappingBudget.start()
    assert calibrate_covariance_scale(Scripted(errors).localize, frames(1), budget) == MIN_COVARIANCE_SCALE
    none = Scripted([], accepted=False)
    assert calibrate_covariance_scale(none.localize, frames(50), budget) == MIN_COVARIANCE_SCALE
    no_time = MappingBudget.start(0.0)
    assert calibrate_covariance_scale(Scripted(errors).localize, frames(50), no_time) == MIN_COVARIANCE_SCALE


def test_a_share_of_many_images_is_held_out():
    assert held_out_indices(0) == held_out_indices(79) == set()
    for count in (80, 320, 5000):
        chosen = held_out_indices(count)
        assert 8 <= len(chosen) <= 32 and max(chosen) < count and len(chosen) <= count / 10 + 1


def test_distances_are_counted_in_standard_deviations():
    pose = shifted(np.eye(4), np.array([0.02, 0, 0, 0, 0, 0]))
    assert normalized_error_squared(pose, COVARIANCE, np.eye(4)) == pytest.approx(4.0)
