# SPDX-License-Identifier: Apache-2.0
"""From images alone to a recording: select, find poses, scale, level, write."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from aceg_ros.camera import Camera, Frame
from aceg_ros.datasets import write_ace_scene
from aceg_ros.datasets.ace import check_new_recording
from aceg_ros.datasets.files import load_image
from aceg_ros.errors import UserError
from aceg_ros.reconstruction.gravity import Up, find_up
from aceg_ros.reconstruction.metric import Scale, ScaleSource, find_scale, level
from aceg_ros.reconstruction.selection import select_frames
from aceg_ros.reconstruction.sources import ImageSource, UnposedImage
from aceg_ros.reconstruction.structure import Structure, StructureOptions, find_structure, import_pycolmap
from aceg_ros.utils.atomic_file import write_json

MIN_IMAGES = 5
FEW_SHARE, SHORT_TRACK, LARGE_ERROR_PX = 0.5, 2.7, 1.5      # beyond which a sentence warns
SUMMARY_FILE = "reconstruction.json"
Progress = Callable[[str, int, int], None]                  # what is done, images done, images in all


@dataclass(frozen=True, kw_only=True)
class ReconstructionOptions:
    """max_images: number of images that are used at most; of more, evenly spread ones. camera: known intrinsics of all
    images; None: those of a bag's camera_info, or else estimated. scale: what tells the scale; None: nothing does. imu:
    topic of the accelerometer that tells up; empty: that of the bag, if it has one."""

    max_images: int = 200
    camera: Camera | None = None
    scale: ScaleSource | None = None
    imu: str = ""


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """How well it went.

    read: images of the source. used: images that were selected. posed: images with a pose. points: number of points.
    mean_error_px, mean_track: see `Structure`. models: number of parts that did not connect. focal_px: of the camera.
    field_of_view_deg: horizontal. scale, scale_known: where the scale is from, and whether anything told it. up: where
    the direction of gravity is from. warnings: sentences.
    """

    read: int
    used: int
    posed: int
    points: int
    mean_error_px: float
    mean_track: float
    models: int
    focal_px: float
    field_of_view_deg: float
    scale: str
    scale_known: bool
    up: str
    warnings: Sequence[str] = field(default_factory=tuple)

    def __str__(self) -> str:
        """Return two lines of text."""
        return (f"{self.posed} of {self.used} images have a pose ({self.read} were read), {self.points} points seen in"
                f" {self.mean_track:.1f} images on average, reprojection error {self.mean_error_px:.2f} px\n"
                f"focal length {self.focal_px:.0f} px ({self.field_of_view_deg:.0f} degrees wide); {self.scale};"
                f" {self.up}")


def reconstruct(source: ImageSource, output: Path, options: ReconstructionOptions, progress: Progress
                ) -> Reconstruction:
    """Find the poses of images, and write them as a recording that `aceg map` reads.

    Args:
        source: the images.
        output: folder to write, an ACE folder with the quality in reconstruction.json; it must not hold a recording.
        options: what is known.
        progress: called now and then.

    Raises:
        UserError: pycolmap is not installed, or the images do not give poses; the message says what to do.
    """
    import_pycolmap()                   # both known before minutes of reading
    check_new_recording(output)
    with tempfile.TemporaryDirectory(prefix="aceg_reconstruct_") as folder:
        workspace = Path(folder)
        images = workspace / "images"
        images.mkdir()
        progress("reading images", 0, source.count)
        used = _write_images(images, source, options, progress)
        if len(used) < MIN_IMAGES:
            raise UserError(f"{source.path} gives {len(used)} images that show something new: poses need {MIN_IMAGES}"
                            " at least. Move the camera sideways while filming, not only around itself.")
        structure = find_structure(images, [image.name for image in used], workspace,
                                   options=_known(used, source, options), progress=progress)
        if structure is None or len(structure.poses) < MIN_IMAGES:
            raise UserError(_failure(len(used), source))
        stamps = {image.name: image.stamp_s for image in used}
        bag = source if source.bag_options is not None else None
        scale = find_scale(structure, options.scale, images=images, stamps=stamps, bag=bag)
        up = find_up(structure, bag, stamps, options.imu)
        structure = level(structure, scale.metres_per_unit, up.direction)
        write_ace_scene(output, _frames(images, used, structure), "jpg")
    found = _quality(structure, (scale, up), source.count, len(used))
    write_json(asdict(found), output / SUMMARY_FILE)
    return found


@dataclass(frozen=True, kw_only=True)
class _Used:
    """An image that was written. name: of its file."""

    name: str
    stamp_s: float
    size: tuple[int, int]
    camera: Camera | None
    focal_px: float


def _write_images(folder: Path, source: ImageSource, options: ReconstructionOptions, progress: Progress) -> list[_Used]:
    """Select images and write them. Returns what is known of them, in order."""
    used: list[_Used] = []
    for image in select_frames(_counted(source, progress)) if source.is_video else _counted(source, progress):
        name = f"{len(used):06d}.jpg" if source.is_video else f"{image.name}.jpg"
        Image.fromarray(image.image).save(folder / name, quality=95, subsampling=0)
        height, width = image.image.shape[:2]
        used.append(_Used(name=name, stamp_s=image.stamp_s, size=(width, height), camera=image.camera,
                          focal_px=image.focal_px))
    if len(used) > options.max_images:
        used = [used[index] for index in np.linspace(0, len(used) - 1, options.max_images).astype(int)]
    return used


def _counted(source: Iterable[UnposedImage], progress: Progress) -> Iterator[UnposedImage]:
    count = getattr(source, "count", 0)
    for number, image in enumerate(source, 1):
        progress("reading images", min(number, count), count)
        yield image


def _known(used: Sequence[_Used], source: ImageSource, options: ReconstructionOptions) -> StructureOptions:
    sizes = {image.size for image in used}
    cameras = {image.camera for image in used}
    camera = options.camera or (used[0].camera if len(cameras) == 1 else None)
    shares = [image.focal_px / max(image.size) for image in used if image.focal_px]
    if camera is not None and (sizes != {(camera.width, camera.height)} or not camera.is_pinhole):
        raise UserError(f"The camera is for undistorted images of {camera.width}x{camera.height} pixels, the images"
                        f" have {' and '.join(f'{width}x{height}' for width, height in sorted(sizes)[:3])}.")
    one = len(sizes) == 1 and (not shares or np.ptp(shares) < 0.02 * np.median(shares))
    return StructureOptions(camera=camera, focal_share=float(np.median(shares)) if shares else 0.0, one_camera=one,
                            in_order=source.is_video)


def _failure(count: int, source: ImageSource) -> str:
    how = "film slowly and sideways, with light" if source.is_video else \
        "take each image a step beside the last one, so that most of what is seen stays in view"
    return (f"The {count} images of {source.path} do not give poses: too little of one is seen in another, or the"
            f" camera only turned. Show surfaces with texture, and {how}.")


def _frames(images: Path, used: Sequence[_Used], structure: Structure) -> Iterator[Frame]:
    for image in used:
        if image.name in structure.poses:
            yield Frame(image=load_image(images / image.name), camera=structure.cameras[image.name],
                        stamp_s=image.stamp_s, map_from_camera=structure.poses[image.name], name=image.name)


def _quality(structure: Structure, metric: tuple[Scale, Up], read: int, used: int) -> Reconstruction:
    scale, up = metric
    camera = next(iter(structure.cameras.values()))
    focal_px = float(np.median([each.fx for each in structure.cameras.values()]))
    posed = len(structure.poses)
    warnings = [up.warning] if up.warning else []
    if posed < FEW_SHARE * used:
        warnings.append(f"Only {posed} of {used} images have a pose: the others do not overlap enough with them.")
    if structure.models > 1:
        warnings.append(f"The images fell into {structure.models} parts that do not connect; the largest was kept.")
    if structure.mean_track < SHORT_TRACK:
        warnings.append(f"Points are seen in {structure.mean_track:.1f} images on average: more overlap would give"
                        " better poses.")
    if structure.mean_error_px > LARGE_ERROR_PX:
        warnings.append(f"The reprojection error of {structure.mean_error_px:.1f} px is large: the images may be"
                        " blurred, or the lens distorts more than the model can tell.")
    return Reconstruction(
        read=read, used=used, posed=posed, points=len(structure.points), mean_error_px=structure.mean_error_px,
        mean_track=structure.mean_track, models=structure.models, focal_px=focal_px,
        field_of_view_deg=math.degrees(2 * math.atan(camera.width / 2 / focal_px)), scale=scale.sentence,
        scale_known=scale.known, up=up.sentence, warnings=tuple(warnings))
