# SPDX-License-Identifier: Apache-2.0
"""Turn the request of a rig into what its localizer takes, and its estimate into that of one image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from builtin_interfaces.msg import Time

from aceg_ros.camera import Frame
from aceg_ros.errors import UserError
from aceg_ros.estimate import PoseEstimate, Status
from aceg_ros.rig import Rig, RigEstimate, RigFrame, ViewShare
from aceg_ros.ros.common.messages import frame_from_messages
from aceg_ros.ros.common.transform_lookup import normalize_frame_id
from aceg_ros.ros.localizer.results import LocalizationRequest

Mount = Callable[[str, Time], np.ndarray]       # TF frame of a camera, stamp -> base_from_camera (4, 4), or UserError


def rig_frame(request: LocalizationRequest, mount: Mount) -> tuple[RigFrame, dict[str, str]]:
    """Decode the images of a request. Returns them, and why cameras were left out, by name.

    Raises UserError, with all reasons, if no camera is left.
    """
    frames: dict[str, Frame] = {}
    mounts: dict[str, np.ndarray] = {}
    problems: dict[str, str] = {}
    for name, view in request.views.items():
        try:
            header = view.image.header
            frame = frame_from_messages(view.image, view.camera_info, view.rectified)
            mounts[name] = mount(normalize_frame_id(header.frame_id), header.stamp)
            frames[name] = frame
        except UserError as error:
            problems[name] = str(error)
    if not frames:
        raise UserError(_told(problems))
    return RigFrame(rig=Rig(rig_from_camera=mounts), frames=frames), problems


def with_problems(found: RigEstimate, problems: dict[str, str]) -> RigEstimate:
    """Add the cameras that were left out before, with the reasons."""
    return replace(found, views={**found.views, **{name: ViewShare(problem=why) for name, why in problems.items()}})


def base_estimate(found: RigEstimate) -> PoseEstimate:
    """Return the estimate of the base, with a message that tells the share of each camera."""
    shares = [f"{name} {share.inliers}" for name, share in found.views.items() if not share.problem]
    problems = {name: share.problem for name, share in found.views.items() if share.problem}
    message = f"{found.base.message}; inliers: {', '.join(shares)}" if shares and found.accepted else found.base.message
    return replace(found.base, message=f"{message}. {_told(problems)}" if problems else message)


NO_RIG_LOCALIZER = PoseEstimate(status=Status.NO_CONSENSUS, message="The map cannot localize several cameras.")


def _told(problems: dict[str, str]) -> str:
    return " ".join(f"Camera {name} was left out: {problem.rstrip('.')}." for name, problem in problems.items())
