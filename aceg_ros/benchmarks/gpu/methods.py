# SPDX-License-Identifier: Apache-2.0
"""Checks of the other methods on a device: mapping for a short time, and localization.

Where no weights ship, those of small random networks are taken: they find no pose, but run what real ones run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from aceg_ros.benchmarks.gpu.session import Outcome, Results, Session, localization_results
from aceg_ros.encoders.base import load_encoder
from aceg_ros.evaluation.metrics import FrameResult
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.marepo import as_marepo_map
from aceg_ros.methods.registry import make_localizer
from aceg_ros.networks.keypoint_relative_pose import KeypointPoseConfig, KeypointPoseNet
from aceg_ros.networks.map_code_transformer import TransformerHead, TransformerHeadConfig
from aceg_ros.networks.pose_regressor import load_pose_regressor, save_pose_regressor
from aceg_ros.networks.regressor import save_regressor
from aceg_ros.networks.relative_pose import RelativePoseConfig, RelativePoseNet
from aceg_ros.networks.relative_pose_file import PUBLISHED, save_keypoint_network
from aceg_ros.networks.weighing_transformer import WeighingConfig, WeighingTransformer
from aceg_ros.networks.weights_file import write_weights

MIN_RECALL = 0.8
HEAD_S, SHORT_S = 25.0, 4.0             # budgets of maps
SMALL_HEAD = TransformerHeadConfig(dim_in=128, num_blocks=2, num_attention_heads=2, dim_emb=32, mlp_ratio=1.0,
                                   final_mlp_ratio=1.0, unit_features=True)
SMALL_POSE = WeighingConfig(width=32, heads=4, layers=2, group=1)
SMALL_IMAGE_PAIR = RelativePoseConfig(patch_size=16, enc_embed_dim=64, enc_depth=1, enc_num_heads=1, dec_embed_dim=64,
                                      dec_depth=1, dec_num_heads=1)
SMALL_KEYPOINT_PAIR = KeypointPoseConfig(width=32, blocks=1, heads=2, keypoints=400, matches=96, frequencies=2)


def check_trained_head(session: Session) -> Outcome:
    """Map with a head that is trained for a short time, and localize in that map."""
    results, scene_map = _mapped(session, "ace", HEAD_S)
    session.head_map = scene_map
    found = session.localize(make_localizer(scene_map, session.device).localize)
    results |= {"iterations": scene_map.statistics.iterations, **localization_results(found)}
    return Outcome(results=results, problems=[] if session.quick else _problems(found))


def check_landmark_regressor(session: Session) -> Outcome:
    """Map with codes for the shipped regressor, and localize in that map."""
    results, scene_map = _mapped(session, "ace_g", HEAD_S, codes=2048)
    found = session.localize(make_localizer(scene_map, session.device).localize)
    return Outcome(results={**results, **localization_results(found)},
                   problems=[] if session.quick else _problems(found))


def check_published_regressor(session: Session) -> Outcome:
    """Optimise a code for a small random regressor of the published kind."""
    torch.manual_seed(0)
    path = _file(session, "regressor")
    save_regressor(TransformerHead(SMALL_HEAD), "", path, codes=64)
    results, scene_map = _mapped(session, "ace_g", SHORT_S, regressor=str(path), encoder="compact")
    return _with_random_network(session, scene_map, {**results, "iterations": scene_map.statistics.iterations})


def check_cross_image_regressor(session: Session) -> Outcome:
    """Map for the shipped cross-image regressor, and localize in that map, with keyframes at once and each alone."""
    results, problems = {}, []
    for fusion in ("early", "late"):
        mapped, scene_map = _mapped(session, "sacreg", HEAD_S, fusion=fusion)
        found = session.localize(make_localizer(scene_map, session.device).localize)
        results[fusion] = {**mapped, **localization_results(found)}
        problems += _problems(found)
    return Outcome(results=results, problems=problems)


def check_matched_relative_poses(session: Session) -> Outcome:
    """Map few keyframes, and localize by all matches, and by those that the shipped network takes for right."""
    results: Results = {}
    problems: list[str] = []
    for source in ("matches", "network"):
        mapped, scene_map = _mapped(session, "reloc3r", SHORT_S, keyframes=12, relative_pose=source)
        found = session.localize(make_localizer(scene_map, session.device).localize)
        results[source] = {**mapped, **localization_results(found)}
        problems += _wrong(found)
    return Outcome(results=results, problems=problems)


def check_relative_pose_networks(session: Session) -> Outcome:
    """Map and localize with small random networks for relative poses, on images and on keypoints."""
    torch.manual_seed(0)
    on_images, on_keypoints = _file(session, "image_pairs"), _file(session, "keypoint_pairs")
    write_weights(on_images, RelativePoseNet(SMALL_IMAGE_PAIR).half().state_dict(), kind=PUBLISHED,
                  config=SMALL_IMAGE_PAIR)
    save_keypoint_network(KeypointPoseNet(SMALL_KEYPOINT_PAIR), load_encoder("compact", "cpu").identity, on_keypoints)
    results: Results = {}
    for path in (on_images, on_keypoints):
        mapped, scene_map = _mapped(session, "reloc3r", SHORT_S, network=str(path), keyframes=12, encoder="compact")
        results[path.stem] = _with_random_network(session, scene_map, mapped).results
    return Outcome(results=results)


def check_pose_transformer(session: Session) -> Outcome:
    """Localize with a small random pose transformer on the coordinates of the trained head, and fine-tune it."""
    torch.manual_seed(0)
    path = _file(session, "pose_transformer")
    save_pose_regressor(WeighingTransformer(SMALL_POSE), path)
    if session.head_map is None:
        session.head_map = session.build("ace", budget_s=SHORT_S)
    scene_map = as_marepo_map(session.head_map, load_pose_regressor(str(path), session.device), refine=True)
    results = {"regressed": _with_random_network(session, scene_map, {}).results}
    mapped, tuned = _mapped(session, "marepo", SHORT_S, regressor=str(path), fine_tune=True)
    return Outcome(results={**results, "fine-tuned": _with_random_network(session, tuned, mapped).results})


def _mapped(session: Session, method: str, budget_s: float, **given: Any) -> tuple[Results, SceneMap]:
    """Map the room. given: encoder, and options of the method."""
    started = time.perf_counter()
    scene_map = session.build(method, budget_s=min(budget_s, SHORT_S) if session.quick else budget_s, **given)
    return {"mapping_s": time.perf_counter() - started}, scene_map


def _file(session: Session, name: str) -> Path:
    return session.output / f"random_{name}.safetensors"


def _with_random_network(session: Session, scene_map: SceneMap, results: Results) -> Outcome:
    """Localize with a network whose weights are random: only the time matters."""
    localize: Callable[..., Any] = make_localizer(scene_map, session.device).localize
    found = session.localize(localize)
    kept = ("images", "localized", "frame_ms", "stage_ms")
    return Outcome(results={**results, "weights": "small, random",
                            **{key: value for key, value in localization_results(found).items() if key in kept}})


def _problems(results: Sequence[FrameResult]) -> list[str]:
    localized = sum(each.estimate.accepted for each in results)
    few = localized < MIN_RECALL * len(results)
    return _wrong(results) + ([f"only {localized} of {len(results)} images are localized"] if few else [])


def _wrong(results: Sequence[FrameResult]) -> list[str]:
    wrong = localization_results(results)["wrong"]
    return [f"{wrong} wrong poses"] if wrong else []
