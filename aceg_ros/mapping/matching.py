"""Which mapping pictures show the same, and which patches of two pictures are the same spot.

The poses are known, so a match is looked for along its epipolar line alone, and pictures that see the same are those
whose best patches match where the poses allow it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from aceg_ros.encoders.base import Encoder
from aceg_ros.encoders.preprocess import image_to_tensor, patch_centres, valid_cells
from aceg_ros.mapping.augmentation import Picture

MAX_TURN_RAD = np.radians(50)          # between the optical axes of two matched pictures
MAX_ERROR_CELLS = 0.75                 # a match is good to half a cell in each direction
SKETCH = 128                           # patches of a picture by which its partners are found
GOOD_SHARE = 0.5                       # of the best partner's shared patches: others that are as good
MIN_SHARED = 3.0


@dataclass(frozen=True)
class Seen:
    """The chosen patches of a picture, the most reliable first. features (N, C) of unit length; cells (N,) flat
    indices of the grid; pixels (N, 2); rays (N, 3) in the map frame, of unit depth along the optical axis.
    """

    features: Tensor
    cells: Tensor
    pixels: Tensor
    rays: Tensor
    centre: Tensor
    camera_from_map: Tensor
    intrinsics: Tensor
    grid: tuple[int, int]

    @property
    def axis(self) -> Tensor:
        """Where the camera looks (3,), in the map frame."""
        return self.camera_from_map[2, :3]


@torch.inference_mode()
def look(picture: Picture, encoder: Encoder, device: str, most: int) -> Seen:
    """The `most` most reliable patches of a picture (without reliabilities, those with most texture)."""
    image = image_to_tensor(picture.image, device)
    features, reliability = encoder.extract(image)
    height, width = features.shape[2:]
    if reliability is None:
        score = torch.from_numpy(_texture(picture.image, encoder.stride)[:height, :width]).to(device)
    else:
        score = reliability[0]
    score = (score * torch.from_numpy(valid_cells(picture.mask, height, width, encoder.stride)).to(device)).flatten()
    cells = score.topk(min(most, int((score > 0).sum()))).indices
    pixels = patch_centres(cells % width, cells // width, encoder.stride)
    camera = picture.camera
    intrinsics = torch.tensor([camera.fx, camera.fy, camera.cx, camera.cy], device=device)
    pose = torch.from_numpy(picture.map_from_camera).float().to(device)
    local = torch.cat([(pixels - intrinsics[2:]) / intrinsics[:2], torch.ones_like(pixels[:, :1])], 1)
    found = torch.nn.functional.normalize(features[0].flatten(1).T[cells], dim=1)
    return Seen(found, cells, pixels, local @ pose[:3, :3].T, pose[:3, 3], torch.linalg.inv(pose)[:3], intrinsics,
                 (height, width))


def measured_depths(picture: Picture, seen: Seen) -> Tensor:
    """The picture's depths (N,) at its chosen patches, NaN where unknown."""
    if picture.depth_m is None:
        return seen.pixels.new_full((len(seen.pixels),), float("nan"))
    column, row = seen.pixels.round().long().cpu().unbind(1)
    depth = torch.from_numpy(picture.depth_m.astype(np.float32))[row, column].to(seen.pixels.device)
    return torch.where(depth > 0, depth, float("nan"))


