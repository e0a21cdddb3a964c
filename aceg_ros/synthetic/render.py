# SPDX-License-Identifier: Apache-2.0
"""Renders a room by ray casting: image, exact depth and exact scene coordinates, under a given light."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from aceg_ros.camera import Camera
from aceg_ros.synthetic.room import Room
from aceg_ros.synthetic.textures import TILE_PX, TextureAtlas


@dataclass(frozen=True, kw_only=True)
class Light:
    """Illumination of a room, and the response of the camera.

    ambient: ambient light. lamps: positions (L, 3) as fractions of the room. gains: factors of red, green and blue
    (colour temperature). exposure, gamma: of the camera.
    """

    ambient: float = 0.55
    lamps: tuple[tuple[float, float, float], ...] = ((0.3, 0.4, 0.92), (-0.5, -0.4, 0.92))
    gains: tuple[float, float, float] = (1.0, 1.0, 1.0)
    exposure: float = 1.0
    gamma: float = 1.0


DAYLIGHT = Light(exposure=0.62)
EVENING = Light(ambient=0.35, lamps=((-0.6, 0.5, 0.8),), gains=(1.15, 0.98, 0.78), exposure=0.75, gamma=1.1)


def random_light(rng: np.random.Generator) -> Light:
    """Draw a light: one to three lamps, colour temperature, exposure and gamma."""
    lamps = tuple(tuple(rng.uniform((-0.8, -0.8, 0.6), (0.8, 0.8, 0.98))) for _ in range(int(rng.integers(1, 4))))
    warmth = rng.normal(0, 0.12)
    return Light(ambient=rng.uniform(0.2, 0.8), lamps=lamps, gains=(1 + warmth, 1.0, 1 - warmth),
                 exposure=rng.uniform(0.6, 1.35), gamma=rng.uniform(0.75, 1.35))


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """A rendered view: image (H, W, 3) uint8 RGB, depth_m (H, W) float32 z-depth at the pixel centres."""

    image: np.ndarray
    depth_m: np.ndarray

    def scene_coordinates(self, camera: Camera, map_from_camera: np.ndarray) -> np.ndarray:
        """Return the map-frame point (H, W, 3) of every pixel."""
        columns, rows = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
        rays = np.stack([(columns - camera.cx) / camera.fx, (rows - camera.cy) / camera.fy, np.ones(rows.shape)], -1)
        return (rays * self.depth_m[..., None]) @ map_from_camera[:3, :3].T + map_from_camera[:3, 3]


def render(room: Room, atlas: TextureAtlas, camera: Camera, map_from_camera: np.ndarray, *,
           light: Light = DAYLIGHT, device: str = "cpu") -> Rendering:
    """Render an image of the room with a pinhole camera at map_from_camera (4, 4), which must be inside the room."""
    rays = _rays(camera, device)
    depth, face = _nearest_faces(room, camera, map_from_camera, rays)
    hits = _Hits(rays=rays.reshape(-1, 3), depth=depth.reshape(-1), face=face.reshape(-1))
    colours = _shade(room, atlas, hits, camera=camera, pose=map_from_camera, light=light)
    image = (colours.clamp(0, 1) * 255).round().to(torch.uint8).reshape(camera.height, camera.width, 3)
    return Rendering(image=image.cpu().numpy(), depth_m=depth.cpu().numpy())


def cast_depth(room: Room, camera: Camera, map_from_camera: np.ndarray) -> np.ndarray:
    """Return the z-depths (H, W) float32 in metres at the pixel centres of a pinhole camera, without an image."""
    return _nearest_faces(room, camera, map_from_camera, _rays(camera, "cpu"))[0].numpy()


def _rays(camera: Camera, device: str) -> torch.Tensor:
    """Return camera-frame rays (H, W, 3) with z = 1, so that the ray parameter is the z-depth."""
    u = (torch.arange(camera.width, device=device) - camera.cx) / camera.fx
    v = (torch.arange(camera.height, device=device) - camera.cy) / camera.fy
    rows, columns = torch.meshgrid(v, u, indexing="ij")
    return torch.stack([columns, rows, torch.ones_like(rows)], -1).float()


def _nearest_faces(room: Room, camera: Camera, pose: np.ndarray, rays: torch.Tensor):
    """Return depth (H, W) and face index 6 * box + 2 * axis + side (H, W) of the first surface on each ray."""
    height, width = rays.shape[:2]
    depth = torch.full((height, width), 1e6, device=rays.device)
    face = torch.zeros((height, width), dtype=torch.long, device=rays.device)
    cos, sin = np.cos(room.yaw), np.sin(room.yaw)
    for box in range(len(room)):
        rotation = np.array([[cos[box], -sin[box], 0], [sin[box], cos[box], 0], [0, 0, 1]])   # map_from_box
        window = (slice(0, height), slice(0, width))
        if box > 0:
            covered = _image_window(camera, pose, _CORNERS * room.half[box] @ rotation.T + room.centre[box])
            if covered is None:
                continue
            window = covered
        half = torch.from_numpy(room.half[box]).float().to(rays.device)
        origin = torch.from_numpy(rotation.T @ (pose[:3, 3] - room.centre[box])).float().to(rays.device)
        to_box = torch.from_numpy(rotation.T @ pose[:3, :3]).float().to(rays.device)
        direction = rays[window] @ to_box.T
        inverse = 1.0 / torch.where(direction.abs() < 1e-9, 1e-9, direction)
        side = (direction < 0).long()                        # which face of an axis the ray meets first
        near = (-half * torch.sign(inverse) - origin) * inverse
        far = (half * torch.sign(inverse) - origin) * inverse
        enter, enter_axis = near.max(-1)
        leave, leave_axis = far.min(-1)
        if box == 0:
            t, axis, hit_side = leave, leave_axis, 1 - side
            closer = t < depth[window]
        else:
            t, axis, hit_side = enter, enter_axis, side
            closer = (enter < leave) & (enter > 0.02) & (enter < depth[window])
        chosen = 6 * box + 2 * axis + hit_side.gather(-1, axis.unsqueeze(-1)).squeeze(-1)
        depth[window] = torch.where(closer, t, depth[window])
        face[window] = torch.where(closer, chosen, face[window])
    return depth, face


_CORNERS = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)


def _image_window(camera: Camera, pose: np.ndarray, corners: np.ndarray):
    """Return the rows and columns that a box with these corners (8, 3) can cover, or None if it is out of view."""
    corners = (corners - pose[:3, 3]) @ pose[:3, :3]
    if (corners[:, 2] < 0.02).all():
        return None
    if (corners[:, 2] < 0.05).any():
        return slice(0, camera.height), slice(0, camera.width)
    u = camera.fx * corners[:, 0] / corners[:, 2] + camera.cx
    v = camera.fy * corners[:, 1] / corners[:, 2] + camera.cy
    left, right = max(int(u.min()), 0), min(int(u.max()) + 2, camera.width)
    top, bottom = max(int(v.min()), 0), min(int(v.max()) + 2, camera.height)
    return (slice(top, bottom), slice(left, right)) if left < right and top < bottom else None


@dataclass(frozen=True, kw_only=True)
class _Hits:
    """First surface on each of P rays: rays (P, 3) in the camera with z = 1, depth (P,), face (P,)."""

    rays: torch.Tensor
    depth: torch.Tensor
    face: torch.Tensor


def _shade(room: Room, atlas: TextureAtlas, hits: _Hits, *, camera: Camera, pose: np.ndarray, light: Light):
    """Compute colours (P, 3) from texture, a low-frequency stain against repetition, Lambertian light and camera."""
    depth, face, device = hits.depth, hits.face, hits.depth.device

    def tensor(values):
        return torch.as_tensor(np.asarray(values), dtype=torch.float32, device=device)

    box, axis, side = face // 6, face % 6 // 2, face % 2
    points = (hits.rays * depth[:, None]) @ tensor(pose[:3, :3]).T + tensor(pose[:3, 3])
    cos, sin = tensor(np.cos(room.yaw))[box], tensor(np.sin(room.yaw))[box]
    delta = points - tensor(room.centre)[box]
    local = torch.stack([cos * delta[:, 0] + sin * delta[:, 1], cos * delta[:, 1] - sin * delta[:, 0], delta[:, 2]], 1)
    local = local + tensor(room.half)[box]
    u_axis, v_axis = (axis == 0).long(), torch.where(axis == 2, 1, 2)
    on_face = torch.stack([local.gather(1, u_axis[:, None])[:, 0], -local.gather(1, v_axis[:, None])[:, 0]], 1)
    tile_m = tensor(room.faces.tile_m).reshape(-1, 2)[face]
    uv = on_face / tile_m + tensor(room.faces.offset).reshape(-1, 2)[face]

    normal_local = torch.zeros_like(points).scatter_(1, axis[:, None], (2.0 * side - 1)[:, None])
    normal = torch.stack([cos * normal_local[:, 0] - sin * normal_local[:, 1],
                          sin * normal_local[:, 0] + cos * normal_local[:, 1], normal_local[:, 2]], 1)
    normal = torch.where((box == 0)[:, None], -normal, normal)
    view = torch.nn.functional.normalize(tensor(pose[:3, 3]) - points, dim=1)
    slant = (normal * view).sum(1).clamp(min=0.1)
    texels_per_px = depth / camera.fx / slant.sqrt() * TILE_PX / tile_m.amin(1)

    texture = torch.as_tensor(room.faces.texture, device=device).reshape(-1)[face]
    albedo = atlas.sample(texture, uv, texels_per_px) * tensor(room.faces.tint).reshape(-1, 3)[face]
    waves = tensor(np.random.default_rng(room.seed).normal(0, 1.6, (3, 3)))
    stain = torch.sin(points @ waves.T + box[:, None] * 1.7 + axis[:, None] * 2.1).prod(1)
    albedo = albedo * (1 + 0.28 * stain[:, None])

    irradiance = torch.full_like(depth, light.ambient)
    for lamp in light.lamps:
        position = tensor(np.asarray(lamp) * (room.size[0] / 2, room.size[1] / 2, room.size[2]))
        to_lamp = position - points
        distance = to_lamp.norm(dim=1)
        lambert = (normal * to_lamp).sum(1).clamp(min=0) / distance
        irradiance = irradiance + 1.1 * lambert / (1 + 0.12 * distance**2)
    colour = albedo * irradiance[:, None] * tensor(light.gains) * light.exposure
    return colour.clamp(min=1e-4) ** (1 / light.gamma)
