# SPDX-License-Identifier: Apache-2.0
"""sensor_msgs_py.point_cloud2 as the nodes use it. Runs on the real package as well."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sensor_msgs_py", reason="needs ROS 2")

from sensor_msgs.msg import PointField
from sensor_msgs_py import point_cloud2
from std_msgs.msg import Header

POINTS = np.random.default_rng(0).normal(size=(10, 3)).astype(np.float32)


def test_xyz_round_trip():
    cloud = point_cloud2.create_cloud_xyz32(Header(frame_id="map"), POINTS)
    assert (cloud.header.frame_id, cloud.height, cloud.width, cloud.point_step) == ("map", 1, 10, 12)
    assert [field.name for field in cloud.fields] == ["x", "y", "z"]
    assert len(cloud.data) == cloud.row_step == 120
    np.testing.assert_array_equal(point_cloud2.read_points_numpy(cloud), POINTS)
    np.testing.assert_array_equal(point_cloud2.read_points(cloud, ["y"])["y"], POINTS[:, 1])


def test_coloured_cloud_from_structured_points():
    fields = [PointField(name=name, offset=4 * i, datatype=PointField.FLOAT32, count=1) for i, name in enumerate("xyz")]
    fields.append(PointField(name="rgb", offset=16, datatype=PointField.UINT32, count=1))
    points = np.zeros(10, point_cloud2.dtype_from_fields(fields))
    for i, name in enumerate("xyz"):
        points[name] = POINTS[:, i]
    points["rgb"] = np.arange(10) << 16
    cloud = point_cloud2.create_cloud(Header(), fields, points)
    assert cloud.point_step == points.itemsize == 20
    read = point_cloud2.read_points(cloud)
    np.testing.assert_array_equal(read["rgb"], points["rgb"])
    np.testing.assert_array_equal(point_cloud2.read_points_numpy(cloud, ["x", "y", "z"]), POINTS)


def test_rows_of_numbers_and_missing_points():
    fields = [PointField(name=name, offset=8 * i, datatype=PointField.FLOAT64, count=1) for i, name in enumerate("xyz")]
    cloud = point_cloud2.create_cloud(Header(), fields, [(1.0, 2.0, 3.0), (4.0, float("nan"), 6.0)])
    assert point_cloud2.read_points_numpy(cloud).shape == (2, 3)
    np.testing.assert_array_equal(point_cloud2.read_points_numpy(cloud, skip_nans=True), [[1.0, 2.0, 3.0]])


def test_empty_cloud():
    cloud = point_cloud2.create_cloud_xyz32(Header(), np.zeros((0, 3), np.float32))
    assert cloud.width == 0 and len(point_cloud2.read_points(cloud)) == 0
