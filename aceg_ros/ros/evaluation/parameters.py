# SPDX-License-Identifier: Apache-2.0
"""The parameters of the evaluation node, except those of the scene (aceg_ros.ros.players.scene_player)."""

from __future__ import annotations

from dataclasses import dataclass

from aceg_ros.ros.common.parameters import not_empty, parameter


@dataclass(frozen=True, kw_only=True)
class EvaluationParameters:
    map: str = parameter("", "Path of the map file that the localizer uses.", read_only=True, check=not_empty)
    output: str = parameter("evaluation", "Folder that evaluation.json and report.html are written to.", read_only=True)
    result_timeout: float = parameter(
        15.0, "Time in seconds without a result of the localizer, in addition to the longest pause of the recording, "
        "after which the evaluation ends.", minimum=1.0, maximum=3600.0, read_only=True, old_name="silence")
    speed: float = parameter(
        1.0, "Playback speed of the player in recorded seconds per second; latencies are divided by it.",
        minimum=0.01, maximum=100.0, read_only=True)
    device: str = parameter("auto", "Device that the offline evaluation runs on; auto takes the GPU if there is one.",
                            choices=("auto", "cpu", "cuda"), read_only=True)
    seed: int = parameter(0, "Seed of the random draws of the pose solver.", minimum=0, maximum=2**31 - 1,
                          read_only=True)
