# SPDX-License-Identifier: Apache-2.0
"""Services, lifecycle and inputs of the localizer node, over real topics, with a localizer whose results are known."""

import time

import numpy as np
import pytest
import yaml
from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import PoseWithCovarianceStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from node_bench import CAMERA, FAKE_NODE, good_info, noise_image, write_map
from rcl_interfaces.srv import ListParameters
from rclpy.qos import qos_profile_sensor_data
from ros_graph import output, stop
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header
from std_srvs.srv import SetBool, Trigger

from aceg_ros.ros.common.messages import compressed_message, image_message, info_message
from aceg_ros.utils.stamps import stamp_to_ns

# --- lifecycle ---


def change(bench, transition):
    request = ChangeState.Request(transition=Transition(id=transition))
    return bench.graph.call(ChangeState, "/localizer/change_state", request).success


def state(bench):
    return bench.graph.call(GetState, "/localizer/get_state").current_state.label


def test_a_lifecycle_manager_has_its_way(start_bench, map_file, tmp_path):
    """As Nav2 does it: every transition, twice; nothing is heard but while the node is active."""
    bench, process = start_bench(wait=False, autostart=False, map_path=str(tmp_path / "missing.map"))
    assert state(bench) == "unconfigured" and bench.image.get_subscription_count() == 0
    status = bench.node_statuses[-1][0]
    assert status.level == DiagnosticStatus.WARN and "unconfigured" in status.message
    success, message = bench.call("start_mapping")
    assert not success and "unconfigured" in message and "ros2 lifecycle set" in message
    assert not change(bench, Transition.TRANSITION_CONFIGURE), "a map that is not there is a failure"
    assert state(bench) == "unconfigured"

    assert bench.graph.set_parameter("localizer", "map_path", str(map_file))[0]
    for _ in range(2):
        assert change(bench, Transition.TRANSITION_CONFIGURE) and state(bench) == "inactive"
        assert bench.image.get_subscription_count() == 0
        assert change(bench, Transition.TRANSITION_ACTIVATE)
        assert bench.graph.spin_until(bench.connected)
        assert bench.position() > 0
        assert change(bench, Transition.TRANSITION_DEACTIVATE) and state(bench) == "inactive"
        assert bench.graph.spin_until(lambda: bench.image.get_subscription_count() == 0)
        assert change(bench, Transition.TRANSITION_CLEANUP) and state(bench) == "unconfigured"
    assert change(bench, Transition.TRANSITION_UNCONFIGURED_SHUTDOWN) and state(bench) == "finalized"
    assert stop(process) == 0 and "rror" not in output(process).replace("[ERROR]", "", 1), output(process)


# --- services ---


def test_maps_are_loaded_and_saved_and_nothing_is_lost(start_bench, map_file, tmp_path):
    bench, _ = start_bench()
    assert bench.call("load_map") == (False, "Set the parameter map_path to the map first.")
    assert bench.call("save_map") == (False, "There is no map to save.")
    assert bench.graph.set_parameter("localizer", "map_path", str(map_file))[0]
    assert bench.call("load_map") == (True, f"Localizing in {map_file}.")
    before = bench.position()

    write_map(map_file, offset_m=11.0)          # made anew under the same name: load_map reads it again
    assert bench.call("load_map")[0] and bench.position() == pytest.approx(before + 10)
    map_file.write_text("{")
    success, message = bench.call("load_map")
    assert not success and "damaged" in message and "stays in use" in message
    assert bench.position() == pytest.approx(before + 10)
    write_map(map_file, offset_m=11.0)

    success, message = bench.call("save_map")
    assert not success and "save_path" in message
    target = tmp_path / "new" / "lab.map"
    assert bench.graph.set_parameter("localizer", "save_path", str(target))[0]
    assert bench.call("save_map")[0] and target.read_bytes() == map_file.read_bytes()
    target.write_text("precious")
    success, message = bench.call("save_map")
    backups = [path for path in target.parent.iterdir() if path != target]
    assert success and [path.read_text() for path in backups] == ["precious"] and str(backups[0]) in message
    assert target.read_bytes() == map_file.read_bytes()

    assert bench.graph.set_parameter("localizer", "save_path", str(tmp_path))[0]
    success, message = bench.call("save_map")
    assert not success and "folder" in message
    assert bench.graph.set_parameter("localizer", "save_path", str(map_file / "below_a_file"))[0]
    success, message = bench.call("save_map")
    assert not success and "cannot be saved" in message


