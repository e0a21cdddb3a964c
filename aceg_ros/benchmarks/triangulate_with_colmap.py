# SPDX-License-Identifier: Apache-2.0
"""Triangulates matched keypoints at known poses with pycolmap, which is optional."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aceg_ros.camera import Camera
from aceg_ros.geometry import invert
from aceg_ros.reconstruction.structure import import_pycolmap


@dataclass(frozen=True, kw_only=True)
class PosedKeypoints:
    """Keypoints of a rectified image: pixels (N, 2), its pinhole camera, and its pose map_from_camera (4, 4)."""

    pixels: np.ndarray
    camera: Camera
    map_from_camera: np.ndarray


def triangulate(images: Sequence[PosedKeypoints], matches: Mapping[tuple[int, int], np.ndarray], workspace: Path
                ) -> list[np.ndarray]:
    """Triangulate keypoints at the given poses, which stay as they are.

    Args:
        images: keypoints of posed images.
        matches: (M, 2) indices of keypoints, of each pair of images that match.
        workspace: folder for the database and the model; what is in it is replaced.

    Returns:
        Of each image, the point (N, 3) that each keypoint sees, NaN for none.

    Raises:
        UserError: pycolmap is not installed.
    """
    pycolmap = import_pycolmap()
    workspace.mkdir(parents=True, exist_ok=True)
    database = workspace / "database.db"
    database.unlink(missing_ok=True)
    model = _write_database(pycolmap, database, images, matches)
    options = pycolmap.IncrementalPipelineOptions()
    options.extract_colors, options.num_threads = False, 1
    options.triangulation.ignore_two_view_tracks = False      # points of two images are half of what there is
    model = pycolmap.triangulate_points(model, database, workspace, workspace, options=options)
    points = [np.full((len(image.pixels), 3), np.nan) for image in images]
    for number, image in model.images.items():
        for index in image.get_observation_point2D_idxs():
            points[number - 1][index] = model.points3D[image.points2D[index].point3D_id].xyz
    return points


def _write_database(pycolmap: Any, path: Path, images: Sequence[PosedKeypoints],
                    matches: Mapping[tuple[int, int], np.ndarray]) -> Any:
    """Write a database of the images, each with a camera of its own, and the matches. Returns a model with the poses.

    Numbers of cameras and images in the database are those of the images plus one.
    """
    model = pycolmap.Reconstruction()
    with pycolmap.Database.open(path) as database:
        for number, image in enumerate(images, 1):
            camera = pycolmap.Camera(model="PINHOLE", width=image.camera.width, height=image.camera.height,
                                     params=[image.camera.fx, image.camera.fy, image.camera.cx, image.camera.cy],
                                     camera_id=number)
            model.add_camera_with_trivial_rig(camera)
            entry = pycolmap.Image(name=f"{number:06d}", keypoints=image.pixels, camera_id=number, image_id=number)
            pose = pycolmap.Rigid3d(invert(image.map_from_camera)[:3])
            model.add_image_with_trivial_frame(entry, pose)
            database.write_camera(camera, use_camera_id=True)
            database.write_rig(model.rig(number), use_rig_id=True)
            database.write_image(entry, use_image_id=True)
            database.write_frame(model.frame(number), use_frame_id=True)
            database.write_keypoints(number, image.pixels.astype(np.float32))
        for (a, b), rows in matches.items():
            geometry = pycolmap.TwoViewGeometry(
                config=pycolmap.TwoViewGeometryConfiguration.CALIBRATED, inlier_matches=rows.astype(np.uint32))
            database.write_matches(a + 1, b + 1, rows.astype(np.uint32))
            database.write_two_view_geometry(a + 1, b + 1, geometry)
    return model
