# SPDX-License-Identifier: Apache-2.0
"""Ten thousand messages that no camera should send: no crash, no pose, and as good as before afterwards."""

import numpy as np
from node_bench import Bench
from ros_graph import output, stop

from aceg_ros.datasets import open_scene
from aceg_ros.ros.common.messages import image_message, info_message
from aceg_ros.ros.evaluation.hostile_benchmark import hostile_pair
from aceg_ros.utils.stamps import stamp_to_ns

MESSAGES = 10_000


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
        info, image = hostile_pair(rng, good, index)
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
