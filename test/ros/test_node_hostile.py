"""Ten thousand messages that no camera should send: no crash, no pose, and as good as before afterwards."""

import struct

import numpy as np
from builtin_interfaces.msg import Time
from node_bench import Bench
from ros_graph import output, stop
from sensor_msgs.msg import CameraInfo, Image

from aceg_ros.datasets import open_scene
from aceg_ros.ros.common.messages import image_message, info_message
from aceg_ros.utils.stamps import stamp_to_ns

MESSAGES = 10_000
ENCODINGS = ("rgb8", "bgr8", "mono8", "mono16", "rgba8", "bgra8", "yuv422", "yuv422_yuy2", "bayer_rggb8",
             "bayer_gbrg16", "32FC1", "16UC1", "8UC3", "64FC4", "", "jpeg", "rgb8; compressed", "\N{SNOWMAN}8",
             "8UC9999999999", "nv12")
MODELS = ("plumb_bob", "rational_polynomial", "equidistant", "", "kannala", "PLUMB_BOB", "fisheye\n")


def hostile_number(rng) -> float:
    """Anything that eight bytes can be, and the worst of it often."""
    if rng.random() < 0.5:
        return float(rng.choice([0.0, -1.0, np.nan, np.inf, -np.inf, 1e308, -1e-308, 5e-324, 500.0]))
    return struct.unpack("d", rng.bytes(8))[0]


def hostile_info(rng, good: CameraInfo) -> CameraInfo:
    info = CameraInfo(width=good.width, height=good.height, distortion_model=str(rng.choice(MODELS)))
    info.d = [hostile_number(rng) for _ in range(rng.integers(0, 15))]
    info.k = [hostile_number(rng) for _ in range(9)] if rng.random() < 0.6 else good.k
    info.p = [hostile_number(rng) for _ in range(12)]
    if rng.random() < 0.3:
        info.width, info.height = (int(v) for v in rng.choice([0, 1, 64, 4_294_967_295], 2))
    if rng.random() < 0.3:
        info.binning_x, info.binning_y = (int(v) for v in rng.choice([0, 1, 2, 4_294_967_295], 2))
    if rng.random() < 0.3:
        info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height = (
            int(v) for v in rng.choice([0, 1, 7, 64, 4_294_967_295], 4))
    return info


def hostile_image(rng) -> Image:
    image = Image(encoding=str(rng.choice(ENCODINGS)), is_bigendian=int(rng.integers(0, 2)))
    image.height, image.width = (int(v) for v in rng.choice([0, 1, 2, 47, 48, 64, 4_294_967_295], 2))
    image.step = int(rng.choice([0, 1, 64, 128, 192, 256, 4_294_967_295]))
    image.data = rng.bytes(int(rng.choice([0, 1, 64 * 48, 64 * 48 * 2, 64 * 48 * 3, 64 * 48 * 4])))
    if rng.random() < 0.3:        # an honest shape with noise in it
        image.height, image.width, image.step, image.encoding = 48, 64, 192, "rgb8"
        image.data = rng.bytes(64 * 48 * 3)
    return image


def test_ten_thousand(graph, rendered_map, rendered_scene):
    process = graph.start("aceg_ros.ros.localizer_node", map_path=str(rendered_map))
    bench = Bench(graph)
    assert graph.spin_until(lambda: "Localizing in" in output(process) and bench.connected()), output(process)
    frame = next(iter(open_scene(rendered_scene / "query")))
    good = info_message(frame.camera, bench.header())

    def localized() -> np.ndarray:
        image = image_message(frame.image, bench.header())
        assert bench.localize(image, good)[1]["status"] == "accepted"
        position = bench.poses.pop(stamp_to_ns(image.header.stamp))[0].pose.pose.position
        return np.array([position.x, position.y, position.z])

    before = localized()
    bench.graph.spin(0.2)
    bench.transforms.clear()
    rng = np.random.default_rng(0)
    for index in range(MESSAGES):
        stamp = Time(sec=int(rng.choice([0, 1000 + index, 2**31 - 1, -(2**31)])), nanosec=index)
        info, image = hostile_info(rng, good), hostile_image(rng)
        info.header.stamp = image.header.stamp = stamp
        info.header.frame_id = image.header.frame_id = str(rng.choice(["cam", "", "/", "a" * 1000, "\N{SNOWMAN}"]))
        bench.info.publish(info)
        bench.image.publish(image)
        if index % 4 == 0:
            count = len(bench.statuses)
            graph.spin_until(lambda count=count: len(bench.statuses) > count, 1.0)
            assert process.poll() is None, output(process)
    graph.spin(2.0)
    assert not bench.poses and not bench.transforms
    assert len(bench.statuses) > 0.9 * MESSAGES / 4
    statuses = {values["status"] for ((_, values), *_) in bench.statuses.values()}
    assert {"bad_image", "bad_camera", "bad_stamp"} <= statuses and "internal_error" not in statuses, statuses
    np.testing.assert_allclose(localized(), before, atol=1e-9)
    assert stop(process) == 0 and "Traceback" not in output(process), output(process)
