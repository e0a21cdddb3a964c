# SPDX-License-Identifier: Apache-2.0
"""Poses and TF of the node against exact truth: each policy, drifting odometry, wrong fixes, late images, clocks."""

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseWithCovarianceStamped
from node_bench import FAKE_NODE, write_map
from odometry_robot import OdometryRobot, truth_at
from rclpy.time import Time as RosTime
from ros_graph import output, stop
from std_msgs.msg import Header
from std_srvs.srv import Trigger
from tf2_ros import TransformBroadcaster

from aceg_ros.geometry import invert, pose_error
from aceg_ros.ros.common.messages import pose_from_transform, pose_to_message, pose_to_transform
from aceg_ros.ros.players.camera_publisher import BASE_FROM_CAMERA
from aceg_ros.synthetic.odometry import DriftingOdometry
from aceg_ros.utils.stamps import stamp_to_ns


@pytest.fixture
def start(graph, tmp_path):
    def start_node(top_frame=None, **parameters):
        """Start the node, and a robot with as much of a tree as its parameters name, or up to top_frame."""
        named = "odom" if parameters.get("odom_frame") else "base_link" if parameters.get("base_frame") else "cam"
        map_file = write_map(tmp_path / "truth.map", offset_m=0.0, reads_pose=True)
        process = graph.start(FAKE_NODE, map_path=str(map_file), **parameters)
        robot = OdometryRobot(graph, top_frame or named)
        assert graph.spin_until(lambda: robot.connected() or process.poll() is not None) and process.poll() is None, \
            output(process)
        graph.spin(0.3)             # the static transform comes when the node has been found
        return robot, process
    return start_node


@pytest.mark.parametrize(("policy", "child"), [("map_to_odom", "odom"), ("map_to_base", "base_link"),
                                               ("map_to_camera", "cam")])
def test_each_policy_against_the_truth(start, policy, child):
    parameters = {"map_to_odom": {"odom_frame": "odom", "base_frame": "base_link"},
                  "map_to_base": {"base_frame": "base_link"}, "map_to_camera": {}}[policy]
    # tf_policy auto: these frames decide it.
    robot, _ = start(tf_rate=5.0, transform_tolerance=0.2, tf_hold=1.0, **parameters)
    posed = "base_link" if parameters else "cam"
    assert not robot.transforms, "nothing before the first pose"
    keys = [robot.drive()[0] for _ in range(12)]
    first = 2 if policy == "map_to_odom" else 0             # with odometry, the first fixes wait for each other
    assert [key in robot.poses for key in keys] == [index >= first for index in range(12)]
    for key in keys[first:]:
        pose = robot.pose(key)
        np.testing.assert_allclose(pose, robot.true_pose(key, posed), atol=1e-6)
    assert {t.child_frame_id for t in robot.transforms} == {child}
    stamps = [stamp_to_ns(t.header.stamp) for t in robot.transforms]
    assert stamps == sorted(set(stamps)), "a moment is not changed afterwards"
    last = pose_from_transform(robot.transforms[-1])
    translation_m, rotation_deg = pose_error(last, robot.true_pose(keys[-1], child))
    assert translation_m < 0.03 and rotation_deg < 0.5
    assert stamps[0] - keys[first] == 200_000_000

    heard = len(robot.transforms)
    assert robot.graph.spin_until(lambda: len(robot.transforms) >= heard + 3, 1.0), "published again between fixes"
    again = robot.transforms[heard:]
    ages = [stamp_to_ns(t.header.stamp) - robot.graph.node.get_clock().now().nanoseconds for t in again]
    assert max(ages) < 0.25e9
    np.testing.assert_array_equal(pose_from_transform(again[-1]), pose_from_transform(again[0]))
    robot.graph.spin(1.5)
    heard = len(robot.transforms)
    robot.graph.spin(1.0)
    # Only odometry propagates an old pose; without it, a camera that may have moved is not published as standing still.
    assert (len(robot.transforms) > heard) == (policy == "map_to_odom")


def test_no_policy_no_transform(start):
    robot, _ = start(tf_policy="none")
    keys = [robot.drive()[0] for _ in range(5)]
    assert all(key in robot.poses for key in keys) and not robot.transforms
    np.testing.assert_allclose(robot.pose(keys[-1]), robot.truth[keys[-1]], atol=1e-9)
    assert len(robot.paths[-1].poses) == 5 and robot.paths[-1].header.frame_id == "map"


