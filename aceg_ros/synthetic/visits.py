"""Two visits to a random room: one that maps it, and a later one in another light, with things moved."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from aceg_ros.camera import Camera, Frame
from aceg_ros.synthetic.rearrange import rearranged
from aceg_ros.synthetic.render import Light, random_light, render
from aceg_ros.synthetic.room import Room, random_room
from aceg_ros.synthetic.textures import TextureAtlas
from aceg_ros.synthetic.viewpoints import pose_near, random_station

WIDTH, HEIGHT = 480, 360


def mapping_and_later_visit(seed: int, atlas: TextureAtlas, mapping: int = 24, later: int = 10,
                            stations: int = 3, device: str = "cpu") -> tuple[Iterator[Frame], Iterator[Frame]]:
    """Frames with exact poses and depths of random room `seed`: a mapping visit under one light, and a later one whose
    every picture is lit by itself. Both look at the same walls from places of their own. Rendered on device, where the
    atlas must be."""
    rng = np.random.default_rng(seed)
    room = random_room(seed, len(atlas))
    focal = rng.uniform(330, 560)
    camera = Camera(width=WIDTH, height=HEIGHT, fx=focal, fy=focal, cx=(WIDTH - 1) / 2, cy=(HEIGHT - 1) / 2)
    places = [random_station(room, rng) for _ in range(stations)]
    first_light = random_light(rng)
    poses = [pose_near(room, places[index % stations], rng, 0.6, 0.45, 0.08) for index in range(mapping + later)]
    changed = rearranged(room, rng)
    lights = [random_light(rng) for _ in range(later)]
    return (photographs(room, atlas, camera, poses[:mapping], [first_light] * mapping, device),
            photographs(changed, atlas, camera, poses[mapping:], lights, device))


def photographs(room: Room, atlas: TextureAtlas, camera: Camera, poses: list[np.ndarray],
                lights: list[Light], device: str = "cpu") -> Iterator[Frame]:
    """A frame with exact pose and depth for each pose (4, 4), each under its light."""
    for number, (pose, light) in enumerate(zip(poses, lights, strict=True)):
        seen = render(room, atlas, camera, pose, light, device)
        yield Frame(image=seen.image, camera=camera, stamp_s=float(number), map_from_camera=pose, name=f"{number:06d}",
                    depth_m=seen.depth_m)
