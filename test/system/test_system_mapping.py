# SPDX-License-Identifier: Apache-2.0
"""The whole story over real topics: a robot with drifting odometry maps a scene by service and is localized in it."""

import numpy as np
from robot import Observer
from ros_graph import output, stop

CAMERA, LOCALIZER = "aceg_ros.ros.sim_camera", "aceg_ros.ros.localizer_node"
ROBOT = {"odom_frame": "odom", "base_frame": "base_link"}
FROM_TRUTH = "mapping_pose:=/camera/ground_truth"       # stands for the surveying system that knows poses in the map


def drive(graph, name, **parameters):
    return graph.start(name, "__node:=camera", odometry=True, start_delay=0.0, **parameters)


def test_simulated_robot(graph):
    """Two runs: 3.7 cm, 0.6 deg."""
    camera = drive(graph, CAMERA, loop=True, path="mapping", prerender=True, frames=100, rate=5.0)
    localizer = graph.start(LOCALIZER, FROM_TRUTH, **ROBOT, mapping_pose_source="pose", mapping_budget=60.0)
    seen = Observer(graph)
    assert graph.spin_until(lambda: len(seen.truth) > 3, 120), output(camera)
    assert "Collecting" in seen.call("start_mapping")
    graph.spin(20.0)
    assert not seen.poses and not seen.map_from_odom, "nothing before there is a map"
    assert "Started to train" in seen.call("stop_mapping")
    mapped_s = seen.wait_until_mapped()
    assert graph.spin_until(lambda: bool(seen.poses), 5.0), "localizing within 5 s of the new map"
    assert min(seen.pose_moments_s.values()) > mapped_s - 5.0
    graph.spin(25.0)
    progress = [values for _, _, values in seen.mapping if "progress" in values]
    assert len(progress) > 3 and {"stage", "remaining_s", "reprojection_px"} <= set(progress[-1])
    assert any(cloud.width > 1000 for cloud in seen.clouds)
    assert len(seen.poses) > 100
    translation_m, rotation_deg = np.percentile(seen.map_from_odom_errors(), 95, axis=0)
    print(f"map -> odom, 95 %: {100 * translation_m:.1f} cm, {rotation_deg:.2f} deg")
    assert translation_m < 0.10 and rotation_deg < 2.0
    assert np.median(seen.base_errors(), axis=0)[0] < 0.03
    assert stop(localizer) == 0 and "Traceback" not in output(localizer), output(localizer)
    assert stop(camera) == 0


def test_real_images(graph, shared_scenes):
    """The mapping part of RedKitchen is the first drive, the query part the second. Two runs: 1.7-1.9 cm, 0.7 deg."""
    kitchen = shared_scenes / "redkitchen7s"
    localizer = graph.start(LOCALIZER, FROM_TRUTH, **ROBOT, mapping_pose_source="pose", mapping_min_distance=0.05,
                            mapping_min_angle=4.0)
    seen = Observer(graph)
    camera = drive(graph, "aceg_ros.ros.scene_player", scene=str(kitchen / "mapping"), rate=10.0)
    assert graph.spin_until(lambda: len(seen.truth) > 0, 60), output(camera)
    seen.call("start_mapping")
    assert graph.spin_until(lambda: camera.poll() is not None, 200)
    seen.call("stop_mapping")
    seen.wait_until_mapped()
    seen.truth.clear()
    seen.odometry.clear()
    camera = drive(graph, "aceg_ros.ros.scene_player", scene=str(kitchen / "query"), rate=8.0)
    assert graph.spin_until(lambda: camera.poll() is not None, 200)
    assert len(seen.poses) >= 0.9 * len(seen.truth)
    translation_m, rotation_deg = np.percentile(seen.map_from_odom_errors(), 95, axis=0)
    print(f"map -> odom, 95 %: {100 * translation_m:.1f} cm, {rotation_deg:.2f} deg")
    assert translation_m < 0.10 and rotation_deg < 2.0
    assert stop(localizer) == 0 and "Traceback" not in output(localizer), output(localizer)


