# SPDX-License-Identifier: Apache-2.0
"""What the node says of what is missing: one line in its log, the truth on /diagnostics, a name in every answer."""

from __future__ import annotations

import time

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from node_bench import FAKE_NODE, Bench, good_info, noise_image
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from ros_graph import output
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from aceg_ros.ros.common.messages import image_message
from aceg_ros.utils.stamps import stamp_to_ns


def said(bench: Bench, *words: str) -> bool:
    """Whether the node's own status comes to hold these words, as a warning or an error."""
    def holds() -> bool:
        status = bench.node_statuses[-1][0] if bench.node_statuses else None
        return status is not None and status.level != status.OK and all(word in status.message for word in words)

    return bench.graph.spin_until(holds, 10.0)


def logged(bench: Bench, process, *words: str) -> bool:
    """Whether one line of the log comes to hold these words."""
    return bench.graph.spin_until(
        lambda: any(all(word in line for word in words) for line in output(process).splitlines()), 10.0)


def test_each_missing_thing_has_a_name_from_the_start_to_the_first_pose(start_bench, map_file):
    bench, process = start_bench(wait=False, **{"qos_overrides./image.subscription.reliability": "reliable"})
    graph = bench.graph
    assert bench.mapping and bench.mapping[0][1] == "Nothing was mapped yet.", "latched before any mapping"
    assert logged(bench, process, "WARN", "No map is loaded", "map_path")
    assert said(bench, "No map is loaded")

    client = graph.node.create_client(Trigger, "/localizer/trigger_localization")
    graph.node.destroy_publisher(bench.image)
    graph.node.destroy_publisher(bench.info)
    other_info = graph.node.create_publisher(CameraInfo, "/front/camera_info", qos_profile_sensor_data)
    assert graph.set_parameter("localizer", "map_path", str(map_file))[0]
    assert graph.spin_until(client.service_is_ready)
    answer = client.call_async(Trigger.Request())
    assert said(bench, "No camera_info", "on /camera_info: nobody publishes it", "/front/camera_info: remap")
    assert logged(bench, process, "WARN", "No camera_info", "on /camera_info")

    initial = graph.node.create_publisher(PoseWithCovarianceStamped, "initialpose", 1)
    assert graph.spin_until(lambda: initial.get_subscription_count() > 0)
    initial.publish(PoseWithCovarianceStamped(header=Header(frame_id="map")))
    assert logged(bench, process, "WARN", "initial pose is of no use without odom_frame")

    graph.node.destroy_publisher(other_info)
    bench.info = graph.node.create_publisher(CameraInfo, "camera_info", qos_profile_sensor_data)
    # Best effort: what is sent before the node has found the publisher is lost.
    repeat = graph.node.create_timer(0.2, lambda: bench.info.publish(good_info()))
    assert said(bench, "No image", "on /image yet: nobody publishes it")
    graph.node.destroy_timer(repeat)
    assert graph.spin_until(answer.done)
    assert not answer.result().success and "No image came on /image within 10 s" in answer.result().message

    bench.image = graph.node.create_publisher(Image, "image", qos_profile_sensor_data)
    assert said(bench, "No image", "RELIABILITY", "qos_overrides./image.subscription.reliability")
    assert logged(bench, process, "Nothing is received on /image", "RELIABILITY")
    graph.node.destroy_publisher(bench.image)
    wrong_type = graph.node.create_publisher(CompressedImage, "image", 1)
    assert said(bench, "/image", "set image_transport to compressed")
    graph.node.destroy_publisher(wrong_type)

    bench.image = graph.node.create_publisher(Image, "image", 10)
    assert graph.spin_until(lambda: bench.image.get_subscription_count() > 0)
    black = np.zeros((48, 64, 3), np.uint8)
    for _ in range(3):
        bench.localize(image_message(black, bench.header()), good_info())
    ahead = Header(stamp=graph.node.get_clock().now().to_msg(), frame_id="cam")
    ahead.stamp.sec += 100
    status, _ = bench.localize(image_message(black, ahead), good_info())
    assert "in the future, by " in status.message
    assert said(bench, "No image of the last 10 s gave a pose. 3 of 4", "It is too dark.")
    assert bench.position() > 0
    assert graph.spin_until(lambda: bench.node_statuses[-1][0].message == "Localizing.")
    lines = output(process).splitlines()
    assert sum("No map is loaded" in line for line in lines) == 1
    assert sum("No camera_info" in line for line in lines) == 1


def test_camera_info_that_was_published_once_before_the_node_and_rectified_images(graph, map_file):
    """Reliable and transient local, as some drivers have it; image_rect has its camera in P."""
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    info = good_info()
    info.d, info.p[0] = [-0.28, 0.09, 0.0, 0.0, 0.0], 77.0
    graph.node.create_publisher(CameraInfo, "/cam/camera_info", latched).publish(info)
    process = graph.start(FAKE_NODE, "image:=/cam/image_rect_color", "camera_info:=/cam/camera_info",
                          map_path=str(map_file))
    bench = Bench(graph)
    bench.image = graph.node.create_publisher(Image, "/cam/image_rect_color", qos_profile_sensor_data)
    assert graph.spin_until(lambda: bench.image.get_subscription_count() > 0 and bench.is_active), output(process)
    assert graph.spin_until(lambda: "No image" in bench.node_statuses[-1][0].message, 10.0), "camera_info has come"
    image = image_message(noise_image(0), bench.header())
    assert bench.localize(image)[1]["status"] == "accepted"
    assert bench.pose(stamp_to_ns(image.header.stamp))[2, 3] == 77.0, "the focal length of P"
    assert logged(bench, process, "/cam/image_rect_color looks rectified")
    assert graph.get_parameter("localizer", "qos_overrides./cam/camera_info.subscription.durability") == "volatile"