def test_one_wrong_pose_never_moves_the_robot_and_several_that_agree_do(start):
    robot, _ = start(tf_policy="map_to_odom", odom_frame="odom")
    for _ in range(6):
        robot.drive()
    elsewhere = np.eye(4)
    elsewhere[:3, 3] = 7.0, -2.0, 0.0
    for turn in range(4):
        wrong = elsewhere.copy()
        wrong[:3, 3] += 3.0 * turn
        key, status, values = robot.drive(wrong @ truth_at(robot.step + 1))
        assert values["status"] == "unconfirmed" and key not in robot.poses and status.level == status.WARN
        assert pose_error(pose_from_transform(robot.transforms[-1]), robot.true_pose(key, "odom"))[0] < 0.05
    outcomes = [robot.drive(elsewhere @ truth_at(robot.step + 1)) for _ in range(3)]      # carried away: they agree
    assert [values["status"] for *_, values in outcomes] == ["unconfirmed", "unconfirmed", "accepted"]
    expected = elsewhere @ robot.true_pose(outcomes[-1][0], "odom")
    assert pose_error(pose_from_transform(robot.transforms[-1]), expected)[0] < 0.1


def test_the_last_pose_carried_on_is_the_prior_of_all_images_but_some(start):
    robot, _ = start(tf_policy="map_to_odom", odom_frame="odom", prior_check_every=4,
                     prior_check_seconds=0.0)
    offs = [robot.drive()[2].get("stage_ms.prior_off_m") for _ in range(11)]
    assert [off is None for off in offs] == [True] * 3 + [False] * 3 + [True] + [False] * 3 + [True]
    # A step is 0.15 m; the odometry drifts by a twentieth of it.
    assert all(float(off) < 0.1 for off in offs if off is not None)

    wrong = np.eye(4)
    wrong[:3, 3] = 7.0, -2.0, 0.0
    robot.drive(wrong @ truth_at(robot.step + 1))
    assert "stage_ms.prior_off_m" not in robot.drive()[2], "an answer spoke against it"
    assert "stage_ms.prior_off_m" in robot.drive()[2], "the next one agreed"


def test_priors_can_be_switched_off(start):
    robot, _ = start(tf_policy="map_to_odom", odom_frame="odom", use_prior=False)
    assert not any("stage_ms.prior_off_m" in robot.drive()[2] for _ in range(6))


def test_late_images_do_not_turn_time_back(start):
    robot, _ = start(tf_policy="map_to_odom", odom_frame="odom")
    for _ in range(5):
        robot.drive()
    now = robot.graph.node.get_clock().now().nanoseconds
    robot.graph.spin(0.5)
    robot.drive()
    before = pose_from_transform(robot.transforms[-1])
    late = RosTime(nanoseconds=now).to_msg()
    _, _, values = robot.drive(stamp=late, advance=False)
    assert values["status"] in ("accepted", "unconfirmed", "no_transform")
    stamps = [stamp_to_ns(t.header.stamp) for t in robot.transforms]
    assert stamps == sorted(stamps)
    np.testing.assert_allclose(pose_from_transform(robot.transforms[-1]), before, atol=1e-12)


def test_without_odometry_or_extrinsics_there_is_no_pose_but_a_reason(start):
    robot, _ = start(tf_policy="map_to_odom", odom_frame="odom", tf_timeout=0.1)
    key, status, values = robot.drive(with_odometry=False)
    assert values["status"] == "no_transform" and "odom" in status.message and key not in robot.poses
    assert not robot.transforms


def test_covariance_belongs_to_the_base_and_can_be_diagonal(start):
    robot, _ = start(tf_policy="none", base_frame="base_link")
    key, *_ = robot.drive()
    covariance = np.reshape(robot.poses[key][0].pose.covariance, (6, 6))
    assert np.linalg.eigvalsh(covariance).min() > 0 and np.abs(covariance - np.diag(np.diag(covariance))).max() > 0
    # The base is 0.3 m below the camera: what is uncertain of the rotation makes its position uncertain.
    assert covariance[0, 0] == pytest.approx(1e-4 + 0.3**2 * 1e-5, rel=1e-4)
    assert robot.graph.set_parameter("localizer", "covariance", "diagonal")[0]
    key, *_ = robot.drive()
    diagonal = np.reshape(robot.poses[key][0].pose.covariance, (6, 6))
    assert np.count_nonzero(diagonal - np.diag(np.diag(diagonal))) == 0 and (np.diag(diagonal) > 0).all()


