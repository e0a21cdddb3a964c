"""Where mapping features meet: patches matched between mapping pictures and triangulated with the known poses.

ACE learns depth from reprojection alone, which takes tens of thousands of steps and, where a place was seen in all
directions, more than two cores have time for: predictions begin on the wrong side of most cameras. The encoder's own
features already tell which patches of two pictures show the same spot. What three or more pictures agree on becomes a
depth for the patch, and training starts from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from aceg_ros.encoders.base import Encoder
from aceg_ros.mapping.augmentation import Picture, whole_cells
from aceg_ros.mapping.buffer import patch_centres

MAX_TURN_RAD = np.radians(50)          # between the optical axes of two matched pictures
MIN_PARALLAX_RAD = np.radians(1.0)
MAX_ERROR_CELLS = 0.75                 # a match is good to half a cell in each direction
MIN_VIEWS = 3                          # that agree on a point, the patch's own among them


@dataclass(frozen=True)
class TriangulationOptions:
    """pictures: at most so many take part; partners: pictures that each is matched with; patches: of a picture."""

    pictures: int = 400
    partners: int = 8
    patches: int = 1800


@dataclass(frozen=True)
class _Seen:
    """The chosen patches of a picture. features (N, C) of unit length; cells (N,) flat indices of the grid; pixels
    (N, 2); rays (N, 3) in the map frame, of unit depth along the optical axis."""

    features: Tensor
    cells: Tensor
    pixels: Tensor
    rays: Tensor
    centre: Tensor
    camera_from_map: Tensor
    intrinsics: Tensor
    grid: tuple[int, int]


def triangulate(pictures: Sequence[Picture], encoder: Encoder, device: str, options: TriangulationOptions,
                seed: int, deadline: float, should_stop: Callable[[], bool],
                report: Callable[[float], None]) -> dict[int, np.ndarray]:
    """Depths (h, w), one for each cell, NaN where unknown, of those pictures that got any, by their index.

    Ends at the deadline (time.monotonic() seconds) or when should_stop turns true, with what it has: half of the time
    is for looking, in random order, the rest for matching those that were looked at.
    """
    rng = np.random.default_rng(seed)
    halfway = (time.monotonic() + deadline) / 2
    order = rng.permutation(len(pictures))[:options.pictures]
    looked: dict[int, _Seen] = {}
    for number, index in enumerate(order):
        if time.monotonic() > halfway or should_stop():
            break
        seen = _look(pictures[index], encoder, device, options.patches)
        if len(seen.cells):
            looked[int(index)] = seen
        report(0.4 * number / len(order))
    chosen = sorted(looked)
    depths: dict[int, np.ndarray] = {}
    if not chosen:
        return depths
    poses = np.stack([pictures[index].map_from_camera for index in chosen])
    for tried, number in enumerate(rng.permutation(len(chosen))):
        if time.monotonic() > deadline or should_stop():
            break
        partners = choose_partners(poses, int(number), options.partners)
        found = _depths(looked[chosen[number]], [looked[chosen[partner]] for partner in partners], encoder.stride)
        if torch.isfinite(found).any():
            depths[chosen[number]] = found.cpu().numpy()
        report(0.4 + 0.6 * tried / len(chosen))
    return depths


def choose_partners(poses: np.ndarray, index: int, count: int) -> np.ndarray:
    """Pictures (indices) that look the same way as picture `index` from elsewhere: near, middling and far ones.

    Nothing is known of the scene's depth, so the baselines are spread over all that the pictures offer, nearer ones
    more densely. poses (N, 4, 4) map_from_camera.
    """
    axes, centres = poses[:, :3, 2], poses[:, :3, 3]
    baseline = np.linalg.norm(centres - centres[index], axis=1)
    alike = np.flatnonzero((axes @ axes[index] > np.cos(MAX_TURN_RAD)) & (baseline > 1e-9))
    # A picture further along the same view is likelier to share what is seen than one that is turned as well.
    turn = np.arccos(np.clip(axes[alike] @ axes[index], -1.0, 1.0))
    order = alike[np.argsort(baseline[alike] * (1.0 + 2.0 * turn))]
    if len(order) <= count:
        return order
    where = np.unique((len(order) * np.linspace(0.02, 0.75, count) ** 1.5).astype(int))
    return order[where]


@torch.inference_mode()
def _look(picture: Picture, encoder: Encoder, device: str, most: int) -> _Seen:
    image = torch.from_numpy(picture.image).to(device).permute(2, 0, 1)[None].float().div(255)
    features, reliability = encoder.grid(image)
    height, width = features.shape[2:]
    if reliability is None:
        score = torch.from_numpy(_texture(picture.image, encoder.stride)[:height, :width]).to(device)
    else:
        score = reliability[0]
    score = (score * torch.from_numpy(whole_cells(picture.mask, height, width, encoder.stride)).to(device)).flatten()
    cells = score.topk(min(most, int((score > 0).sum()))).indices
    pixels = patch_centres(cells % width, cells // width, encoder.stride)
    camera = picture.camera
    intrinsics = torch.tensor([camera.fx, camera.fy, camera.cx, camera.cy], device=device)
    pose = torch.from_numpy(picture.map_from_camera).float().to(device)
    local = torch.cat([(pixels - intrinsics[2:]) / intrinsics[:2], torch.ones_like(pixels[:, :1])], 1)
    found = torch.nn.functional.normalize(features[0].flatten(1).T[cells], dim=1)
    return _Seen(found, cells, pixels, local @ pose[:3, :3].T, pose[:3, 3], torch.linalg.inv(pose)[:3], intrinsics,
                 (height, width))


def _texture(image: np.ndarray, stride: int) -> np.ndarray:
    """How well a patch's place is fixed by what is in it (h, w): the smaller eigenvalue of its structure tensor."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    height, width = (side // stride * stride for side in grey.shape)
    strength = cv2.cornerMinEigenVal(grey, 5)[:height, :width]
    return strength.reshape(height // stride, stride, width // stride, stride).max((1, 3)) + 1e-9


@dataclass(frozen=True)
class _Sights:
    """N rays of one picture as P others see them: a point at depth z is z turned + origin in their cameras.

    turned (P, N, 3), origin (P, 1, 3); pixels (P, N, 2): where they saw the match; matched (P, N);
    intrinsics (P, 1, 4).
    """

    turned: Tensor
    origin: Tensor
    pixels: Tensor
    matched: Tensor
    intrinsics: Tensor

    def candidates(self) -> Tensor:
        """Depths (P, N) by each match alone; NaN where there is none or it is not in front of both cameras.

        u (.)_z = (.)_x and v (.)_z = (.)_y are linear in z.
        """
        where = (self.pixels - self.intrinsics[..., 2:]) / self.intrinsics[..., :2]
        slope = self.turned[..., :2] - where * self.turned[..., 2:]
        offset = where * self.origin[..., 2:] - self.origin[..., :2]
        depth = (slope * offset).sum(-1) / (slope * slope).sum(-1).clamp(min=1e-12)
        in_front = (depth > 0) & (self.turned[..., 2] * depth + self.origin[..., 2] > 0)
        return torch.where(in_front & self.matched, depth, float("nan"))

    def project(self, depth: Tensor) -> Tensor:
        """Pixels (P, N, 2) of the points at `depth` (N,), far away where they are behind a camera."""
        local = self.turned * depth[:, None] + self.origin
        z = local[..., 2:]
        pixels = local[..., :2] / z.clamp(min=1e-6) * self.intrinsics[..., :2] + self.intrinsics[..., 2:]
        return torch.where(z > 1e-6, pixels, 1e6)

    def errors(self, depth: Tensor) -> Tensor:
        """Distance (P, N) in pixels between where each saw its match and where `depth` (N,) puts it."""
        return torch.nan_to_num((self.project(depth) - self.pixels).norm(dim=-1), nan=1e6)

    def refine(self, depth: Tensor, used: Tensor) -> Tensor:
        """Depth (N,) after three Gauss-Newton steps on the errors of the `used` (P, N)."""
        for _ in range(3):
            step = 1e-3 * depth
            here = self.project(depth)
            slope = (self.project(depth + step) - here) / step[:, None]
            gradient = torch.where(used, (slope * (here - self.pixels)).sum(-1), 0.0).sum(0)
            curvature = torch.where(used, (slope * slope).sum(-1), 0.0).sum(0)
            moved = depth - gradient / curvature.clamp(min=1e-12)
            depth = torch.where(moved > 0.5 * depth, moved, depth)
        return depth


@torch.inference_mode()
def _depths(anchor: _Seen, partners: list[_Seen], stride: int) -> Tensor:
    """Depth (h, w) of the anchor's patches along its optical axis, NaN where fewer than MIN_VIEWS agree."""
    result = torch.full((anchor.grid[0] * anchor.grid[1],), float("nan"), device=anchor.pixels.device)
    if len(partners) < MIN_VIEWS - 1:
        return result.reshape(anchor.grid)
    limit = MAX_ERROR_CELLS * stride
    matches = [_match(anchor, partner) for partner in partners]
    sights = _Sights(
        torch.stack([anchor.rays @ partner.camera_from_map[:, :3].T for partner in partners]),
        torch.stack([partner.camera_from_map[:, :3] @ anchor.centre + partner.camera_from_map[:, 3]
                     for partner in partners])[:, None],
        torch.stack([partner.pixels[match.clamp(min=0)] for match, partner in zip(matches, partners, strict=True)]),
        torch.stack(matches) >= 0, torch.stack([partner.intrinsics for partner in partners])[:, None])
    candidates = sights.candidates()
    agree = torch.stack([sights.errors(depth) < limit for depth in candidates]) & sights.matched      # (P, P, N)
    best = agree.sum(1).argmax(0)
    used = agree.gather(0, best[None, None].expand(1, len(partners), -1))[0]
    depth = sights.refine(candidates.gather(0, best[None])[0], used)
    used &= sights.errors(depth) < limit
    points = anchor.rays * depth[:, None] + anchor.centre
    to_partners = torch.stack([partner.centre for partner in partners])[:, None] - points
    cosine = torch.nn.functional.cosine_similarity(to_partners, (anchor.centre - points)[None], dim=-1)
    parallax = torch.where(used, torch.arccos(cosine.clamp(-1.0, 1.0)), 0.0).amax(0)
    good = (used.sum(0) >= MIN_VIEWS - 1) & (parallax > MIN_PARALLAX_RAD)
    result[anchor.cells[good]] = depth[good]
    return result.reshape(anchor.grid)


def _match(a: _Seen, b: _Seen) -> Tensor:
    """For each patch of a, the patch of b that is its nearest and whose nearest it is; -1 where there is none."""
    similarity = a.features @ b.features.T
    forward, backward = similarity.argmax(1), similarity.argmax(0)
    mutual = backward[forward] == torch.arange(len(forward), device=forward.device)
    return torch.where(mutual, forward, -1)
