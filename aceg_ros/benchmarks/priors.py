# SPDX-License-Identifier: Apache-2.0
"""Localization with priors, right ones and wrong ones, beside localization without: time, recall, verdicts.

    python -m aceg_ros.benchmarks.priors MAP=SCENE [MAP=SCENE ...] [--every N] [--drift 0.1]

The images of each scene are localized in their order, five times: without a prior; with the last accepted pose carried
on by drifting odometry, as the node does it; with odometry that was moved by 3 units and 40 degrees for every image;
with the pose of a keyframe drawn at random; and with the true pose. Times are of the processor, for all that an image
takes. A verdict is worse if a right pose is lost, or a wrong one accepted that was not. No image is tried in other
views, which those with a prior are not.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from time import process_time
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.transform import Rotation

from aceg_ros.datasets import open_scene
from aceg_ros.estimate import PoseEstimate, PriorPose
from aceg_ros.geometry import pose_difference, pose_error
from aceg_ros.pose.odometry_gate import GatedPose, OdometryGate, OdometryGateConfig, Verdict
from aceg_ros.pose.prior_schedule import PriorSchedule
from aceg_ros.synthetic.odometry import DriftingOdometry

if TYPE_CHECKING:
    from aceg_ros.methods.keyframe_localizer import KeyframeLocalizer

RIGHT, WRONG = (0.25, 5.0), (0.5, 10.0)         # units of the scene, degrees
OFF, OFF_DEG = 3.0, 40.0                        # of priors that are wrong on purpose
SURE = np.diag(np.repeat([0.05**2, np.radians(2.0) ** 2], 3))
CHECK_EVERY = 10
INSIDE_95 = 12.59                               # squared Mahalanobis distance of 6 degrees of freedom


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How long an image took in ms, its verdict ("right", "poor", "wrong", "rejected"), whether no search was needed,
    and the distance of its position and the squared Mahalanobis distance of its pose from the truth; NaN without."""

    ms: float
    verdict: str
    tracked: bool
    error: tuple[float, float]


def verdict_of(estimate: PoseEstimate, truth: np.ndarray) -> str:
    """Return "rejected", or "right", "poor" or "wrong" by the error of the pose."""
    if estimate.map_from_camera is None:
        return "rejected"
    error = pose_error(estimate.map_from_camera, truth)
    if error[0] > WRONG[0] or error[1] > WRONG[1]:
        return "wrong"
    return "right" if error[0] < RIGHT[0] and error[1] < RIGHT[1] else "poor"


def error_of(estimate: PoseEstimate, truth: np.ndarray) -> tuple[float, float]:
    """Return the distance of the position from the truth, and the squared Mahalanobis distance of the pose."""
    if estimate.map_from_camera is None or estimate.covariance is None:
        return np.nan, np.nan
    error = pose_difference(estimate.map_from_camera, truth)
    return float(np.linalg.norm(error[:3])), float(error @ np.linalg.solve(estimate.covariance, error))


class RobotOdometry:
    """The prior as the node has it: the last accepted pose, carried on by odometry, but for one of ten images."""

    def __init__(self, drift: float) -> None:
        self._odometry, self._schedule = DriftingOdometry(drift), PriorSchedule(CHECK_EVERY)
        self._gate = OdometryGate(OdometryGateConfig(drift=max(drift, 0.1)))

    def prior(self, truth: np.ndarray, stamp_s: float) -> PriorPose | None:
        """Move to the true pose where the next image is taken, and return its prior."""
        self._odom_from_camera = self._odometry.update(truth)
        prior = self._gate.prior(self._odom_from_camera)
        self._had_prior = prior is not None and self._schedule.next_has_prior(stamp_s)
        return prior if self._had_prior else None

    def note(self, estimate: PoseEstimate, stamp_s: float) -> None:
        """Note the answer for that image."""
        if estimate.map_from_camera is None or estimate.covariance is None:
            return
        verdict = self._gate.update(GatedPose(map_from_camera=estimate.map_from_camera, covariance=estimate.covariance,
                                              odom_from_camera=self._odom_from_camera, stamp_s=stamp_s))
        self._schedule.note(agrees=verdict is not Verdict.PENDING, had_prior=self._had_prior)


