# SPDX-License-Identifier: Apache-2.0
"""Poses of images by pycolmap: SIFT features, matches of neighbours and of similar images, incremental mapping."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from aceg_ros.camera import Camera
from aceg_ros.errors import UserError
from aceg_ros.geometry import invert
from aceg_ros.mapping.build_database import train_vocabulary
from aceg_ros.maps.retrieval import assign_words

EXHAUSTIVE_IMAGES = 60              # up to so many images, all pairs are matched
NEIGHBOURS, SIMILAR_IMAGES = 8, 10  # that an image is matched with: after it, and most similar anywhere
WORDS, SAMPLED_FEATURES = 512, 400  # of the vocabulary, and of each image for it
MAX_IMAGE_PX = 1600
RELAXED = {"init_min_num_inliers": 40, "init_min_tri_angle": 6.0, "abs_pose_min_num_inliers": 20}
MIN_MODEL_IMAGES = 5


@dataclass(frozen=True, kw_only=True)
class StructureOptions:
    """camera: the known intrinsics of all images, None if they are to be estimated. focal_share: an approximate focal
    length to begin with, as a share of the image's longer side; 0: none is known. one_camera: whether all images are of
    one camera. in_order: whether neighbours overlap, as in a video."""

    camera: Camera | None = None
    focal_share: float = 0.0
    one_camera: bool = True
    in_order: bool = True


@dataclass(frozen=True, kw_only=True)
class Structure:
    """The posed images, by name, in units of their own.

    poses: map_from_camera (4, 4). cameras: of each. points: (T, 3). depths: median depth of the points in each image.
    observations: (N, 3) of each image, the pixels at which it sees points, and their depths.
    mean_error_px: reprojection error. mean_track: images that see a point. models: number of parts that did not
    connect, this one included.
    """

    poses: dict[str, np.ndarray]
    cameras: dict[str, Camera]
    points: np.ndarray
    depths: dict[str, float]
    mean_error_px: float
    mean_track: float
    models: int
    observations: dict[str, np.ndarray] = field(default_factory=dict, repr=False)


def import_pycolmap() -> Any:
    """Import pycolmap. Raises UserError if it is not installed."""
    try:
        import pycolmap
    except ImportError:
        raise UserError("Structure from motion needs pycolmap: pip install 'aceg_ros[colmap]'.") from None
    pycolmap.logging.minloglevel = pycolmap.logging.FATAL
    return pycolmap


def find_structure(folder: Path, names: Sequence[str], workspace: Path, *, options: StructureOptions,
                   progress: Callable[[str, int, int], None]) -> Structure | None:
    """Find the poses of the images `names` in a folder.

    Args:
        folder: of the image files.
        names: of the files, in the order in which they were taken.
        workspace: folder for COLMAP's files.
        options: what is known of the images.
        progress: called with a sentence, and how many images of how many are done.

    Returns:
        The largest part of the images that connects, or None if none do.
    """
    pycolmap = import_pycolmap()
    database = workspace / "database.db"
    database.unlink(missing_ok=True)
    threads = int(os.environ.get("OMP_NUM_THREADS", "-1"))
    progress("finding features", 0, len(names))
    _extract(pycolmap, database, folder, names, options=options, threads=threads)
    pairs = image_pairs(_descriptors(pycolmap, database, names), in_order=options.in_order)
    progress(f"matching {len(pairs)} pairs", 0, len(names))
    _match(pycolmap, database, workspace / "pairs.txt", [(names[a], names[b]) for a, b in pairs], threads=threads)
    for relaxed in ({}, RELAXED):           # the second time with less evidence
        models = _map(pycolmap, database, folder, workspace, count=len(names), known=options.camera is not None,
                      relaxed=relaxed, progress=progress, threads=threads)
        if models:
            break
    if not models:
        return None
    return _structure(max(models, key=lambda model: model.num_reg_images()), len(models))


def image_pairs(descriptors: Sequence[torch.Tensor], *, in_order: bool) -> list[tuple[int, int]]:
    """Choose the pairs (a, b), a < b, of images to match, given the descriptors (N, 128) of each: all of few images,
    else neighbours in time (also at distances that double) and those most similar, which close loops."""
    count = len(descriptors)
    if count <= EXHAUSTIVE_IMAGES:
        return [(a, b) for a in range(count) for b in range(a + 1, count)]
    pairs = set()
    if in_order:
        steps = sorted({*range(1, NEIGHBOURS + 1), *(2**power for power in range(3, 8))})
        pairs = {(a, a + step) for a in range(count) for step in steps if a + step < count}
    sample = torch.cat([each[:SAMPLED_FEATURES] for each in descriptors])
    vocabulary = train_vocabulary(sample, WORDS, 0)
    histograms = torch.stack([torch.bincount(assign_words(each, vocabulary), minlength=len(vocabulary)).float()
                              for each in descriptors])
    rarity = torch.log((1.0 + count) / (1.0 + (histograms > 0).sum(0)))
    weighted = functional.normalize(histograms.sqrt() * rarity, dim=1)
    similar = weighted @ weighted.T
    similar.fill_diagonal_(-1.0)
    nearest = similar.topk(min(SIMILAR_IMAGES, count - 1), dim=1).indices.tolist()
    return sorted(pairs | {(min(a, b), max(a, b)) for a, row in enumerate(nearest) for b in row})


def _extract(pycolmap: Any, database: Path, folder: Path, names: Sequence[str], *, options: StructureOptions,
             threads: int) -> None:
    reader = pycolmap.ImageReaderOptions()
    if options.camera is not None:
        camera = options.camera         # COLMAP's origin is the corner of the first pixel
        reader.camera_model = "PINHOLE"
        reader.camera_params = f"{camera.fx},{camera.fy},{camera.cx + 0.5},{camera.cy + 0.5}"
    elif options.focal_share:
        reader.default_focal_length_factor = options.focal_share
    extraction = pycolmap.FeatureExtractionOptions()
    extraction.num_threads, extraction.max_image_size = threads, MAX_IMAGE_PX
    mode = pycolmap.CameraMode.SINGLE if options.one_camera else pycolmap.CameraMode.PER_IMAGE
    pycolmap.extract_features(database, folder, image_names=list(names), camera_mode=mode, reader_options=reader,
                              extraction_options=extraction, device=pycolmap.Device.cpu)


def _descriptors(pycolmap: Any, database: Path, names: Sequence[str]) -> list[torch.Tensor]:
    """Return the descriptors (N, 128) of each image, of unit length."""
    with pycolmap.Database.open(database) as opened:
        numbers = {image.name: image.image_id for image in opened.read_all_images()}
        found = []
        for name in names:
            stored = opened.read_descriptors(numbers[name]) if name in numbers else np.zeros((0, 128), np.uint8)
            data = torch.from_numpy(np.array(getattr(stored, "data", stored))).float().reshape(-1, 128)
            found.append(functional.normalize(data, dim=1))
    return found


def _match(pycolmap: Any, database: Path, listing: Path, pairs: Sequence[tuple[str, str]], *, threads: int
           ) -> None:
    listing.write_text("".join(f"{a} {b}\n" for a, b in pairs))
    matching = pycolmap.FeatureMatchingOptions()
    matching.num_threads = threads
    pairing = pycolmap.ImportedPairingOptions()
    pairing.match_list_path = listing
    pycolmap.match_image_pairs(database, matching_options=matching, pairing_options=pairing,
                               device=pycolmap.Device.cpu)


def _map(pycolmap: Any, database: Path, folder: Path, workspace: Path, *, count: int, known: bool,
         relaxed: dict[str, float], progress: Callable[[str, int, int], None], threads: int) -> list[Any]:
    """Run incremental mapping. Returns the models."""
    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads, options.min_model_size = threads, MIN_MODEL_IMAGES
    options.extract_colors, options.random_seed = False, 0
    options.ba_refine_focal_length = options.ba_refine_extra_params = not known
    for name, value in relaxed.items():
        setattr(options.mapper, name, value)
    posed = [2]

    def count_image() -> None:
        posed[0] += 1
        progress("finding poses", min(posed[0], count), count)

    progress("finding poses", 0, count)
    output = workspace / "models"
    output.mkdir(exist_ok=True)
    return list(pycolmap.incremental_mapping(database, folder, output, options=options,
                                             next_image_callback=count_image).values())


def _structure(model: Any, models: int) -> Structure:
    poses, cameras, depths, observations = {}, {}, {}, {}
    points = {number: point.xyz for number, point in model.points3D.items()}
    for image in model.images.values():
        if not image.has_pose:
            continue
        camera_from_map = np.eye(4)
        camera_from_map[:3] = image.cam_from_world().matrix()
        poses[image.name] = invert(camera_from_map)
        cameras[image.name] = camera_of(model.cameras[image.camera_id])
        own = [point for point in image.points2D if point.has_point3D()]
        seen = np.array([points[point.point3D_id] for point in own]).reshape(-1, 3)
        depth = seen @ camera_from_map[2, :3] + camera_from_map[2, 3]
        pixels = np.array([point.xy for point in own]).reshape(-1, 2) - 0.5         # COLMAP's begin at the corner
        observations[image.name] = np.column_stack([pixels, depth])
        depths[image.name] = float(np.median(depth)) if len(depth) else float("nan")
    return Structure(poses=poses, cameras=cameras, points=np.array(list(points.values())).reshape(-1, 3),
                     depths=depths, observations=observations, models=models,
                     mean_error_px=float(model.compute_mean_reprojection_error()),
                     mean_track=float(model.compute_mean_track_length()))


def camera_of(camera: Any) -> Camera:
    """Convert a camera of COLMAP; the centre of its first pixel is (0.5, 0.5)."""
    params = [float(value) for value in camera.params]
    if camera.model_name == "PINHOLE":
        fx, fy, cx, cy = params
        return Camera(width=camera.width, height=camera.height, fx=fx, fy=fy, cx=cx - 0.5, cy=cy - 0.5)
    focal, cx, cy, radial = params                      # SIMPLE_RADIAL
    return Camera(width=camera.width, height=camera.height, fx=focal, fy=focal, cx=cx - 0.5, cy=cy - 0.5,
                  model="plumb_bob", distortion=(radial, 0.0, 0.0, 0.0))
