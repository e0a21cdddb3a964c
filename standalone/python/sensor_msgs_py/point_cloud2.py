# SPDX-License-Identifier: Apache-2.0
"""PointCloud2 messages <-> numpy."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Header

_DTYPES = {PointField.INT8: "i1", PointField.UINT8: "u1", PointField.INT16: "i2", PointField.UINT16: "u2",
           PointField.INT32: "i4", PointField.UINT32: "u4", PointField.FLOAT32: "f4", PointField.FLOAT64: "f8"}


def dtype_from_fields(fields: Iterable[PointField], point_step: int | None = None,
                      big_endian: bool = False) -> np.dtype:
    """The structured type of one point. Fields of count > 1 become name_0, name_1, ... as in ROS."""
    names, formats, offsets = [], [], []
    for entry in fields:
        form = np.dtype((">" if big_endian else "<") + _DTYPES[entry.datatype])
        for index in range(entry.count):
            names.append(f"{entry.name}_{index}" if entry.count > 1 else entry.name)
            formats.append(form)
            offsets.append(entry.offset + index * form.itemsize)
    layout = {"names": names, "formats": formats, "offsets": offsets}
    if point_step is not None:
        layout["itemsize"] = point_step
    return np.dtype(layout)


def create_cloud(header: Header, fields: Sequence[PointField], points: np.ndarray | Iterable,
                 step: int | None = None) -> PointCloud2:
    """points: structured, or (N, fields) of numbers, or any iterable of rows."""
    dtype = dtype_from_fields(fields, step)
    points = np.asarray(points if isinstance(points, np.ndarray) else list(points))
    if points.dtype.names is None:
        rows = points.reshape(-1, len(dtype.names))
        packed = np.zeros(len(rows), dtype)
        for column, name in enumerate(dtype.names):
            packed[name] = rows[:, column]
    else:
        packed = points.astype(dtype)
    height, width = packed.shape if packed.ndim == 2 else (1, packed.size)
    message = PointCloud2(header=header, height=height, width=width, fields=list(fields), is_bigendian=False,
                          is_dense=False, point_step=dtype.itemsize, row_step=dtype.itemsize * width)
    data = array("B")
    data.frombytes(np.ascontiguousarray(packed).tobytes())
    message.data = data
    return message


def create_cloud_xyz32(header: Header, points: np.ndarray | Iterable) -> PointCloud2:
    """points: (N, 3), metres."""
    fields = [PointField(name=name, offset=4 * i, datatype=PointField.FLOAT32, count=1) for i, name in enumerate("xyz")]
    return create_cloud(header, fields, points)


def read_points(cloud: PointCloud2, field_names: Sequence[str] | None = None, skip_nans: bool = False,
                uvs: np.ndarray | None = None, reshape_organized_cloud: bool = False) -> np.ndarray:
    """Structured array (N,), or (height, width) where asked for and organized. uvs: indices of the wanted points."""
    dtype = dtype_from_fields(cloud.fields, cloud.point_step, cloud.is_bigendian)
    rows = np.frombuffer(cloud.data, np.uint8, cloud.height * cloud.row_step).reshape(cloud.height, cloud.row_step)
    points = rows[:, :cloud.width * cloud.point_step].view(dtype).reshape(-1)
    if field_names is not None:
        points = points[list(field_names)]
    if uvs is not None:
        points = points[np.asarray(uvs)]
    if skip_nans:
        points = points[~np.any([np.isnan(points[name]) for name in points.dtype.names], axis=0)]
    elif reshape_organized_cloud and cloud.height > 1 and uvs is None:
        points = points.reshape(cloud.height, cloud.width)
    return points


def read_points_numpy(cloud: PointCloud2, field_names: Sequence[str] | None = None, skip_nans: bool = False,
                      uvs: np.ndarray | None = None, reshape_organized_cloud: bool = False) -> np.ndarray:
    """As read_points, but a plain array (..., fields); all fields must be of one type."""
    points = read_points(cloud, field_names, skip_nans, uvs, reshape_organized_cloud)
    types = {points.dtype[name] for name in points.dtype.names}
    if len(types) != 1:
        raise AssertionError("All fields need to have the same datatype. Use `read_points()` otherwise.")
    return np.stack([points[name] for name in points.dtype.names], axis=-1)