def _texture(image: np.ndarray, stride: int) -> np.ndarray:
    """How well a patch's place is fixed by what is in it (h, w): the smaller eigenvalue of its structure tensor."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    height, width = (side // stride * stride for side in grey.shape)
    strength = cv2.cornerMinEigenVal(grey, 5)[:height, :width]
    return strength.reshape(height // stride, stride, width // stride, stride).max((1, 3)) + 1e-9


@dataclass(frozen=True)
class Sketches:
    """The SKETCH best patches of V pictures. features (V, K, C), pixels (V, K, 2), axes (V, 3), centres (V, 3),
    camera_from_map (V, 3, 4), intrinsics (V, 4). Pictures with fewer patches are filled up with what matches nothing.
    """

    features: Tensor
    pixels: Tensor
    axes: Tensor
    centres: Tensor
    camera_from_map: Tensor
    intrinsics: Tensor

    @classmethod
    def of(cls, views: Sequence[Seen]) -> Sketches:
        features = views[0].features.new_zeros(len(views), SKETCH, views[0].features.shape[1])
        pixels = features.new_full((len(views), SKETCH, 2), 1e6)
        for index, view in enumerate(views):
            count = min(SKETCH, len(view.features))
            features[index, :count], pixels[index, :count] = view.features[:count], view.pixels[:count]
        return cls(features, pixels, *(torch.stack([getattr(view, name) for view in views])
                                       for name in ("axis", "centre", "camera_from_map", "intrinsics")))


def choose_partners(anchor: Seen, others: Sketches, count: int, stride: int) -> list[int]:
    """Indices of up to `count` pictures that show what the anchor shows, from near and from far.

    Among the pictures that share about as many patches with it as the best one, baselines are spread evenly: more
    parallax makes better depths.
    """
    baseline = (others.centres - anchor.centre).norm(dim=1)
    alike = ((others.axes @ anchor.axis > float(np.cos(MAX_TURN_RAD))) & (baseline > 1e-9)).nonzero()[:, 0]
    if len(alike) <= count:
        return alike.tolist()
    shared = _shared_patches(anchor, others, alike, MAX_ERROR_CELLS * stride)
    good = alike[shared >= max(GOOD_SHARE * float(shared.max()), MIN_SHARED)]
    if len(good) <= count:
        return alike[shared.argsort(descending=True)[:count]].tolist()
    order = good[baseline[good].argsort()]
    return order[torch.linspace(0, len(order) - 1, count).long()].tolist()


def _shared_patches(anchor: Seen, others: Sketches, chosen: Tensor, limit_px: float) -> Tensor:
    """How many of the anchor's best patches each of the `chosen` (V,) shows as well.

    Those whose mutually nearest feature is within limit_px of the epipolar line, less what chance would put there.
    """
    own = anchor.features[:SKETCH]
    similarity = torch.einsum("nc,vkc->vnk", own, others.features[chosen])
    forward, backward = similarity.argmax(2), similarity.argmax(1)
    mutual = backward.gather(1, forward) == torch.arange(len(own), device=own.device)
    pixels = others.pixels[chosen].gather(1, forward[..., None].expand(-1, -1, 2))
    lines = _epipolar_lines(anchor.rays[:SKETCH], anchor.centre, others.camera_from_map[chosen],
                            others.intrinsics[chosen])
    error = (_on_plane(pixels, others.intrinsics[chosen]) * lines).sum(-1).abs()
    near, around = ((error < bound) & mutual for bound in (limit_px, 6 * limit_px))
    return near.sum(1) - around.sum(1) / 6


def match(a: Seen, b: Seen, band_px: float) -> Tensor:
    """For each patch of a, the patch of b that is its nearest and whose nearest it is, of those within band_px of each
    other's epipolar line; -1 where there is none."""
    lines = _epipolar_lines(a.rays, a.centre, b.camera_from_map[None], b.intrinsics[None])[0]
    error = lines @ _on_plane(b.pixels, b.intrinsics).T
    similarity = torch.where(error.abs() < band_px, a.features @ b.features.T, -2.0)
    forward, backward = similarity.argmax(1), similarity.argmax(0)
    mutual = backward[forward] == torch.arange(len(forward), device=forward.device)
    possible = similarity.gather(1, forward[:, None])[:, 0] > -2.0
    return torch.where(mutual & possible, forward, -1)


def _epipolar_lines(rays: Tensor, centre: Tensor, camera_from_map: Tensor, intrinsics: Tensor) -> Tensor:
    """Lines (V, N, 3) on which V other pictures see N rays, so that line . (u - cx, v - cy, 1) is a distance in pixels.

    rays (N, 3) in the map frame from centre (3,); camera_from_map (V, 3, 4); intrinsics (V, 4).
    """
    directions = rays @ camera_from_map[:, :, :3].transpose(1, 2)
    origin = (camera_from_map[:, :, :3] @ centre + camera_from_map[:, :, 3])[:, None]
    normals = torch.linalg.cross(origin.expand_as(directions), directions)
    lines = normals / torch.cat([intrinsics[:, None, :2], torch.ones_like(intrinsics[:, None, :1])], -1)
    return lines / lines[..., :2].norm(dim=-1, keepdim=True).clamp(min=1e-12)


def _on_plane(pixels: Tensor, intrinsics: Tensor) -> Tensor:
    """(..., N, 3): (u - cx, v - cy, 1) of pixels (..., N, 2)."""
    return torch.cat([pixels - intrinsics[..., None, 2:], torch.ones_like(pixels[..., :1])], -1)