def test_localization_on_demand(start_bench, map_file):
    bench, _ = start_bench(map_path=str(map_file))
    response = bench.graph.call(SetBool, "/localizer/enable", SetBool.Request(data=False))
    assert response.success and "off" in response.message
    bench.info.publish(good_info())
    for _ in range(3):
        bench.image.publish(image_message(noise_image(1), bench.header()))
        bench.graph.spin(0.1)
    assert not bench.poses and not bench.statuses
    assert bench.graph.spin_until(lambda: "off" in bench.node_statuses[-1][0].message)
    assert bench.node_statuses[-1][1]["skipped"] == "3"

    timer = bench.graph.node.create_timer(0.1, lambda: bench.image.publish(
        image_message(noise_image(1), bench.header())))
    success, message = bench.call("trigger_localization")
    assert success and message.startswith("The camera is at x ") and len(bench.poses) == 1
    timer.cancel()
    dark = bench.graph.node.create_timer(0.1, lambda: bench.image.publish(
        image_message(np.zeros((48, 64, 3), np.uint8), bench.header())))
    assert bench.call("trigger_localization") == (False, "no_consensus: It is too dark.")
    dark.cancel()
    assert bench.graph.call(SetBool, "/localizer/enable", SetBool.Request(data=True)).success
    bench.graph.spin(0.3)
    bench.position()


def test_a_service_that_waits_keeps_nothing_waiting(start_bench, map_file, tmp_path):
    """While a map is loaded for seconds, images are localized and other services answer."""
    bench, _ = start_bench(map_path=str(map_file))
    bench.position()
    slow = write_map(tmp_path / "slow.map", load_s=4.0, offset_m=3.0)
    assert bench.graph.set_parameter("localizer", "map_path", str(slow))[0]
    client = bench.graph.node.create_client(Trigger, "/localizer/load_map")
    assert bench.graph.spin_until(client.service_is_ready)
    loading = client.call_async(Trigger.Request())
    for _ in range(5):
        bench.position()
        assert bench.call("reset")[0]
    assert not loading.done()
    assert bench.graph.spin_until(loading.done) and loading.result().success


def test_mapping_services_say_why_not(start_bench, map_file):
    bench, _ = start_bench(map_path=str(map_file), tf_timeout=0.1, mapping_pose_timeout=0.1)
    assert bench.call("stop_mapping") == (False, "No keyframes are being collected: call ~/start_mapping first.")
    assert bench.call("cancel_mapping") == (False, "Nothing is being mapped.")
    success, message = bench.call("start_mapping")
    assert success and "recordings" in message
    assert not bench.call("start_mapping")[0]
    bench.localize(image_message(noise_image(0), bench.header()), good_info())       # TF does not know the camera
    bench.graph.spin(0.5)
    success, message = bench.call("stop_mapping")
    assert not success and "0 keyframes" in message and "TF has no map -> cam" in message
    assert bench.call("cancel_mapping")[0]


# --- inputs and outputs ---


