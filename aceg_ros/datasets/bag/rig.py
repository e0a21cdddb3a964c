# SPDX-License-Identifier: Apache-2.0
"""Recordings of rigs: the images of several cameras in a bag, put together by their stamps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from aceg_ros.camera import Frame
from aceg_ros.datasets.bag.messages import frame_name
from aceg_ros.datasets.bag.options import BagOptions
from aceg_ros.datasets.bag.reader import BagEntry, list_entries
from aceg_ros.datasets.bag.recording import Recording, can_read
from aceg_ros.datasets.bag.topics import odometry_child_frame
from aceg_ros.datasets.scene import SkippedFrame, grouped_reasons
from aceg_ros.errors import UserError
from aceg_ros.geometry import invert
from aceg_ros.rig import Rig, RigFrame
from aceg_ros.utils.image_sets import ImageSet, ImageSynchronizer
from aceg_ros.utils.stamps import ns_to_s, s_to_ns

DEFAULT_TOLERANCE_S = 0.02


@dataclass(frozen=True, kw_only=True)
class RigOptions:
    """Cameras of a rig in a bag.

    topics: image topic of each camera, by its name. base: TF frame that the cameras are mounted on, whose pose is
    found. tolerance_s: largest difference of the stamps of images that were taken at one moment.
    """

    topics: dict[str, str]
    base: str
    tolerance_s: float = DEFAULT_TOLERANCE_S


def camera_names(topics: Sequence[str]) -> dict[str, str]:
    """Return a name for the camera of each image topic: what the topics do not have in common, as front of
    /front/image and /rear/image.

    Raises UserError if a topic is named twice.
    """
    if len(set(topics)) != len(topics):
        raise UserError(f"A topic of images is named twice: {', '.join(topics)}.")
    parts = [topic.strip("/").split("/") for topic in topics]
    shared = set(parts[0]).intersection(*parts[1:]) if len(parts) > 1 else set(parts[0][1:])
    names = ["/".join(part for part in one if part not in shared) for one in parts]
    unique = len(set(names)) == len(names) and all(names)
    return dict(zip(names if unique else topics, topics, strict=True))


class RigScene:
    """The moments of a recording in the order in which they were taken. Iterating decodes them one by one.

    skipped: images that were left out so far, with the reason.
    """

    def __init__(self, name: str, sets: Sequence[ImageSet[BagEntry]], base: str) -> None:
        self.name, self._sets, self._base = name, sets, base
        self.skipped: list[SkippedFrame] = []

    def __len__(self) -> int:
        return len(self._sets)

    def __iter__(self) -> Iterator[RigFrame]:
        """Yield the moments of which an image and the pose of the base can be used. Raises UserError if none can."""
        self.skipped, count = [], 0
        for moment in self._sets:
            frame = self._load(moment)
            if frame is not None:
                count += 1
                yield frame
        if not count:
            reasons = " ".join(grouped_reasons([skipped.reason for skipped in self.skipped]))
            raise UserError(f"Recording {self.name} has no usable moment among {len(self)}: {reasons}")

    def images(self) -> RigImages:
        """Return the images as posed frames of single cameras, as mapping takes them."""
        return RigImages(self)

    def _load(self, moment: ImageSet[BagEntry]) -> RigFrame | None:
        frames: dict[str, Frame] = {}
        mounts: dict[str, np.ndarray] = {}
        pose = None
        for name, entry in moment.images.items():
            try:
                stamp_ns = entry.header.stamp_ns
                base = entry.poses.at(stamp_ns, self._base)
                mounts[name] = invert(base) @ entry.poses.at(stamp_ns, entry.header.frame_id)
                frames[name] = replace(entry.load(), name=f"{entry.name}_{name}")
                pose = base if pose is None else pose           # that at the first stamp, which is that of the moment
            except UserError as error:
                mounts.pop(name, None)
                self.skipped.append(SkippedFrame(name=f"{entry.name}_{name}", reason=str(error)))
        if pose is None:
            return None
        stamp_s = ns_to_s(moment.stamp_ns)
        return RigFrame(rig=Rig(rig_from_camera=mounts), frames=frames, stamp_s=stamp_s, map_from_rig=pose,
                        name=f"{stamp_s:.6f}")


class RigImages:
    """The images of a `RigScene` one by one, as a scene of posed frames."""

    def __init__(self, scene: RigScene) -> None:
        self._scene, self.name = scene, scene.name

    def __len__(self) -> int:
        return sum(len(moment.images) for moment in self._scene._sets)

    def __iter__(self) -> Iterator[Frame]:
        for moment in self._scene:
            yield from moment.posed_frames()

    @property
    def skipped(self) -> list[SkippedFrame]:
        return self._scene.skipped


def open_rig(path: Path | str, rig: RigOptions, every: int = 1, bag_options: BagOptions | None = None) -> RigScene:
    """Open a bag as the recording of a rig.

    Poses are those of the base: from TF (`BagOptions.tf`, whose camera is not used), or from a topic, whose poses are
    of the base unless `pose_of` or odometry name another frame. Where the cameras are mounted is taken from TF.

    Raises:
        UserError: if the path is not a bag, topics are missing, or there are no images.
    """
    path, options = Path(path), bag_options or BagOptions()
    if not path.exists() or not can_read(path):
        raise UserError(f"{path} is not a ROS bag: rigs of cameras are read from bags.")
    base = frame_name(rig.base)
    if options.tf is not None:
        options = replace(options, tf=(options.tf[0], ""))
    elif not options.pose_of:
        with Recording(path) as recording:
            options = replace(options, pose_of=odometry_child_frame(recording, options.pose_topic) or base)
    synchronizer: ImageSynchronizer[BagEntry] = ImageSynchronizer(list(rig.topics), s_to_ns(rig.tolerance_s))
    entries = [(entry.header.stamp_ns, name, entry) for name, topic in rig.topics.items()
               for entry in list_entries(path, replace(options, image=topic, camera_info=""))]
    sets: list[ImageSet[BagEntry]] = []
    for stamp_ns, name, entry in sorted(entries, key=lambda one: one[:2]):
        sets += synchronizer.add(name, stamp_ns, entry)
    sets += synchronizer.flush()
    if not sets:
        raise UserError(f"The bag {path} has no images on {', '.join(rig.topics.values())}.")
    return RigScene("/".join(path.resolve().parts[-2:]), sets[::every], base)