@pytest.mark.parametrize(("name", "value", "word"), [("tf_policy", "map_to_odom", "odom_frame"),
                                                     ("tf_policy", "map_to_base", "base_frame"),
                                                     ("base_frame", "base_link", "only one")])
def test_policies_that_lack_a_frame_are_rejected(start, name, value, word):
    robot, _ = start(tf_policy="map_to_camera")
    successful, reason = robot.graph.set_parameter("localizer", name, value)
    assert not successful and word in reason


def test_a_prior_from_rviz_lets_the_first_fix_count(start):
    robot, process = start(tf_policy="map_to_odom", odom_frame="odom", base_frame="base_link")
    initial = robot.graph.node.create_publisher(PoseWithCovarianceStamped, "initialpose", 1)
    message = PoseWithCovarianceStamped(header=Header(frame_id="map"))
    message.pose.pose = pose_to_message(truth_at(1) @ invert(BASE_FROM_CAMERA))
    message.pose.pose.position.x += 0.2
    message.pose.covariance[0] = message.pose.covariance[7] = 0.25
    message.pose.covariance[35] = 0.07
    assert robot.graph.spin_until(lambda: initial.get_subscription_count() > 0)
    initial.publish(message)
    robot.graph.spin(0.3)
    assert not robot.transforms, "a prior is no pose"
    assert "The initial pose (x " in output(process) and "was taken" in output(process)
    key, _, values = robot.drive()
    assert values["status"] == "accepted" and key in robot.poses


def test_the_last_pose_is_expected_after_a_restart(start, tmp_path):
    robot, process = start(tf_policy="map_to_odom", odom_frame="odom", data_folder=str(tmp_path / "data"))
    for _ in range(4):
        robot.drive()
    assert stop(process) == 0
    assert (tmp_path / "data" / "last_pose.json").is_file()
    robot, _ = start(tf_policy="map_to_odom", odom_frame="odom", data_folder=str(tmp_path / "data"))
    robot.step = 3
    assert robot.drive()[2]["status"] == "accepted", "where it was left, the first fix counts"


def test_stamps_of_zero_and_from_the_future_are_rejected(start):
    robot, _ = start()
    _, status, values = robot.drive(stamp=Time())
    assert values["status"] == "bad_stamp" and "no stamp" in status.message
    ahead = RosTime(nanoseconds=robot.graph.node.get_clock().now().nanoseconds + 5_000_000_000).to_msg()
    _, status, values = robot.drive(stamp=ahead)
    assert values["status"] == "bad_stamp" and "future" in status.message
    assert not robot.poses and not robot.transforms
    assert robot.drive()[2]["status"] == "accepted"


def test_a_simulated_clock_that_starts_again_and_one_that_stands_still(start):
    """A bag replayed twice: the second round is localized like the first, without anything of the first."""
    robot, _ = start(tf_policy="map_to_odom", odom_frame="odom", use_sim_time=True)
    rounds = []
    for _ in range(2):
        robot.step, robot.odometry = 0, DriftingOdometry(0.05)
        robot.transforms.clear()
        robot.statuses.clear()
        outcomes = []
        for second in range(8):
            robot.set_clock(100.0 + 0.2 * second)
            robot.graph.spin(0.1)
            outcomes.append(robot.drive()[2]["status"])
        rounds.append((outcomes, pose_from_transform(robot.transforms[-1])))
        assert all(99 < t.header.stamp.sec < 103 for t in robot.transforms)
    assert rounds[0][0] == rounds[1][0] == ["unconfirmed"] * 2 + ["accepted"] * 6
    np.testing.assert_allclose(rounds[0][1], rounds[1][1], atol=1e-9)
    robot.graph.spin(1.0)           # the clock stands still: nothing breaks
    robot.set_clock(102.0)
    robot.graph.spin(0.1)
    assert robot.drive()[2]["status"] == "accepted"


def test_stamps_that_start_again_without_a_clock(start):
    """The same without use_sim_time: old stamps, twice."""
    robot, _ = start(tf_policy="map_to_camera")
    for _ in range(2):
        robot.step = 0
        robot.transforms.clear()
        robot.statuses.clear()
        for second in range(3):
            assert robot.drive(stamp=Time(sec=1000 + 10 * second))[2]["status"] == "accepted"
        assert [t.header.stamp.sec for t in robot.transforms] == [1000, 1010, 1020]


