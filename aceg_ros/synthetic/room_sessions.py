# SPDX-License-Identifier: Apache-2.0
"""Two recording sessions in a random room: a mapping session, and a later one under other light with objects moved."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from aceg_ros.camera import Camera, Frame
from aceg_ros.synthetic.camera_poses import poses_near, random_viewpoint
from aceg_ros.synthetic.move_objects import with_objects_moved
from aceg_ros.synthetic.render import Light, random_light, render
from aceg_ros.synthetic.room import Room, random_room
from aceg_ros.synthetic.textures import TextureAtlas

WIDTH, HEIGHT = 480, 360


def render_room_sessions(seed: int, atlas: TextureAtlas, *, mapping: int = 24, query: int = 10, viewpoints: int = 3,
                         device: str = "cpu") -> tuple[Iterator[Frame], Iterator[Frame]]:
    """Render a mapping session and a later query session in a random room, from near the same viewpoints.

    Args:
        seed: seed of the room, the viewpoints, the poses and the lights.
        atlas: textures of the room, on `device`.
        mapping: number of frames of the mapping session, all under one light.
        query: number of frames of the query session, each under a different light.
        viewpoints: number of viewpoints that both sessions share.
        device: device of the ray casting.

    Returns:
        The frames of the mapping and of the query session, with exact poses and depths.
    """
    rng = np.random.default_rng(seed)
    room = random_room(seed, len(atlas))
    focal = rng.uniform(330, 560)
    camera = Camera(width=WIDTH, height=HEIGHT, fx=focal, fy=focal, cx=(WIDTH - 1) / 2, cy=(HEIGHT - 1) / 2)
    chosen = [random_viewpoint(room, rng) for _ in range(viewpoints)]
    mapping_light = random_light(rng)
    poses = poses_near(room, chosen, rng, mapping + query)
    changed = with_objects_moved(room, rng)
    query_lights = [random_light(rng) for _ in range(query)]
    return (render_frames(room, atlas, camera, poses[:mapping], lights=[mapping_light] * mapping, device=device),
            render_frames(changed, atlas, camera, poses[mapping:], lights=query_lights, device=device))


def render_frames(room: Room, atlas: TextureAtlas, camera: Camera, poses: list[np.ndarray], *,
                  lights: list[Light], device: str = "cpu") -> Iterator[Frame]:
    """Render a frame with exact pose and depth for each pose (4, 4), under its light."""
    for number, (pose, light) in enumerate(zip(poses, lights, strict=True)):
        rendering = render(room, atlas, camera, pose, light=light, device=device)
        yield Frame(image=rendering.image, camera=camera, stamp_s=float(number), map_from_camera=pose,
                    name=f"{number:06d}", depth_m=rendering.depth_m)
