# SPDX-License-Identifier: Apache-2.0
"""The keyframe database of a map: what the camera saw, and where.

Keyframes are mapping images with the keypoints whose points are known. A landmark is a point with its observations in
several keyframes, each with a descriptor of its own, since things look different from elsewhere. This is the map
representation of structure-based localization (Sattler et al., PAMI 2017) and of SACReg (Revaud et al., CVPRW 2024).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from aceg_ros.camera import Camera, project_map_points
from aceg_ros.errors import UserError
from aceg_ros.maps.keyframe_index import KeyframeIndex
from aceg_ros.maps.product_quantizer import decode, encode, train_codebook
from aceg_ros.utils.device import multiplies_int8, product_type
from aceg_ros.utils.int8_products import mean_descriptors

SECTION = "database"
DESCRIPTOR_SCALE = 127              # descriptors are unit vectors as int8
PIXEL_SCALE, UNKNOWN_PIXEL = 16, -1 # pixels are in sixteenths, as int16

PART_DIM = 4                        # entries of a descriptor that share a byte in compact maps
LARGE = 1_000_000                   # observations from which a database has an index, and is read by keyframe
CONVERTED_AT_ONCE = 65_536           # descriptors, which bounds the memory
_TABLE_LANDMARKS = 1_000_000         # up to which a table of all is faster than sorting some


@dataclass(frozen=True, kw_only=True)
class KeyframeDatabase:
    """F keyframes, L landmarks and their N observations, ordered by keyframe.

    Attributes:
        poses: (F, 4, 4) map_from_camera.
        intrinsics: (F, 4) fx, fy, cx, cy of the rectified image in the size of the encoder.
        sizes: (F, 2) width and height of that image.
        first: (F + 1,) int64; the observations of keyframe f are first[f] to first[f + 1].
        landmarks: (N,) int32, index of the landmark that is observed.
        pixels: (N, 2) int16, in sixteenths of a pixel; UNKNOWN_PIXEL in maps that were stored compactly.
        descriptors: (N, C) int8.
        words: (N,) int16, index of the visual word of each descriptor.
        points: (L, 3) of the landmarks in the map.
        vocabulary: (W, C) int8, the visual words.
        index: of a large database; its observations then stay in the map's file until they are used.
    """

    poses: Tensor
    intrinsics: Tensor
    sizes: Tensor
    first: Tensor
    landmarks: Tensor
    pixels: Tensor
    descriptors: Tensor
    words: Tensor
    points: Tensor
    vocabulary: Tensor
    index: KeyframeIndex | None = None

    @classmethod
    def from_arrays(cls, *, poses: np.ndarray, intrinsics: np.ndarray, sizes: np.ndarray, first: np.ndarray,
                    landmarks: np.ndarray, pixels: np.ndarray, points: np.ndarray, descriptors: Tensor, words: Tensor,
                    vocabulary: Tensor) -> KeyframeDatabase:
        """Make a database of arrays of any precision, pixels (N, 2) in pixels, and quantised descriptors."""
        return cls(poses=torch.from_numpy(poses).float(), intrinsics=torch.from_numpy(intrinsics).float(),
                   sizes=torch.from_numpy(sizes.astype(np.int32)), first=torch.from_numpy(first),
                   landmarks=torch.from_numpy(landmarks.astype(np.int32)),
                   pixels=torch.from_numpy(np.round(pixels * PIXEL_SCALE).astype(np.int16)), descriptors=descriptors,
                   words=words.to(torch.int16), points=torch.from_numpy(points).float(), vocabulary=vocabulary)

    def __len__(self) -> int:
        return len(self.poses)

    def to_section(self, compact: bool = False, seed: int = 0) -> dict[str, Tensor]:
        """Return the tensors of the map section; compact: with product-quantised descriptors and without pixels."""
        section: dict[str, Tensor] = {name: getattr(self, name) for name in _tensor_names()}
        if not compact:
            index = self.index or (KeyframeIndex.build(self) if len(self.descriptors) >= LARGE else None)
            return section if index is None else section | index.to_section()
        del section["pixels"]
        codebook = train_codebook(section["descriptors"], seed, PART_DIM).half()
        return section | {"descriptors": encode(section["descriptors"], codebook.float()), "codebook": codebook}

    @classmethod
    def from_section(cls, section: Mapping[str, Tensor]) -> KeyframeDatabase:
        """Read a map section. Raises UserError if tensors are missing or do not fit together."""
        try:
            tensors = dict(section)
            if "codebook" in tensors:
                codes = tensors["descriptors"]
                if codes.ndim != 2 or codes.shape[1] != len(tensors["codebook"]):
                    raise UserError("The map's database does not fit together: map the scene again.")
                decoded = decode(codes, tensors["codebook"])
                tensors["descriptors"] = quantised(decoded)
                tensors["pixels"] = torch.full((len(codes), 2), UNKNOWN_PIXEL, dtype=torch.int16)
            database = cls(**{name: tensors[name] for name in _tensor_names()},
                           index=KeyframeIndex.from_section(tensors, len(tensors["poses"])))
        except KeyError as error:
            raise UserError(f"The map's database has no {error}: map the scene again.") from None
        database.check()
        return database

    def check(self) -> None:
        """Raise UserError unless all shapes and indices fit together."""
        count, frames = len(self.descriptors), len(self.poses)
        fits = (self.poses.shape == (frames, 4, 4) and self.intrinsics.shape == (frames, 4)
                and self.sizes.shape == (frames, 2) and self.first.shape == (frames + 1,)
                and self.landmarks.shape == (count,) and self.words.shape == (count,)
                and self.pixels.shape == (count, 2) and self.points.ndim == 2 and self.points.shape[1] == 3
                and self.vocabulary.ndim == 2 and self.vocabulary.shape[1:] == self.descriptors.shape[1:]
                and frames > 0 and count > 0)
        fits = fits and bool((self.first[1:] >= self.first[:-1]).all()) and int(self.first[0]) == 0
        fits = fits and int(self.first[-1]) == count
        if fits and self.index is None:             # with an index, each keyframe is checked when it is used
            fits = _inside(self.landmarks, len(self.points)) and _inside(self.words, len(self.vocabulary))
        if not fits:
            raise UserError("The map's database does not fit together: map the scene again.")

    def unit_descriptors(self, device: torch.device) -> Tensor | UnitRows:
        """Return the descriptors (N, C) with unit length on a device, as 16-bit floats where it computes in these; of a
        large database, and where they are rather compared as they are stored, what converts the rows that it is indexed
        by."""
        if self.index is not None or multiplies_int8(device):
            return UnitRows(self.descriptors, device)
        if device not in self._unit_descriptors:
            parts = [_unit(part, device) for part in self.descriptors.split(CONVERTED_AT_ONCE)]
            self._unit_descriptors[device] = torch.cat(parts)
        return self._unit_descriptors[device]

    def descriptors_of_landmarks(self, landmarks: np.ndarray, rows: np.ndarray, device: torch.device) -> Tensor:
        """Return the mean descriptor (M, C) of landmarks (M,), ascending, some of whose observations are the rows (N,);
        in a large database, over these rows alone."""
        if self.index is None:
            return self.mean_descriptors(device).index_select(0, torch.from_numpy(landmarks).to(device))
        return self._mean_of(rows, np.searchsorted(landmarks, self.landmark_array[rows]), len(landmarks), device)

    def mean_descriptors(self, device: torch.device) -> Tensor:
        """Return the mean descriptor (L, C) of each landmark, of unit length in the type in which the device multiplies
        the fastest, which may be int8."""
        if device not in self._mean_descriptors:
            rows = np.arange(len(self.descriptors))
            self._mean_descriptors[device] = self._mean_of(rows, self.landmark_array, len(self.points), device)
        return self._mean_descriptors[device]

    def _mean_of(self, rows: np.ndarray, groups: np.ndarray, count: int, device: torch.device) -> Tensor:
        """Return the mean descriptors (count, C) of the groups (N,) of some rows (N,)."""
        if multiplies_int8(device):
            return torch.from_numpy(mean_descriptors(self.descriptors.numpy(), rows, groups, count))
        sums = torch.zeros(count, self.descriptors.shape[1], device=device)
        for some, part in zip(torch.from_numpy(rows).split(CONVERTED_AT_ONCE),
                              torch.from_numpy(groups).split(CONVERTED_AT_ONCE), strict=True):
            sums.index_add_(0, part.to(device), self.descriptors[some].to(device).float())
        return functional.normalize(sums, dim=1).to(product_type(device))

    @cached_property
    def _mean_descriptors(self) -> dict[torch.device, Tensor]:
        return {}

    @cached_property
    def _unit_descriptors(self) -> dict[torch.device, Tensor]:
        return {}

    @cached_property
    def points_array(self) -> np.ndarray:
        """The points (L, 3) as float64; those of a large database as they are in the file."""
        return self.points.numpy() if self.index is not None else self.points.numpy().astype(np.float64)

    @cached_property
    def pose_array(self) -> np.ndarray:
        """The poses (F, 4, 4) as float64."""
        return self.poses.numpy().astype(np.float64)

    @cached_property
    def landmark_array(self) -> np.ndarray:
        """The landmark (N,) of each observation; of a large database as in the file."""
        return self.landmarks.numpy() if self.index is not None else self.landmarks.numpy().astype(np.int64)

    @cached_property
    def observation_counts(self) -> np.ndarray:
        """The number of observations (L,) of each landmark."""
        return np.bincount(self.landmark_array, minlength=len(self.points))

    @cached_property
    def starts(self) -> np.ndarray:
        """`first` (F + 1,) as an array."""
        return self.first.numpy()

    @cached_property
    def depths_m(self) -> np.ndarray:
        """The median depth (F,) of the landmarks in each keyframe; 1 in keyframes without any."""
        if self.index is not None:
            return self.index.depths.numpy().astype(np.float64)
        keyframes = np.repeat(np.arange(len(self)), np.diff(self.starts))
        poses = self.pose_array[keyframes]
        depth = ((self.points_array[self.landmark_array] - poses[:, :3, 3]) * poses[:, :3, 2]).sum(1)
        parts = np.split(depth, self.starts[1:-1])
        return np.array([max(float(np.median(part)), 1e-6) if len(part) else 1.0 for part in parts])

    def pixels_of(self, keyframe: int) -> np.ndarray:
        """Return the pixels (n, 2) of a keyframe's observations; where a compact map has none, the projections of the
        landmarks."""
        part = slice(int(self.starts[keyframe]), int(self.starts[keyframe + 1]))
        stored = self.pixels[part].numpy()
        if len(stored) == 0 or not (stored == UNKNOWN_PIXEL).all():
            return stored.astype(np.float64) / PIXEL_SCALE
        camera = camera_of(self.intrinsics[keyframe].numpy(), self.sizes[keyframe].numpy())
        projected, _ = project_map_points(self.points_array[self.landmark_array[part]], camera,
                                          self.pose_array[keyframe])
        return projected

    def observations_of(self, keyframes: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return the observations (M,) of some keyframes, in the order of the keyframes.

        Raises UserError if one is damaged, which is noticed when it is first used in a large database.
        """
        if self.index is not None:
            self.index.verify(self, keyframes)
        ranges = [np.arange(self.starts[keyframe], self.starts[keyframe + 1]) for keyframe in keyframes]
        return np.concatenate(ranges) if ranges else np.zeros(0, np.int64)

    def first_observations(self, keyframes: Sequence[int] | np.ndarray) -> np.ndarray:
        """Return one observation (M,) for each landmark in some keyframes, that in the first of them, in order."""
        rows = self.observations_of(keyframes)
        seen, number = self.landmark_array[rows], np.arange(len(rows))
        if len(self.points) > _TABLE_LANDMARKS:
            return rows[np.sort(np.unique(seen, return_index=True)[1])]
        first = np.empty(len(self.points), np.int64)
        first[seen[::-1]] = number[::-1]            # of equal indices, the last one counts
        return rows[first[seen] == number]

    def distinct_landmarks(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the landmarks (L,) that some observations (M,) are of, ascending, and the position (M,) of each one's
        among them."""
        seen = self.landmark_array[rows]
        if len(self.points) > _TABLE_LANDMARKS:
            landmarks, position = np.unique(seen, return_inverse=True)
            return landmarks, position
        is_seen = np.zeros(len(self.points), bool)
        is_seen[seen] = True
        return np.flatnonzero(is_seen), (np.cumsum(is_seen) - 1)[seen]

    def nearest_keyframes(self, map_from_camera: np.ndarray, count: int) -> np.ndarray:
        """Return the keyframes (count,) that see most alike from a pose: near, in depths, and in direction."""
        distance = np.linalg.norm(self.pose_array[:, :3, 3] - map_from_camera[:3, 3], axis=1) / self.depths_m
        angle = np.arccos(np.clip(self.pose_array[:, :3, 2] @ map_from_camera[:3, 2], -1.0, 1.0))
        return np.argsort(distance + angle, kind="stable")[:count]


class UnitRows:
    """Descriptors that are converted to unit length when they are indexed by a tensor of rows."""

    def __init__(self, descriptors: Tensor, device: torch.device):
        self._descriptors, self._device = descriptors, device

    def __getitem__(self, rows: Tensor) -> Tensor:
        return _unit(self._descriptors[rows.cpu()], self._device)


def _unit(descriptors: Tensor, device: torch.device) -> Tensor:
    return functional.normalize(descriptors.to(device).float(), dim=1).to(product_type(device))


def _tensor_names() -> list[str]:
    return [entry.name for entry in fields(KeyframeDatabase) if entry.name != "index"]


def _inside(index: Tensor, size: int) -> bool:
    return len(index) == 0 or (int(index.min()) >= 0 and int(index.max()) < size)


def quantised(vectors: Tensor) -> Tensor:
    """Return vectors (N, C) of unit length as int8, times DESCRIPTOR_SCALE."""
    return (vectors.float() * DESCRIPTOR_SCALE).round().to(torch.int8)


def camera_of(intrinsics: np.ndarray, size: np.ndarray) -> Camera:
    """Return the pinhole camera of a keyframe, from its intrinsics (4,) and its width and height (2,)."""
    fx, fy, cx, cy = (float(value) for value in intrinsics)
    return Camera(width=int(size[0]), height=int(size[1]), fx=fx, fy=fy, cx=cx, cy=cy)