def test_while_mapping_from_tf_the_transform_is_left_to_others(start, tmp_path):
    """Even if the old map recognises nothing any more, its last transform is not sent on."""
    robot, _ = start(tf_policy="map_to_odom", odom_frame="odom", data_folder=str(tmp_path / "data"))
    for _ in range(4):
        robot.drive()
    assert robot.graph.call(Trigger, "/localizer/start_mapping").success
    robot.graph.spin(0.3)
    robot.transforms.clear()
    robot.graph.spin(0.5)
    assert not robot.transforms
    assert robot.graph.call(Trigger, "/localizer/cancel_mapping").success
    robot.graph.spin(0.5)
    assert robot.transforms, "and afterwards it is"


def test_a_result_of_the_old_map_is_not_published_after_the_change(start, tmp_path):
    robot, _ = start()
    other = write_map(tmp_path / "other.map", offset_m=0.0, reads_pose=True, delay_s=1.5)
    assert robot.graph.set_parameter("localizer", "map_path", str(other))[0]
    assert robot.graph.call(Trigger, "/localizer/load_map").success
    key = robot.send_image()
    robot.graph.spin(0.5)           # at work for a second more
    assert robot.graph.call(Trigger, "/localizer/load_map").success
    assert robot.graph.spin_until(lambda: key in robot.statuses)
    robot.graph.spin(0.3)
    assert robot.statuses[key][0][1]["status"] == "replaced" and key not in robot.poses and not robot.transforms


def test_reset_resets_everything(start):
    robot, _ = start(tf_policy="map_to_odom", odom_frame="odom")
    for _ in range(4):
        robot.drive()
    client = robot.graph.node.create_client(Trigger, "/localizer/reset")
    assert robot.graph.spin_until(client.service_is_ready)
    future = client.call_async(Trigger.Request())
    assert robot.graph.spin_until(future.done) and future.result().success
    robot.graph.spin(0.2)
    robot.transforms.clear()
    robot.graph.spin(0.5)
    assert not robot.transforms
    assert [robot.drive()[2]["status"] for _ in range(3)] == ["unconfirmed", "unconfirmed", "accepted"]


def test_frames_can_be_named_at_run_time(start):
    robot, _ = start(top_frame="odom")
    assert robot.graph.set_parameter("localizer", "odom_frame", "odom")[0]
    for _ in range(4):
        robot.drive()
    assert {t.child_frame_id for t in robot.transforms} == {"odom"}


def test_a_frame_that_has_a_parent_gets_no_second_one(start):
    """The tree stays whole: the pose is published, the transform is not, and the node says what to set."""
    robot, process = start(top_frame="base_link")
    key, *_ = robot.drive()
    assert key in robot.poses and not robot.transforms
    assert "TF has a parent of 'cam' already (base_link -> cam)" in output(process)
    assert robot.graph.spin_until(lambda: "Set base_frame" in robot.node_statuses[-1][0].message, 5.0)
    assert robot.node_statuses[-1][0].level == robot.node_statuses[-1][0].WARN

    assert robot.graph.set_parameter("localizer", "base_frame", "base_link")[0]
    robot.drive()
    assert {t.child_frame_id for t in robot.transforms} == {"base_link"}
    robot.top_frame = "odom"                    # now somebody publishes odometry
    robot.drive()
    robot.graph.spin(0.2)
    robot.transforms.clear()
    robot.drive()
    assert not robot.transforms and "(odom -> base_link)" in output(process)

    assert robot.graph.set_parameter("localizer", "odom_frame", "odom")[0]
    for _ in range(4):
        robot.drive()
    assert {t.child_frame_id for t in robot.transforms} == {"odom"}
    assert output(process).count("can have only one") == 2, "each is said once"


def test_a_transform_that_another_node_publishes_is_left_to_it(start):
    robot, process = start(tf_rate=5.0)
    robot.drive()
    other = TransformBroadcaster(robot.graph.node)
    for _ in range(4):
        stamp = robot.graph.node.get_clock().now().to_msg()
        other.sendTransform(pose_to_transform(pose_to_message(np.eye(4)), Header(stamp=stamp, frame_id="map"), "cam"))
        robot.graph.spin(0.1)
    robot.transforms.clear()
    key, *_ = robot.drive()
    assert key in robot.poses and not robot.transforms
    assert output(process).count("Another node publishes map -> cam too") == 1
    assert robot.graph.spin_until(lambda: "set tf_policy to none" in robot.node_statuses[-1][0].message, 5.0)
    assert robot.node_statuses[-1][0].level == robot.node_statuses[-1][0].WARN
    robot.graph.spin(10.5)                      # the other one has ended
    robot.drive()
    assert robot.transforms
