# SPDX-License-Identifier: Apache-2.0
"""Rendered rooms: exact geometry, repeatable, and different under different light."""

import numpy as np
import pytest

from aceg_ros.camera import Camera
from aceg_ros.geometry import is_pose, look_at
from aceg_ros.synthetic.demo_room import demo_world, mapping_path, query_path
from aceg_ros.synthetic.hall_sessions import LENGTH_M, render_hall_sessions
from aceg_ros.synthetic.render import DAYLIGHT, EVENING, render
from aceg_ros.synthetic.room import Faces, Room, long_hall, random_room
from aceg_ros.synthetic.textures import make_atlas, paint_tiles

CAMERA = Camera(width=160, height=120, fx=130.0, fy=128.0, cx=79.0, cy=60.0)


@pytest.fixture(scope="module")
def atlas():
    return make_atlas(paint_tiles(12, 0))


def box_room() -> Room:
    """An empty room 4 x 6 x 3 m with one box of 1 m edges, turned by 30 degrees, on its floor."""
    faces = Faces(texture=np.zeros((2, 6), int), tile_m=np.ones((2, 6, 2)), offset=np.zeros((2, 6, 2)),
                  tint=np.ones((2, 6, 3)))
    return Room(size=(4.0, 6.0, 3.0), centre=np.array([[0, 0, 1.5], [1.0, 0.5, 0.5]]),
                half=np.array([[2, 3, 1.5], [0.5, 0.5, 0.5]]), yaw=np.array([0.0, np.radians(30)]), faces=faces, seed=0)


def test_depth_is_exact(atlas):
    """Every point of the depth image lies on the shell or on the box, and none inside either."""
    room = box_room()
    pose = look_at(np.array([-1.0, -2.0, 1.4]), np.array([1.0, 0.5, 0.6]))
    rendering = render(room, atlas, CAMERA, pose)
    points = rendering.scene_coordinates(CAMERA, pose).reshape(-1, 3)
    shell = np.abs(np.abs(points - room.centre[0]) - room.half[0]).min(1)
    cos, sin = np.cos(room.yaw[1]), np.sin(room.yaw[1])
    delta = points - room.centre[1]
    local = np.stack([cos * delta[:, 0] + sin * delta[:, 1], cos * delta[:, 1] - sin * delta[:, 0], delta[:, 2]], 1)
    box = np.abs(np.abs(local) - 0.5).min(1) + 10 * (np.abs(local).max(1) > 0.5001)
    assert np.minimum(shell, box).max() < 1e-4
    assert (box < 1e-4).mean() > 0.05, "the box should be in the image"
    centre = rendering.depth_m[60, 79]                    # the principal point looks at the target
    assert centre < np.linalg.norm([2.0, 2.5, 0.8])


def test_same_room_same_image_and_light_changes_it(atlas):
    room = random_room(5, len(atlas))
    pose = look_at(np.array([0.0, 0.0, 2.0]), np.array([2.0, 1.0, 1.0]))
    first, again = (render(random_room(5, len(atlas)), atlas, CAMERA, pose) for _ in range(2))
    assert np.array_equal(first.image, again.image)
    evening = render(room, atlas, CAMERA, pose, light=EVENING)
    assert np.array_equal(first.depth_m, evening.depth_m)
    assert np.abs(first.image.astype(int) - evening.image.astype(int)).mean() > 5
    assert DAYLIGHT != EVENING


def test_demo_drives_stay_clear_of_walls_and_furniture_and_differ():
    room = demo_world().room
    mapping, query = mapping_path(120, room), query_path(60, room)
    for pose in mapping + query:
        assert is_pose(pose) and room.free(pose[:3, 3], 0.2)
    nearest = [min(np.linalg.norm(q[:3, 3] - m[:3, 3]) for m in mapping) for q in query]
    assert np.median(nearest) > 0.1


def test_free_space():
    room = box_room()
    assert room.free(np.array([-1.0, -1.0, 1.0]))
    assert not room.free(np.array([1.0, 0.5, 0.5])) and not room.free(np.array([1.9, 0.0, 1.0]))


def test_a_hall_can_be_walked_along():
    for seed in range(3):
        hall = long_hall(seed, 12, LENGTH_M)
        assert all(hall.free(np.array([x, y, 1.3])) for x in np.linspace(-13, 11, 50) for y in (-0.5, 0.0, 0.5))


def test_walks_go_down_the_hall_once_and_the_query_walk_sees_what_the_mapping_walk_saw(atlas):
    mapping, query = (list(session) for session in render_hall_sessions(4, atlas, mapping=40, query=5))
    along = [frame.map_from_camera[0, 3] for frame in mapping]
    assert (np.diff(along) > 0).all() and along[-1] - along[0] > 20.0
    for frame in query:
        assert frame.map_from_camera[0, 2] > 0.6                     # looks ahead
        columns, rows = (part.ravel() for part in np.meshgrid(np.arange(4, 480, 8), np.arange(4, 360, 8)))
        rays = np.stack([(columns - frame.camera.cx) / frame.camera.fx, (rows - frame.camera.cy) / frame.camera.fy,
                         np.ones(len(rows))], 1)
        points = rays * frame.depth_m[rows, columns, None] @ frame.map_from_camera[:3, :3].T \
            + frame.map_from_camera[:3, 3]
        seen = np.zeros(len(points), bool)
        for other in mapping:
            local = (points - other.map_from_camera[:3, 3]) @ other.map_from_camera[:3, :3]
            pixel = local[:, :2] / local[:, 2:] * other.camera.fx + (other.camera.cx, other.camera.cy)
            seen |= (local[:, 2] > 0.1) & (pixel > 0).all(1) & (pixel < (479, 359)).all(1)
        assert seen.mean() > 0.5