def run(localizer: KeyframeLocalizer, scene: Path, keyframe_poses: np.ndarray, *, every: int, drift: float
        ) -> dict[str, list[Outcome]]:
    """Localize the images of a scene with each kind of prior. Returns the outcomes of each kind."""
    rng, robot, stream = np.random.default_rng(0), RobotOdometry(drift), localizer.for_stream()
    outcomes: dict[str, list[Outcome]] = {}
    for number, frame in enumerate(open_scene(scene, every)):
        truth = frame.map_from_camera
        assert truth is not None
        image = replace(frame, map_from_camera=None, depth_m=None)
        if number == 0:
            localizer.localize(image, _sure(truth))             # the first image takes longer
        priors = {"none": None, "odometry": robot.prior(truth, float(number)), "the truth": _sure(truth),
                  "off by 3, 40 deg": _sure(_moved(truth, rng)),
                  "a keyframe": _sure(keyframe_poses[rng.integers(len(keyframe_poses))])}
        for kind, prior in priors.items():
            started = process_time()
            estimate = (stream if kind == "odometry" else localizer).localize(image, prior)
            outcomes.setdefault(kind, []).append(Outcome(
                ms=(process_time() - started) * 1e3, verdict=verdict_of(estimate, truth),
                tracked="track" in estimate.stage_ms and "solve" not in estimate.stage_ms,
                error=error_of(estimate, truth)))
            if kind == "odometry":
                robot.note(estimate, float(number))
    return outcomes


def _sure(pose: np.ndarray) -> PriorPose:
    return PriorPose(map_from_camera=pose, covariance=SURE)


def _moved(pose: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    step, turn = (vector / np.linalg.norm(vector) for vector in rng.normal(size=(2, 3)))
    moved = pose.copy()
    moved[:3, 3] += OFF * step
    moved[:3, :3] = Rotation.from_rotvec(np.radians(OFF_DEG) * turn).as_matrix() @ pose[:3, :3]
    return moved


def table_rows(name: str, outcomes: dict[str, list[Outcome]]) -> Iterable[str]:
    """Yield a row for each kind of prior, compared with none."""
    alone = [outcome.verdict for outcome in outcomes["none"]]
    for kind, found in outcomes.items():
        verdicts = [outcome.verdict for outcome in found]
        pairs = list(zip(alone, verdicts, strict=True))
        worse = sum(new != old and (old == "right" or new == "wrong") for old, new in pairs)
        better = sum(new != old and (new == "right" or old == "wrong") for old, new in pairs)
        p50, p90, p99 = np.percentile([outcome.ms for outcome in found], (50, 90, 99))
        off, squared = np.array([outcome.error for outcome in found if outcome.verdict != "rejected"]).reshape(-1, 2).T
        yield (f"| {name} | {kind} | {sum(outcome.tracked for outcome in found)} of {len(found)} | {p50:.1f} |"
               f" {p90:.1f} | {p99:.1f} | {verdicts.count('right') / len(found):.3f} |"
               f" {len(found) - verdicts.count('rejected')} | {verdicts.count('wrong')} | {better} | {worse} |"
               f" {np.median(off) if len(off) else np.nan:.4f} |"
               f" {(squared < INSIDE_95).mean() if len(off) else np.nan:.2f} |")


def main(arguments: list[str] | None = None) -> int:
    from aceg_ros.maps.keyframe_database import SECTION, KeyframeDatabase
    from aceg_ros.maps.scene_map import SceneMap
    from aceg_ros.methods.keyframe_localizer import KeyframeLocalizer
    from aceg_ros.methods.landmark_search import KeyframeLocalizerConfig
    from aceg_ros.methods.scene_coordinates import encoder_of

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+", metavar="MAP=SCENE")
    parser.add_argument("--every", type=int, default=1, help="localize every n-th image")
    parser.add_argument("--drift", type=float, default=0.1, help="error of the odometry as a fraction of the motion")
    options = parser.parse_args(arguments)
    print("| scene | prior | without search | p50 ms | p90 | p99 | right | accepted | wrong | better | worse |"
          " median error | inside 95 % |")
    print("|---" * 13 + "|")
    for pair in options.pairs:
        map_path, scene = map(Path, pair.split("=", 1))
        scene_map = SceneMap.load(map_path)
        localizer = KeyframeLocalizer(
            encoder=encoder_of(scene_map, "cpu"), database=KeyframeDatabase.from_section(scene_map.sections[SECTION]),
            config=KeyframeLocalizerConfig(covariance_scale=scene_map.covariance_scale, other_views=False))
        poses = scene_map.sections["database"]["poses"].numpy().astype(np.float64)
        outcomes = run(localizer, scene, poses, every=options.every, drift=options.drift)
        name = scene.parent.name if scene.name in ("mapping", "query") else scene.name
        for row in table_rows(name, outcomes):
            print(row, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
