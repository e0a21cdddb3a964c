# SPDX-License-Identifier: Apache-2.0
"""Tries an image that was rejected in other views: smaller, or turned.

Encoders know images as they were taken for mapping. Of a tele lens' image, one that is out of focus, or one of a camera
that lies on its side, another view has the keypoints that the map has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from aceg_ros.camera import Frame
from aceg_ros.encoders.base import Encoder
from aceg_ros.encoders.image_views import ImageView
from aceg_ros.encoders.keypoints import Keypoints
from aceg_ros.encoders.preprocess import PreparedImage, prepare
from aceg_ros.estimate import PoseEstimate

HALF_SIZE = ImageView(scale=0.5)
COMPARED_TOGETHER_DEG = ((45.0, -45.0), (90.0, -90.0, 180.0))       # rolls, in a stream
ROLLS_DEG = (*COMPARED_TOGETHER_DEG[0], *COMPARED_TOGETHER_DEG[1])

# Estimates the pose of the camera of a view, given its keypoints.
LocalizeView = Callable[[Keypoints, ImageView], PoseEstimate]


@dataclass(frozen=True, kw_only=True)
class OtherViews:
    """Tries other views of images.

    encoder: of the map. similarity: of an image's keypoints to the map. keypoints: largest number that a view is
    localized with. compared_keypoints: with which its similarity is computed.
    """

    encoder: Encoder
    similarity: Callable[[Keypoints], float]
    keypoints: int
    compared_keypoints: int

    def localize(self, frame: Frame, localize: LocalizeView) -> PoseEstimate | None:
        """Localize an image, which must have passed `reject_image`, by all other views: at half of its size, then
        turned by the angle at which it is most similar to the map, if it is more so than upright. Returns what was
        accepted, or None."""
        prepared = prepare(frame, self.encoder.short_side_px, self.encoder.stride)
        smaller = HALF_SIZE.extract(prepared, self.encoder, self.keypoints)
        found = _accepted(HALF_SIZE, localize(smaller, HALF_SIZE), frame)
        if found is not None:
            return found
        turned = self._most_similar_turn(prepared, smaller, ROLLS_DEG)
        return None if turned is None else self._try(turned, prepared, frame, localize)

    def localize_by(self, view: ImageView, frame: Frame, localize: LocalizeView) -> PoseEstimate | None:
        """Localize an image, which must have passed `reject_image`, by one view."""
        return self._try(view, prepare(frame, self.encoder.short_side_px, self.encoder.stride), frame, localize)

    def most_similar_turn(self, frame: Frame, rolls_deg: Sequence[float]) -> ImageView | None:
        """Return that one of some turns at which an image is most similar to the map, if it is more so than upright."""
        prepared = prepare(frame, self.encoder.short_side_px, self.encoder.stride)
        upright = HALF_SIZE.extract(prepared, self.encoder, self.compared_keypoints)
        return self._most_similar_turn(prepared, upright, rolls_deg)

    def _try(self, view: ImageView, prepared: PreparedImage, frame: Frame, localize: LocalizeView
             ) -> PoseEstimate | None:
        return _accepted(view, localize(view.extract(prepared, self.encoder, self.keypoints), view), frame)

    def _most_similar_turn(self, prepared: PreparedImage, upright: Keypoints, rolls_deg: Sequence[float]
                           ) -> ImageView | None:
        """All are compared at half of the size: that is a quarter of the work. upright: the keypoints in that size."""
        of_rolls = {roll: self.similarity(replace(HALF_SIZE, roll_deg=roll).extract(
            prepared, self.encoder, self.compared_keypoints)) for roll in rolls_deg}
        roll = max(of_rolls, key=lambda angle: of_rolls[angle])
        return ImageView(roll_deg=roll) if of_rolls[roll] > self.similarity(upright) else None


class ViewsInTurn:
    """Takes one step of `OtherViews.localize` with each image of a stream that is rejected: all of them would take so
    long that the images after it are late. First it is tried smaller, then some turns are compared, then the best of
    these is tried. A view that was accepted is the first to be tried again. What is tried depends on the images before
    alone, not on any clock.
    """

    def __init__(self, views: OtherViews):
        self._views = views
        self._turn: ImageView | None = None         # to be tried next
        self._step, self._steps = 0, (None, *COMPARED_TOGETHER_DEG)

    def localize(self, frame: Frame, localize: LocalizeView) -> PoseEstimate | None:
        """Take the next step with an image, which must have passed `reject_image`."""
        rolls_deg = self._steps[self._step]
        if self._turn is None and rolls_deg is not None:
            self._turn = self._views.most_similar_turn(frame, rolls_deg)
            if self._turn is None:
                self._advance()
            return None
        found = self._views.localize_by(self._turn or HALF_SIZE, frame, localize)
        if found is None:
            self._advance()
        return found

    def _advance(self) -> None:
        self._turn, self._step = None, (self._step + 1) % len(self._steps)


def _accepted(view: ImageView, estimate: PoseEstimate, frame: Frame) -> PoseEstimate | None:
    """Return what was found with a view as an estimate for the image itself, if it was accepted."""
    if not estimate.accepted:
        return None
    in_image = view.to_image(estimate, frame.camera.rectified())
    return replace(in_image, message=f"{estimate.message}, in the image {view}")
