# SPDX-License-Identifier: Apache-2.0
"""The odometry gate: drifting odometry, wrong poses in between, and a kidnapped robot."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from aceg_ros.geometry import invert, pose_difference, pose_error
from aceg_ros.pose.odometry_gate import (
    GatedPose,
    OdometryGate,
    OdometryGateConfig,
    Verdict,
    predict,
    transport_covariance,
)
from aceg_ros.pose.prior_schedule import PriorSchedule
from aceg_ros.synthetic.odometry import DriftingOdometry

SIGMA_M, SIGMA_RAD = 0.02, 0.01
COVARIANCE = np.diag(np.repeat([SIGMA_M**2, SIGMA_RAD**2], 3))


def pose(x=0.0, y=0.0, z=0.0, turn=(0.0, 0.0, 0.0)) -> np.ndarray:
    result = np.eye(4)
    result[:3, :3] = Rotation.from_rotvec(turn).as_matrix()
    result[:3, 3] = x, y, z
    return result


def drive(count: int) -> list[np.ndarray]:
    """A circle of 2 m radius, one turn in 200 steps."""
    return [pose(2 * np.cos(a), 2 * np.sin(a), turn=(0, 0, a)) for a in 2 * np.pi * np.arange(count) / 200]


def noisy(truth: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    fix = truth.copy()
    fix[:3, 3] += SIGMA_M * rng.normal(size=3)
    fix[:3, :3] = Rotation.from_rotvec(SIGMA_RAD * rng.normal(size=3)).as_matrix() @ fix[:3, :3]
    return fix


def fixes(truths, rng, drift=0.05):
    odometry = DriftingOdometry(drift)
    for index, truth in enumerate(truths):
        yield truth, GatedPose(map_from_camera=noisy(truth, rng), odom_from_camera=odometry.update(truth),
                               covariance=COVARIANCE, stamp_s=0.2 * index)


def test_nothing_is_accepted_before_several_fixes_agree():
    gate = OdometryGate()
    verdicts = []
    for _, fix in fixes(drive(5), np.random.default_rng(0)):
        verdicts.append(gate.update(fix))
        assert (gate.pose is not None) == (len(verdicts) >= 3)
    assert verdicts == [Verdict.PENDING] * 2 + [Verdict.ACCEPTED] * 3


def test_the_pose_follows_drifting_odometry_and_is_better_than_single_fixes():
    gate, single, fused = OdometryGate(), [], []
    for truth, fix in fixes(drive(400), np.random.default_rng(1)):
        gate.update(fix)
        if gate.pose is not None:
            single.append(pose_error(fix.map_from_camera, truth)[0])
            fused.append(pose_error(gate.pose.map_from_odom @ fix.odom_from_camera, truth)[0])
    assert len(fused) == 398
    assert np.median(fused) < 0.8 * np.median(single)
    assert max(fused) < 4 * SIGMA_M


def test_single_wrong_poses_never_move_the_pose():
    rng = np.random.default_rng(2)
    gate = OdometryGate()
    for index, (truth, fix) in enumerate(fixes(drive(300), rng)):
        if index > 10 and index % 3:          # two wrong ones in a row, never at one position
            wrong = GatedPose(map_from_camera=pose(*rng.uniform(-5, 5, 3), turn=rng.normal(size=3)),
                              odom_from_camera=fix.odom_from_camera, covariance=COVARIANCE, stamp_s=fix.stamp_s)
            assert gate.update(wrong) is Verdict.PENDING
        else:
            gate.update(fix)
        if gate.pose is not None:
            assert pose_error(gate.pose.map_from_odom @ fix.odom_from_camera, truth)[0] < 0.1


def test_a_kidnapped_robot_is_found_after_as_many_fixes_as_asked_for():
    gate = OdometryGate(OdometryGateConfig(agreeing_fixes=4))
    stay = [GatedPose(map_from_camera=noisy(pose(), np.random.default_rng(i)), odom_from_camera=np.eye(4),
                      covariance=COVARIANCE, stamp_s=0.1 * i) for i in range(6)]
    moved = [GatedPose(map_from_camera=noisy(pose(3.0), np.random.default_rng(i)), odom_from_camera=np.eye(4),
                       covariance=COVARIANCE, stamp_s=1 + 0.1 * i) for i in range(4)]
    for fix in stay:
        gate.update(fix)
    verdicts = [gate.update(fix) for fix in moved]
    assert verdicts == [Verdict.PENDING] * 3 + [Verdict.ACCEPTED]
    assert gate.pose.map_from_camera[0, 3] == pytest.approx(3.0, abs=0.1)


def test_a_prior_lets_the_first_fix_be_accepted_but_does_not_bias_it():
    wide = np.diag(np.repeat([0.5**2, 0.3**2], 3))
    for offset, expected in ((0.6, Verdict.ACCEPTED), (9.0, Verdict.PENDING)):
        gate = OdometryGate()
        gate.set_prior(GatedPose(map_from_camera=pose(offset), odom_from_camera=np.eye(4), covariance=wide,
                                 stamp_s=0.0))
        assert gate.pose is None, "a prior is no pose"
        fix = GatedPose(map_from_camera=pose(), odom_from_camera=np.eye(4), covariance=COVARIANCE, stamp_s=0.1)
        assert gate.update(fix) is expected
        if expected is Verdict.ACCEPTED:
            np.testing.assert_array_equal(gate.pose.map_from_camera, pose())


def test_the_prior_of_the_next_image_is_the_pose_carried_on_with_a_larger_covariance():
    gate = OdometryGate()
    assert gate.prior(np.eye(4)) is None
    for _, fix in fixes(drive(10), np.random.default_rng(3)):
        gate.update(fix)
    here = gate.prior(gate.pose.odom_from_camera)
    moved = pose(0.5, 0.0, 0.0)
    there = gate.prior(gate.pose.odom_from_camera @ moved)
    np.testing.assert_allclose(here.map_from_camera, gate.pose.map_from_camera)
    np.testing.assert_allclose(there.map_from_camera, gate.pose.map_from_camera @ moved)
    assert there.position_std_m > here.position_std_m > 0.05 and here.rotation_std_rad > 0.03


def test_images_are_checked_without_a_prior_and_doubt_ends_with_an_answer_found_without_one():
    schedule = PriorSchedule(3)
    assert [schedule.next_has_prior(stamp_s) for stamp_s in range(6)] == [True, True, False] * 2
    schedule.note(agrees=False, had_prior=True)
    assert not any(schedule.next_has_prior(stamp_s) for stamp_s in range(6, 11))
    schedule.note(agrees=True, had_prior=True)                 # of an image that was on its way
    assert not schedule.next_has_prior(11.0)
    schedule.note(agrees=True, had_prior=False)
    assert schedule.next_has_prior(12.0)


def test_of_many_images_a_second_fewer_are_checked_but_not_fewer_than_one_in_the_period():
    schedule = PriorSchedule(10, period_s=1.0)
    fast = [step / 30 for step in range(110) if not schedule.next_has_prior(step / 30)]
    assert fast[0] == 0.3 and np.diff(fast) == pytest.approx([1.0] * 3, abs=0.04)
    schedule.reset()
    slow = [step for step in range(100) if not schedule.next_has_prior(10.0 + step / 5)]
    assert np.diff(slow).tolist() == [10] * 9
    assert sum(not schedule.next_has_prior(0.0) for _ in range(10)) == 1         # time was set back


def test_late_fixes_change_nothing():
    gate = OdometryGate()
    for _, fix in fixes(drive(10), np.random.default_rng(3)):
        gate.update(fix)
    before = gate.pose
    (_, old), *_ = fixes(drive(1), np.random.default_rng(4))
    assert gate.update(old) is Verdict.LATE and gate.pose is before


def test_prediction_follows_odometry_with_the_covariance_of_samples():
    """Monte Carlo: an erroneous pose, propagated by odometry without drift."""
    rng = np.random.default_rng(5)
    start, moved = pose(1, 2, 3, (0.3, -0.2, 1.0)), pose(0.5, -1.0, 0.2, (0.1, 0.4, -0.3))
    covariance = np.diag([0.01, 0.02, 0.03, 0.02, 0.01, 0.03]) ** 2 * 4
    reference = GatedPose(map_from_camera=start, odom_from_camera=np.eye(4), covariance=covariance, stamp_s=0.0)
    predicted, found = predict(reference, moved, drift=0.0)
    np.testing.assert_allclose(predicted, start @ moved)
    errors = []
    for step in rng.multivariate_normal(np.zeros(6), covariance, 4000):
        off = start.copy()
        off[:3, 3] += step[:3]
        off[:3, :3] = Rotation.from_rotvec(step[3:]).as_matrix() @ start[:3, :3]
        errors.append(pose_difference(off @ moved, predicted))
    np.testing.assert_allclose(found, np.cov(np.array(errors).T), atol=0.1 * found.max())


def test_transported_covariance_grows_with_the_lever():
    rotation_only = np.diag([0, 0, 0, 0, 0, 0.1**2])
    there = transport_covariance(rotation_only, np.array([2.0, 0.0, 0.0]))
    assert there[1, 1] == pytest.approx(0.2**2) and there[0, 0] == 0
    np.testing.assert_allclose(transport_covariance(there, np.array([-2.0, 0.0, 0.0])), rotation_only, atol=1e-15)


def test_odometry_without_drift_is_exact_and_with_it_wanders():
    truths = drive(200)
    exact, drifting = DriftingOdometry(0.0), DriftingOdometry(0.05)
    errors = []
    for truth in truths:
        relative = invert(truths[0]) @ truth
        np.testing.assert_allclose(exact.update(truth), relative, atol=1e-9)
        errors.append(pose_error(drifting.update(truth), relative)[0])
    assert errors[0] == 0 and 0.1 < errors[100] < 2.0
