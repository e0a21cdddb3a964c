# SPDX-License-Identifier: Apache-2.0
"""The localizer node as a process, over real topics, with a localizer whose results are known."""

import signal

import numpy as np
import pytest
from fake_localizer_node import FakeLocalizer
from node_bench import CAMERA, FAKE_NODE, good_info, noise_image, write_map
from ros_graph import output, stop

from aceg_ros.camera import Camera, Frame
from aceg_ros.ros.common.messages import image_message, info_message
from aceg_ros.utils.stamps import stamp_to_ns


def zero_k(image, info):
    info.k = np.zeros(9)
    return "bad_camera", "zero K"


def not_finite_k(image, info):
    info.k[0] = float("nan")
    return "bad_camera", "not usable"


def unknown_model(image, info):
    info.distortion_model = "kannala"
    info.d = [0.1, 0.1]
    return "bad_camera", "kannala"


def info_of_another_size(image, info):
    info.width = 128
    return "bad_camera", "64x48"


def unknown_encoding(image, info):
    image.encoding = "jpeg2000"
    return "bad_image", "jpeg2000"


def depth_as_image(image, info):
    image.encoding, image.step = "32FC1", 4 * 16
    return "bad_image", "32FC1"


def truncated(image, info):
    image.data = image.data[:-1]
    return "bad_image", "truncated"


def empty(image, info):
    image.width = image.height = image.step = 0
    image.data = []
    return "bad_image", "empty"


def step_too_small(image, info):
    image.step = 100
    return "bad_image", "step"


def too_large_to_be_true(image, info):
    image.width, image.height, image.step = 1_000_000_000, 4_000_000_000, 3_000_000_000
    return "bad_image", "truncated"


BAD_INPUTS = [zero_k, not_finite_k, unknown_model, info_of_another_size, unknown_encoding, depth_as_image, truncated,
              empty, step_too_small, too_large_to_be_true]


def test_bad_input_is_rejected_with_a_reason_and_good_input_recovers(start_bench, map_file):
    bench, process = start_bench(map_path=str(map_file))
    for index, spoil in enumerate(BAD_INPUTS):
        image, info = image_message(noise_image(index), bench.header()), good_info()
        expected, word = spoil(image, info)
        status, values = bench.localize(image, info)
        assert values["status"] == expected, spoil.__name__
        assert word in status.message and status.message.endswith("."), status.message
        assert status.level == status.WARN
        assert not bench.poses and not bench.transforms

        good = image_message(noise_image(index), bench.header())
        status, values = bench.localize(good, good_info())
        assert values["status"] == "accepted", spoil.__name__
        assert bench.poses.pop(stamp_to_ns(good.header.stamp))
        bench.transforms.clear()
    assert values["received"] == str(2 * len(BAD_INPUTS))
    assert values["accepted"] == values["refused"] == str(len(BAD_INPUTS))
    assert values["refused.bad_camera"] == "4" and values["refused.bad_image"] == "6"
    assert process.poll() is None


def test_nothing_to_work_with_yet(start_bench, map_file):
    """No map, no camera_info: said so for every image and in the node's own status, until both are there."""
    bench, _ = start_bench()
    status, values = bench.localize(image_message(noise_image(0), bench.header()))
    assert values["status"] == "no_map" and "map_path" in status.message and status.level == status.ERROR
    assert bench.node_statuses[-1][0].level == status.ERROR and "map_path" in bench.node_statuses[-1][0].message

    assert bench.graph.set_parameter("localizer", "map_path", str(map_file)) == (True, "")
    assert bench.graph.spin_until(lambda: bench.node_statuses[-1][1]["map"] == str(map_file))
    status, values = bench.localize(image_message(noise_image(0), bench.header()))
    assert values["status"] == "bad_camera" and "camera_info" in status.message
    assert not bench.poses and not bench.transforms

    status, values = bench.localize(image_message(noise_image(0), bench.header()), good_info())
    assert values["status"] == "accepted"