def test_a_remapped_compressed_topic_and_a_node_that_is_not_active(graph, map_file):
    """image_transport adds /compressed itself: image:=.../compressed waits for a topic that nobody publishes."""
    process = graph.start(FAKE_NODE, "image:=/cam/image_raw/compressed", map_path=str(map_file), autostart=False,
                          image_transport="compressed")
    bench = Bench(graph)
    assert said(bench, "ros2 lifecycle set /localizer configure', then 'activate'"), output(process)
    for transition, advice in ((Transition.TRANSITION_CONFIGURE, "ros2 lifecycle set /localizer activate'"),
                               (Transition.TRANSITION_ACTIVATE, "No camera_info")):
        request = ChangeState.Request(transition=Transition(id=transition))
        assert graph.call(ChangeState, "/localizer/change_state", request).success
        assert said(bench, advice)
        if transition == Transition.TRANSITION_CONFIGURE:
            success, message = bench.call("trigger_localization")
            assert not success and advice in message and "configure" not in message
    bench.info.publish(good_info())
    assert said(bench, "/cam/image_raw/compressed/compressed yet", "remap image to /cam/image_raw.")


def test_simulated_time_without_a_clock(start_bench, map_file):
    bench, process = start_bench(map_path=str(map_file), use_sim_time=True)
    status, values = bench.localize(image_message(noise_image(0), bench.header()), good_info())
    assert values["status"] == "bad_stamp" and "/clock" in status.message and "use_sim_time is set" in status.message
    assert said(bench, "/clock") and logged(bench, process, "WARN", "/clock")


def test_keyframes_are_counted_on_mapping_status_while_the_robot_drives(start_bench, map_file, tmp_path):
    bench, _ = start_bench(map_path=str(map_file), data_folder=str(tmp_path / "data"), mapping_pose_source="pose",
                           mapping_min_distance=0.0, mapping_min_interval=0.0, mapping_min_sharpness=0.0,
                           mapping_pose_timeout=0.1)
    assert bench.call("start_mapping")[0]
    bench.localize(image_message(noise_image(0), bench.header()), good_info())
    assert bench.graph.spin_until(lambda: "No pose has been received on /mapping_pose: nobody" in bench.mapping[-1][1])
    poses = bench.graph.node.create_publisher(PoseStamped, "mapping_pose", 10)
    assert bench.graph.spin_until(lambda: poses.get_subscription_count() > 0)
    for index in range(8):
        header = bench.header()
        poses.publish(PoseStamped(header=Header(stamp=header.stamp, frame_id="map")))
        bench.graph.spin(0.1)
        bench.localize(image_message(noise_image(index), header), good_info())
    assert bench.graph.spin_until(lambda: "8 keyframes" in bench.mapping[-1][1], 10.0), bench.mapping[-1]
    moments = [moment for moment, message, _ in bench.mapping if message.startswith("Collecting: ")]
    assert len(moments) >= 3 and min(np.diff(moments[1:])) > 0.5, "as they come, but once a second"


def test_problems_are_logged_once_each_and_again_after_a_good_time(monkeypatch):
    from aceg_ros.ros.localizer.status import Problem, ProblemLog

    now, lines = [100.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    log = ProblemLog(lines.append)

    def update(kind: str, seconds: float) -> None:
        now[0] += seconds
        log.update(Problem(kind=kind, level=b"\1", message=f"{kind} {now[0]:.0f}") if kind else None)

    update("no image", 1.0)
    update("", 1.0)
    assert not lines, "it was over soon"
    for _ in range(10):
        update("no image", 1.0)
    for _ in range(10):
        update("rejected", 1.0)
        update("no image", 1.0)
    assert lines == ["no image 106"]
    for _ in range(10):
        update("rejected", 1.0)
    update("", 1.0)
    for _ in range(10):
        update("rejected", 1.0)
    assert [line.split(" ")[0] for line in lines] == ["no", "rejected", "rejected"]


@pytest.mark.parametrize(("statuses", "expected"), [
    (["lost", "lost", "blurred"], "lost"), (["lost", "accepted"], None), ([], None), (["replaced"], None)])
def test_the_commonest_reason_counts_while_nothing_is_accepted(statuses, expected):
    from aceg_ros.ros.localizer.results import LocalizationResult
    from aceg_ros.ros.localizer.status import SlidingWindow

    window = SlidingWindow()
    for number, status in enumerate(statuses):
        window.add_result(LocalizationResult(number=number, header=Header(), status=status, message=f"It is {status}."),
                          1.0)
    found = window.commonest_rejection()
    assert (found and found[0]) == expected
    if expected:
        assert "2 of 3" in found[1] and found[1].endswith("It is lost.")