def test_compressed_images(start_bench, map_file):
    bench, _ = start_bench(wait=False, map_path=str(map_file), image_transport="compressed")
    publisher = bench.graph.node.create_publisher(CompressedImage, "image/compressed", qos_profile_sensor_data)
    assert bench.graph.spin_until(lambda: publisher.get_subscription_count() > 0)
    assert bench.image.get_subscription_count() == 0
    bench.info.publish(good_info())
    bench.graph.spin(0.2)
    rgb = np.full((48, 64, 3), (200, 100, 50), np.uint8)
    message = compressed_message(rgb, bench.header())
    key = stamp_to_ns(message.header.stamp)
    publisher.publish(message)
    assert bench.graph.spin_until(lambda: key in bench.poses)
    assert tuple(bench.pose(key)[:2, 3]) == pytest.approx((201, 100), abs=2), "red stays red"
    for data in (b"", b"no image", bytes(message.data[: len(message.data) // 2])):
        broken = CompressedImage(header=bench.header(), format="jpeg", data=data)
        publisher.publish(broken)
        assert bench.graph.spin_until(lambda broken=broken: stamp_to_ns(broken.header.stamp) in bench.statuses)
    kinds = [values["status"] for ((_, values),) in bench.statuses.values()]
    assert kinds[:3] == ["accepted", "bad_image", "bad_image"]


def test_the_rate_can_be_limited(start_bench, map_file):
    bench, _ = start_bench(map_path=str(map_file), max_rate=5.0)
    bench.info.publish(good_info())
    started = time.monotonic()
    for _ in range(60):
        bench.image.publish(image_message(noise_image(1), bench.header()))
        bench.graph.spin(0.05)
    assert 10 <= len(bench.poses) <= 5.0 * (time.monotonic() - started) + 2       # a busy machine takes longer than 3 s
    assert bench.graph.spin_until(lambda: bench.node_statuses[-1][1]["received"] == "60")
    values = bench.node_statuses[-1][1]
    assert int(values["skipped"]) + int(values["answered"]) + int(values["replaced"]) == 60


@pytest.mark.parametrize("name", ["left", "right"])
def test_several_cameras_by_namespace(graph, map_file, name):
    for namespace in ("left", "right"):
        graph.start(FAKE_NODE, f"__ns:=/{namespace}", map_path=str(map_file))
    image = graph.node.create_publisher(Image, f"/{name}/image", qos_profile_sensor_data)
    info = graph.node.create_publisher(CameraInfo, f"/{name}/camera_info", qos_profile_sensor_data)
    heard, of_the_other = [], []
    graph.node.create_subscription(PoseWithCovarianceStamped, f"/{name}/localizer/pose", heard.append, 10)
    other = {"left": "right", "right": "left"}[name]
    graph.node.create_subscription(PoseWithCovarianceStamped, f"/{other}/localizer/pose", of_the_other.append, 10)
    assert graph.spin_until(lambda: image.get_subscription_count() and info.get_subscription_count()
                            and graph.node.count_publishers(f"/{name}/localizer/pose"))
    for second in range(1, 60):         # best effort: the first ones may be too early
        header = Header(stamp=Time(sec=second), frame_id="cam")
        info.publish(info_message(CAMERA, header))
        image.publish(image_message(noise_image(0), header))
        if graph.spin_until(lambda: bool(heard), 0.5):
            break
    assert heard and not of_the_other, "only this camera's node has something to say"


def test_the_debug_image_is_drawn_for_who_looks(start_bench, map_file):
    bench, _ = start_bench(map_path=str(map_file))
    bench.position()
    seen = []
    bench.graph.node.create_subscription(Image, "/localizer/debug_image", seen.append, qos_profile_sensor_data)
    assert bench.graph.spin_until(lambda: bench.graph.node.count_subscribers("/localizer/debug_image") > 0)
    bench.graph.spin(0.3)
    for kind in (noise_image(2), np.zeros((48, 64, 3), np.uint8)):
        image = image_message(kind, bench.header())
        bench.localize(image, good_info())
        assert bench.graph.spin_until(lambda: bool(seen))
        drawn = seen.pop()
        assert (drawn.width, drawn.height, drawn.encoding) == (64, 48, "rgb8")
        assert drawn.header.stamp == image.header.stamp


def test_diagnostics_say_what_a_robot_team_asks(start_bench, map_file):
    bench, _ = start_bench(map_path=str(map_file))
    heard = []
    bench.graph.node.create_subscription(DiagnosticArray, "/diagnostics", heard.append, 10)
    for _ in range(10):
        bench.position()
    heard.clear()
    assert bench.graph.spin_until(lambda: len(heard) > 1)
    node, mapping = heard[-1].status
    values = {pair.key: pair.value for pair in node.values}
    assert node.name == "localizer: node" and node.level == node.OK and mapping.name == "localizer: mapping"
    assert values["lifecycle"] == "active" and values["map"] == str(map_file) and values["device"] in ("auto", "cpu")
    assert values["accepted"] == values["received"] == "10" and values["replaced"] == "0"
    assert float(values["image_rate_hz"]) > 0 and float(values["stage_ms.all"]) > 0
    assert "input_age_s" in values and "age_ms.p95" in values


def test_image_quality_of_service_can_be_overridden(start_bench, map_file):
    bench, _ = start_bench(wait=False, map_path=str(map_file),
                     **{"qos_overrides./image.subscription.reliability": "reliable"})
    assert bench.graph.spin_until(lambda: bench.node_statuses[-1][1]["lifecycle"] == "active")
    (subscriber,) = bench.graph.node.get_subscriptions_info_by_topic("/image")
    assert subscriber.qos_profile.reliability.name == "RELIABLE"


def test_the_parameter_file_names_every_parameter_with_its_default(start_bench, repository):
    bench, _ = start_bench(wait=False)
    content = yaml.safe_load((repository / "config" / "localizer.yaml").read_text())["/**"]["ros__parameters"]
    response = bench.graph.call(ListParameters, "/localizer/list_parameters")
    declared = {name for name in response.result.names
                if not name.startswith(("qos_overrides", "use_sim_time", "start_type_description_service"))}
    assert declared == set(content)
    for name, value in content.items():
        assert bench.graph.get_parameter("localizer", name) == value, name