def test_pose_and_transform_are_the_localizers(start_bench, map_file):
    bench, _ = start_bench(map_path=str(map_file), map_frame="hall", transform_tolerance=0.0)
    rgb = noise_image(3)
    image = image_message(rgb, bench.header())
    status, values = bench.localize(image, good_info())
    expected = FakeLocalizer(1.0).localize(Frame(image=rgb, camera=CAMERA))

    (message,) = bench.poses[stamp_to_ns(image.header.stamp)]
    assert message.header.frame_id == "hall" and message.header.stamp == image.header.stamp
    position, q = message.pose.pose.position, message.pose.pose.orientation
    x, y, z, w = q.x, q.y, q.z, q.w
    rotation = np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                         [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                         [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]])
    np.testing.assert_allclose([position.x, position.y, position.z], expected.map_from_camera[:3, 3], atol=1e-12)
    np.testing.assert_allclose(rotation, expected.map_from_camera[:3, :3], atol=1e-12)
    np.testing.assert_array_equal(np.reshape(message.pose.covariance, (6, 6)), expected.covariance)

    assert bench.graph.spin_until(lambda: bool(bench.transforms))
    (transform,) = bench.transforms
    assert (transform.header.frame_id, transform.child_frame_id) == ("hall", "cam")
    assert transform.header.stamp == image.header.stamp
    t = transform.transform.translation
    assert (t.x, t.y, t.z) == (position.x, position.y, position.z) and transform.transform.rotation == q

    assert status.level == status.OK and status.hardware_id == "cam"
    assert values["inliers"] == "321" and values["stage_ms.solve"] == "1.0" and float(values["age_ms"]) > 0


def test_a_rejection_publishes_no_pose_and_a_fault_does_not_end_the_node(start_bench, map_file):
    bench, process = start_bench(map_path=str(map_file))
    status, values = bench.localize(image_message(np.zeros((48, 64, 3), np.uint8), bench.header()), good_info())
    assert (values["status"], status.message) == ("no_consensus", "It is too dark.")
    red = np.zeros((48, 64, 3), np.uint8)
    red[..., 0] = 255
    status, values = bench.localize(image_message(red, bench.header()), good_info())
    assert values["status"] == "internal_error" and "no localizer should have" in status.message
    assert not bench.poses and not bench.transforms
    _, values = bench.localize(image_message(noise_image(0), bench.header()), good_info())
    assert values["status"] == "accepted"
    assert process.poll() is None


def test_tf_can_be_switched_off_and_the_camera_named(start_bench, map_file):
    bench, _ = start_bench(map_path=str(map_file), camera_frame="lens")
    bench.localize(image_message(noise_image(0), bench.header()), good_info())
    assert [t.child_frame_id for t in bench.transforms] == ["lens"]
    assert bench.graph.set_parameter("localizer", "tf_policy", "none")[0]
    bench.localize(image_message(noise_image(0), bench.header()), good_info())
    assert len(bench.transforms) == 1 and len(bench.poses) == 2


def test_every_image_is_accounted_for_when_they_come_too_fast(start_bench, tmp_path):
    slow = tmp_path / "slow.map"
    write_map(slow, offset_m=0.0, delay_s=0.1)
    # Deeper than the default: while other tests run, images would be lost before the node sees them.
    bench, _ = start_bench(map_path=str(slow), **{"qos_overrides./image.subscription.depth": 100})
    bench.localize(image_message(noise_image(0), bench.header()), good_info())
    stamps = []
    for index in range(60):
        image = image_message(noise_image(index), bench.header())
        stamps.append(stamp_to_ns(image.header.stamp))
        bench.image.publish(image)
        bench.graph.spin(0.02)
    assert bench.graph.spin_until(lambda: all(stamp in bench.statuses for stamp in stamps))
    outcomes = [[values["status"] for _, values in bench.statuses[stamp]] for stamp in stamps]
    assert all(len(outcome) == 1 for outcome in outcomes)
    assert outcomes[-1] == ["accepted"], "the newest image is never the one to be dropped"
    replaced = outcomes.count(["replaced"])
    assert 0 < replaced < 60
    accepted = {stamp for stamp, outcome in zip(stamps, outcomes, strict=True) if outcome == ["accepted"]}
    assert {stamp for stamp in stamps if stamp in bench.poses} == accepted
    values = max((values for ((_, values),) in bench.statuses.values()), key=lambda v: int(v["answered"]))
    assert values["received"] == "61" and values["replaced"] == str(replaced)
    assert values["answered"] == values["accepted"] == str(61 - replaced)


