# SPDX-License-Identifier: Apache-2.0
"""Method sacreg on a keyframe database. A new network is a matcher, which is enough for a made-up world."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from keyframe_world import DIM, PLACES, NoEncoder, World

from aceg_ros.cli import main
from aceg_ros.encoders.base import load_encoder
from aceg_ros.errors import UserError
from aceg_ros.geometry import pose_error
from aceg_ros.maps.header import NetworkReference
from aceg_ros.maps.keyframe_database import KeyframeDatabase
from aceg_ros.maps.keyframe_tokens import StoredTokens, select_landmarks
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods import registry, sacreg, sacreg_mapper
from aceg_ros.methods.base import MappingOptions
from aceg_ros.methods.cross_image_localizer import CrossImageLocalizer, CrossImageLocalizerConfig, mix_keyframes
from aceg_ros.methods.sacreg import ROLE, SPEC, as_sacreg_map, check_encoder, load_regressor
from aceg_ros.networks.cross_image_fusion import load_cross_image, save_cross_image
from aceg_ros.networks.cross_image_regressor import CrossImageConfig, CrossImageRegressor


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def database(world: World) -> KeyframeDatabase:
    return world.database()


@pytest.fixture(scope="module")
def net() -> CrossImageRegressor:
    torch.manual_seed(0)
    return CrossImageRegressor(CrossImageConfig(dim_in=DIM, width=DIM, no_match_similarity=0.6)).eval()


def localizer(database: KeyframeDatabase, net: CrossImageRegressor, **changes) -> CrossImageLocalizer:
    tokens = changes.pop("tokens", None)
    return CrossImageLocalizer(encoder=NoEncoder(), database=database, net=net, tokens=tokens,
                               config=replace(CrossImageLocalizerConfig(), **changes))


@pytest.mark.parametrize("late", [False, True])
def test_an_image_is_localized_by_early_and_by_late_fusion(world, database, net, late):
    for place in range(PLACES):
        pose = world.pose(place, 0.3)
        found, _ = world.keypoints(pose)
        estimate = localizer(database, net, late=late).localize_keypoints(found)
        assert estimate.accepted, estimate.message
        distance, angle_deg = pose_error(estimate.map_from_camera, pose)
        assert distance < 0.05 and angle_deg < 1.0


def test_an_image_of_nothing_in_the_map_is_rejected(world, database, net):
    found, _ = world.keypoints(world.pose(0))
    other = torch.randn(found.descriptors.shape, generator=torch.Generator().manual_seed(5))
    nothing = replace(found, descriptors=torch.nn.functional.normalize(other, dim=1))
    assert not localizer(database, net).localize_keypoints(nothing).accepted


def test_maps_of_any_unit_and_origin_are_equal(world, database, net):
    """The network sees coordinates from the middle of the map, in units of its median depth."""
    scaled = replace(database, points=database.points * 25.0 + 3000.0, poses=database.poses.clone())
    scaled.poses[:, :3, 3] = database.poses[:, :3, 3] * 25.0 + 3000.0
    pose = world.pose(1, 0.2)
    found, _ = world.keypoints(pose)
    estimate = localizer(scaled, net).localize_keypoints(found)
    assert estimate.accepted, estimate.message
    assert np.linalg.norm((estimate.map_from_camera[:3, 3] - 3000.0) / 25.0 - pose[:3, 3]) < 0.05


def test_tokens_are_of_the_landmarks_that_most_keyframes_observe(database):
    chosen = select_landmarks(database, 5, 100)
    rows = database.observations_of([5])
    left = np.setdiff1d(rows, chosen.observations)
    counts = database.observation_counts[database.landmark_array]
    assert len(chosen.observations) == 100 and counts[chosen.observations].min() >= counts[left].max()
    measured = database.pixels[torch.from_numpy(chosen.observations)].numpy() / 16.0
    assert np.abs(chosen.pixels - measured).max() < 3.0           # noise of 0.5 px, and rounding


@pytest.mark.parametrize(("compact", "bytes_per_token"), [(False, DIM + 4), (True, DIM // 8 + 4)])
def test_stored_tokens_localize_as_mixed_ones(world, database, net, compact, bytes_per_token):
    tokens = mix_keyframes(net, database)
    section = tokens.to_section(compact)
    stored = StoredTokens.from_section(section, database)
    per_token = sum(section[name].nbytes for name in ("landmarks", "vectors")) / len(tokens.landmarks)
    assert per_token == bytes_per_token
    pose = world.pose(2, 0.3)
    found, _ = world.keypoints(pose)
    estimate = localizer(database, net, tokens=stored).localize_keypoints(found)
    assert estimate.accepted and pose_error(estimate.map_from_camera, pose)[0] < 0.05


@pytest.mark.parametrize("damage", [
    {"first": torch.zeros(3, dtype=torch.int64)}, {"landmarks": torch.full((9,), 10**6, dtype=torch.int32)},
    {"vectors": torch.zeros(4)}])
def test_damaged_tokens_are_rejected_in_a_sentence(database, net, damage):
    section = mix_keyframes(net, database).to_section() | damage
    with pytest.raises(UserError, match="map the scene again"):
        StoredTokens.from_section(section, database)


def test_a_map_without_a_keyframe_database_is_rejected_in_a_sentence():
    with pytest.raises(UserError, match="needs a keyframe database, which this map of method 'ace' does not have"):
        registry.make_localizer(SceneMap(method="ace"), method="sacreg")


@pytest.mark.slow
def test_it_maps_and_localizes_in_its_own_and_in_other_maps(rendered_scene, rendered_map, tmp_path, capsys):
    """On the command line, with a new network: with --method in a map of ace_g, and in a map of its own."""
    torch.manual_seed(0)
    weights, own, other = (tmp_path / name for name in ("new.safetensors", "own.map", "other.map"))
    save_cross_image(CrossImageRegressor(CrossImageConfig()), SceneMap.load(rendered_map).network("encoder").identity,
                     weights)
    assert main(["map", str(rendered_scene / "mapping"), "-o", str(own), "--method", "sacreg", "--regressor",
                 str(weights), "--fusion", "late", "--compact", "--budget", "30"]) == 0
    scene_map = SceneMap.load(own)
    assert scene_map.method == "sacreg" and {"database", "tokens"} <= set(scene_map.sections)
    as_sacreg_map(SceneMap.load(rendered_map), load_cross_image(str(weights))).save(other)
    for path in (own, other):
        capsys.readouterr()
        assert main(["evaluate", str(path), str(rendered_scene / "query"), "--every", "4"]) == 0
        statistics = json.loads(capsys.readouterr().out)
        assert statistics["method"] == "sacreg" and statistics["localized"] >= 1
        assert statistics["median_translation_m"] < 0.3
    images = [str(path) for path in sorted((rendered_scene / "query" / "rgb").iterdir())[:2]]
    assert main(["localize", str(own), *images, "--method", "ace_g"]) == 0, "the database is that of ace_g"


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["compact", "compact4"])
def test_the_shipped_weights_localize_in_a_map_of_ace_g(rendered_scene, rendered_map, tmp_path, capsys, *, encoder):
    """The network is the one that was trained for the encoder of the map; rendered_map is a default one."""
    path = rendered_map
    if encoder == "compact":
        path = tmp_path / "compact.map"
        assert main(["map", str(rendered_scene / "mapping"), "-o", str(path), "--encoder", "compact"]) == 0
    assert load_regressor(SceneMap.load(path), "cpu").encoder == load_encoder(encoder).identity
    capsys.readouterr()
    assert main(["evaluate", str(path), str(rendered_scene / "query"), "--method", "sacreg"]) == 0
    statistics = json.loads(capsys.readouterr().out)
    assert statistics["localized"] >= 6 and statistics["false_accepts"] == 0, "in the evening light, of 12 images"
    assert statistics["median_translation_m"] < 0.1


def test_without_weights_it_says_so(database, monkeypatch):
    """Neither mapping nor localizing goes on without weights that a training has made."""
    for module in (sacreg, sacreg_mapper):
        monkeypatch.setattr(module, "SHIPPED", ("none_of_this_name",))
    scene_map = SceneMap(method="ace_g", sections={"database": database.to_section()},
                         networks={"encoder": NetworkReference(source="compact", identity="compact:0")})
    with pytest.raises(UserError, match="ships none of that name. Train some with 'aceg pretrain sacreg'"):
        registry.make_localizer(scene_map, method="sacreg")
    with pytest.raises(UserError, match="Train some with 'aceg pretrain sacreg'"):
        registry.make_mapper("sacreg", MappingOptions())


def test_weights_are_stored_with_their_encoder(net, tmp_path):
    path = tmp_path / "regressor.safetensors"
    save_cross_image(net, "compact:1", path)
    loaded = load_cross_image(str(path))
    assert loaded.net.config == net.config and loaded.source == str(path) and loaded.identity.startswith("cross-image:")
    check_encoder(loaded, "compact:1")
    with pytest.raises(UserError, match="was trained for encoder compact:1, not for compact:2"):
        check_encoder(loaded, "compact:2")
    changed = SceneMap(method=SPEC.name, networks={ROLE: NetworkReference(source=str(path), identity="cross-image:0"),
                                                   "encoder": NetworkReference(source="compact", identity="compact:1")})
    with pytest.raises(UserError, match="map the scene again, or restore that file"):
        load_regressor(changed, "cpu")
    path.write_bytes(b"no weights")
    with pytest.raises(UserError, match="is not a readable cross-image regressor file"):
        load_cross_image(str(path))
