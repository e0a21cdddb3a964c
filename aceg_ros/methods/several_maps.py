# SPDX-License-Identifier: Apache-2.0
"""Localizes in one of several maps: the present one as long as that works, else the two that look most alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from aceg_ros.camera import Frame
from aceg_ros.encoders.keypoints import Keypoints
from aceg_ros.encoders.preprocess import reject_image
from aceg_ros.errors import UserError
from aceg_ros.estimate import PoseEstimate, PriorPose, Status
from aceg_ros.maps.map_folder import ListedMap, list_maps
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.base import CompiledLocalizer
from aceg_ros.methods.registry import make_localizer

TRIED = 2                           # maps that an image is localized in
CHECK_EVERY = 10                    # images after which the present map is compared with the others, though it works
CLEARLY_MORE = 2.0                  # times the inliers: a pose in one map beside which one in another does not count


@runtime_checkable
class MapLocalizer(Protocol):
    """A localizer that also tells how similar an image is to its map."""

    def extract(self, frame: Frame) -> Keypoints: ...

    def greatest_similarity(self, query: Keypoints) -> float: ...

    def localize_keypoints(self, query: Keypoints) -> PoseEstimate: ...


@dataclass(frozen=True, kw_only=True)
class MapMember:
    """One of several maps. encoder: its identity; maps of the same share the keypoints of an image."""

    listed: ListedMap
    localizer: MapLocalizer
    encoder: str = ""


class SeveralMapsLocalizer:
    """A `Localizer` for several maps. Poses are in the common frame if it is known, else in that of the map.

    A pose in another map than the present one counts only if no other map explains the image nearly as well: floors may
    look alike.
    """

    def __init__(self, members: Sequence[MapMember]):
        self._members = list(members)
        self._present: MapMember | None = None
        self._since_check = 0

    @classmethod
    def load(cls, folder: Path, *, device: str = "auto", seed: int = 0) -> SeveralMapsLocalizer:
        """Load the maps of a folder. Raises UserError if one of them cannot be used, or has no keyframe database."""
        members = []
        for listed in list_maps(folder):
            scene_map = SceneMap.load(listed.path)
            localizer = make_localizer(scene_map, device, seed)
            if not isinstance(localizer, MapLocalizer):
                raise UserError(f"Map {listed.path} of method '{scene_map.method}' has no keyframe database, by which"
                                " one of several maps is found: map that scene with the default method.")
            members.append(MapMember(listed=listed, localizer=localizer,
                                     encoder=scene_map.network("encoder").identity))
        return cls(members)

    @property
    def present(self) -> str:
        """The name of the map that the last accepted image was localized in; empty if there was none."""
        return "" if self._present is None else self._present.listed.name

    def warm_up(self) -> None:
        """Use what one of the maps uses: the others use the same."""
        for member in self._members[:1]:
            if isinstance(member.localizer, CompiledLocalizer):
                member.localizer.warm_up()

    def localize(self, frame: Frame, prior: PriorPose | None = None) -> PoseEstimate:
        """Estimate the pose of the camera and its map, or reject the image; `prior` is not used."""
        rejection = reject_image(frame)
        if rejection is not None:
            return rejection
        keypoints: dict[str, Keypoints] = {}
        for member in self._members:
            if member.encoder not in keypoints:
                keypoints[member.encoder] = member.localizer.extract(frame)
        found: dict[str, PoseEstimate] = {}
        present = self._present
        if present is not None:
            found[present.listed.name] = present.localizer.localize_keypoints(keypoints[present.encoder])
            self._since_check += 1
            if found[present.listed.name].accepted and self._since_check < CHECK_EVERY:
                return _placed(found[present.listed.name], present.listed)
        self._since_check = 0
        similar = sorted(self._members, reverse=True,
                         key=lambda member: member.localizer.greatest_similarity(keypoints[member.encoder]))
        for member in similar[:TRIED]:
            if member.listed.name not in found:
                found[member.listed.name] = member.localizer.localize_keypoints(keypoints[member.encoder])
        return self._decide(found, similar)

    def _decide(self, found: dict[str, PoseEstimate], similar: Sequence[MapMember]) -> PoseEstimate:
        """Return the pose in the map that explains the image best, or a rejection."""
        accepted = sorted((member for member in similar if member.listed.name in found
                           and found[member.listed.name].accepted),
                          key=lambda member: -found[member.listed.name].inliers)
        if not accepted:
            first = similar[0].listed.name
            return replace(found[first], message=f"{found[first].message} (in map {first}, which looks most alike)")
        best = accepted[0]
        if len(accepted) > 1:
            counts = [found[member.listed.name].inliers for member in accepted[:2]]
            if counts[0] < CLEARLY_MORE * counts[1]:
                if self._present in accepted:           # nothing clearly contradicts it
                    best = next(member for member in accepted if member is self._present)
                else:
                    names = " and ".join(member.listed.name for member in accepted[:2])
                    return PoseEstimate(status=Status.AMBIGUOUS_POSE,
                                        message=f"the image fits {names}, with {counts[0]} and {counts[1]} inliers")
        self._present = best
        return _placed(found[best.listed.name], best.listed)


def _placed(estimate: PoseEstimate, listed: ListedMap) -> PoseEstimate:
    """Return the estimate in the common frame, or with the frame of its map."""
    message = f"{estimate.message} (in map {listed.name})"
    moved = listed.common_from_map
    if moved is None or estimate.map_from_camera is None or estimate.covariance is None:
        return replace(estimate, message=message, map_name=listed.name, map_frame=listed.frame)
    turn = np.kron(np.eye(2), moved[:3, :3])
    correspondences = estimate.correspondences
    if correspondences is not None:
        correspondences = replace(correspondences, points=correspondences.points @ moved[:3, :3].T + moved[:3, 3])
    return replace(estimate, message=message, map_name=listed.name, map_from_camera=moved @ estimate.map_from_camera,
                   covariance=turn @ estimate.covariance @ turn.T, correspondences=correspondences)