def test_the_camera_info_of_the_image_is_used_where_cameras_zoom(start_bench, map_file):
    bench, _ = start_bench(map_path=str(map_file))
    images = [image_message(noise_image(0), bench.header()) for _ in range(3)]
    for index, image in enumerate(images):
        info = info_message(Camera(width=64, height=48, fx=60.0 + index, fy=60.0, cx=31.5, cy=23.5), image.header)
        bench.info.publish(info)
    bench.graph.spin(0.5)
    for image in images:
        bench.localize(image)
    heights = [bench.poses[stamp_to_ns(image.header.stamp)][0].pose.pose.position.z for image in images]
    assert heights == [60.0, 61.0, 62.0]


def test_maps_are_switched_at_run_time_and_a_bad_one_changes_nothing(start_bench, map_file, tmp_path):
    bench, _ = start_bench(map_path=str(map_file))
    before = bench.position()
    successful, reason = bench.graph.set_parameter("localizer", "map_path", str(tmp_path / "none.map"))
    assert not successful and "none.map" in reason

    damaged = tmp_path / "damaged.map"
    damaged.write_text("{")
    assert bench.graph.set_parameter("localizer", "map_path", str(damaged))[0]
    assert bench.graph.spin_until(lambda: "damaged" in bench.node_statuses[-1][0].message)
    status, values = bench.node_statuses[-1]
    assert status.level == status.WARN and values["map"] == str(map_file)
    assert bench.position() == before

    other = tmp_path / "other.map"
    write_map(other, offset_m=501.0)
    assert bench.graph.set_parameter("localizer", "map_path", str(other))[0]
    assert bench.graph.spin_until(lambda: bench.node_statuses[-1][1]["map"] == str(other))
    assert bench.position() == pytest.approx(before + 500.0)


def test_a_damaged_map_at_start_up_is_reported_and_can_be_replaced(start_bench, map_file, tmp_path):
    damaged = tmp_path / "damaged.map"
    damaged.write_text("{")
    bench, _ = start_bench(map_path=str(damaged))
    status, values = bench.localize(image_message(noise_image(0), bench.header()), good_info())
    assert values["status"] == "no_map" and "damaged.map is damaged" in status.message
    assert bench.graph.set_parameter("localizer", "map_path", str(map_file))[0]
    assert bench.graph.spin_until(lambda: bench.node_statuses[-1][1]["map"] == str(map_file))
    assert bench.localize(image_message(noise_image(0), bench.header()), good_info())[1]["status"] == "accepted"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_clean_exit_in_the_middle_of_work(start_bench, tmp_path, number):
    slow = tmp_path / "slow.map"
    write_map(slow, offset_m=0.0, delay_s=0.5)
    bench, process = start_bench(map_path=str(slow))
    bench.info.publish(good_info())
    for index in range(3):
        bench.image.publish(image_message(noise_image(index), bench.header()))
        bench.graph.spin(0.1)
    assert stop(process, number) == 0
    assert "Traceback" not in output(process) and "rror" not in output(process)


@pytest.mark.parametrize(("name", "value", "word"), [("device", "abacus", "abacus"), ("map_frame", "", "map_frame"),
                                                     ("seed", -1, "seed"), ("tf_policy", "map_to_moon", "map_to_moon")])
def test_bad_parameter_at_start_up_is_one_sentence(graph, name, value, word):
    process = graph.start(FAKE_NODE, **{name: value})
    assert process.wait(60) == 2
    errors = [line for line in output(process).splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1 and word in errors[0] and "Traceback" not in output(process)


def test_parameters_that_cannot_change_while_running(start_bench, map_file):
    bench, _ = start_bench(map_path=str(map_file))
    successful, reason = bench.graph.set_parameter("localizer", "map_frame", "elsewhere")
    assert not successful and reason
