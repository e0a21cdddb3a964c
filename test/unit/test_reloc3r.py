# SPDX-License-Identifier: Apache-2.0
"""Method reloc3r: maps of a few keyframes, their files, and localizing in them, with matches and with a network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from aceg_ros.camera import Camera
from aceg_ros.cli import main
from aceg_ros.datasets import open_scene
from aceg_ros.errors import UserError
from aceg_ros.estimate import Status
from aceg_ros.geometry import pose_error
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.build_keyframes import select_views
from aceg_ros.maps.posed_keyframes import PosedKeyframes
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.base import MappingOptions
from aceg_ros.methods.build_map import build_map
from aceg_ros.methods.registry import make_localizer, make_method_options
from aceg_ros.methods.reloc3r_mapper import Reloc3rMapper
from aceg_ros.methods.reloc3r_network import KeyframeTokens, crop_for_network
from aceg_ros.networks.relative_pose import RelativePoseConfig, RelativePoseNet

TINY = RelativePoseConfig(patch_size=16, enc_embed_dim=64, enc_depth=1, enc_num_heads=1, dec_embed_dim=64, dec_depth=1,
                          dec_num_heads=1)


def build(frames, *, use_depth=False, encoder=None, **given):
    options = MappingOptions(device="cpu", use_depth=use_depth, trust_poses=True, encoder=encoder)
    return build_map("reloc3r", options, frames, MappingBudget.start(60.0),
                     method_options=make_method_options("reloc3r", given))[0]


@pytest.fixture(scope="module")
def frames(rendered_scene):
    return list(open_scene(rendered_scene / "mapping"))


@pytest.fixture(scope="module")
def small_map(frames, tmp_path_factory):
    """A map of ten keyframes, as its file has it."""
    path = tmp_path_factory.mktemp("reloc3r") / "room.map"
    build(frames, keyframes=10).save(path)
    return SceneMap.load(path)


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A tiny network with random weights in the layout of the release."""
    folder = tmp_path_factory.mktemp("network")
    torch.manual_seed(0)
    save_file(RelativePoseNet(TINY).state_dict(), folder / "model.safetensors")
    assert main(["import", "reloc3r", str(folder / "model.safetensors"), "-o", str(folder / "net.safetensors")]) == 0
    return str(folder / "net.safetensors")


def test_ten_keyframes_localize_images_in_another_light(small_map, rendered_scene):
    localizer = make_localizer(small_map, "cpu")
    errors = []
    for frame in open_scene(rendered_scene / "query"):
        estimate = localizer.localize(replace(frame, map_from_camera=None))
        if estimate.accepted:
            errors.append(pose_error(estimate.map_from_camera, frame.map_from_camera))
            assert np.linalg.eigvalsh(estimate.covariance).min() > 0.0
            assert set(estimate.stage_ms) == {"encode", "retrieve", "relative_poses", "average"}
    assert len(errors) >= 10 and max(metres for metres, _ in errors) < 0.05, "all twelve were, within 6 mm"


def test_matches_alone_localize_with_the_same_keyframes(frames, rendered_scene):
    """All twelve images were localized within 5 mm."""
    localizer = make_localizer(build(frames, keyframes=10, relative_pose="matches"), "cpu")
    errors = []
    for frame in open_scene(rendered_scene / "query"):
        estimate = localizer.localize(replace(frame, map_from_camera=None))
        if estimate.accepted:
            errors.append(pose_error(estimate.map_from_camera, frame.map_from_camera))
    assert len(errors) >= 10 and max(metres for metres, _ in errors) < 0.05


def test_the_shipped_network_is_used_with_the_encoder_that_it_fits(small_map, frames):
    assert small_map.settings["relative_pose"] == "network" and "tokens" not in small_map.sections
    assert small_map.network("relative_pose").source == "reloc3r_compact4"
    other = build(frames[:2], encoder="compact")
    assert other.settings["relative_pose"] == "matches" and "relative_pose" not in other.networks


def test_images_of_another_size_and_lens_are_localized(small_map, frames):
    """The middle of an image, enlarged: a camera of twice the focal length."""
    localizer = make_localizer(small_map, "cpu")
    accepted = 0
    for frame in frames[1::6]:
        camera = frame.camera
        left, top, width, height = camera.width // 6, camera.height // 6, camera.width * 2 // 3, camera.height * 2 // 3
        cropped = frame.image[top:top + height, left:left + width]
        estimate = localizer.localize(replace(frame, image=np.ascontiguousarray(cropped), depth_m=None,
                                              camera=camera.cropped(left, top, width, height), map_from_camera=None))
        if estimate.accepted:
            accepted += 1
            assert pose_error(estimate.map_from_camera, frame.map_from_camera)[0] < 0.3
    assert accepted >= 4


@pytest.mark.parametrize(("errors_of", "needed", "factor"), [
    ({2: [1.0] * 6}, 2, 1.0), ({2: [1.0] * 9}, 2, 1.0), ({2: [40.0] * 6}, 2, 7.48),
    ({2: [1.0] * 5 + [500.0], 3: [1.0] * 5}, 3, 1.0), ({2: [1.0] * 3, 3: [1.0] * 3}, 3, 1.0),
    ({number: [900.0] * 5 for number in (2, 3, 4)}, 4, 60.0)])
def test_keyframes_that_localize_each_other_wrongly_make_it_strict(frames, monkeypatch, *, errors_of, needed, factor):
    """errors_of: squared normalized errors of keyframes, by the number of those that must confirm a pose."""
    def errors(mapper, scene_map, *unused):
        return dict(enumerate(errors_of[scene_map.settings["min_keyframes"]]))

    monkeypatch.setattr(Reloc3rMapper, "errors_of_keyframes", errors)
    settings = build(frames, keyframes=10).settings
    assert settings["min_keyframes"] == needed and settings["spread_factor"] == pytest.approx(factor, rel=1e-2)


@pytest.mark.parametrize(("by_network", "by_matches", "taken"), [
    (8, 6, "network"), (8, 9, "network"), (2, 3, "network"), (6, 10, "matches"), (0, 5, "matches")])
def test_the_keyframes_choose_where_relative_poses_come_from(frames, monkeypatch, *, by_network, by_matches, taken):
    """by_network, by_matches: number of keyframes that each localizes by the others."""
    def errors(mapper, scene_map, *unused):
        count = by_network if scene_map.settings["relative_pose"] == "network" else by_matches
        return dict.fromkeys(range(count), 1.0)

    monkeypatch.setattr(Reloc3rMapper, "errors_of_keyframes", errors)
    scene_map = build(frames, keyframes=10)
    assert scene_map.settings["relative_pose"] == taken
    assert ("relative_pose" in scene_map.networks) == (taken == "network")
    assert build(frames, keyframes=10, relative_pose="network").settings["relative_pose"] == "network"


def test_random_images_are_rejected(small_map):
    localizer = make_localizer(small_map, "cpu")
    camera = small_map.cameras[0]
    rng = np.random.default_rng(0)
    for size in (1, 8, 40):
        noise = rng.integers(0, 255, (camera.height // size + 1, camera.width // size + 1, 3), np.uint8)
        image = np.repeat(np.repeat(noise, size, 0), size, 1)[:camera.height, :camera.width]
        estimate = localizer.localize(replace_image(image, camera))
        assert not estimate.accepted and estimate.message
    assert localizer.localize(replace_image(np.zeros((camera.height, camera.width, 3), np.uint8), camera)
                              ).status is Status.BAD_IMAGE


def replace_image(image: np.ndarray, camera: Camera):
    from aceg_ros.camera import Frame
    return Frame(image=np.ascontiguousarray(image), camera=camera)


def test_one_keyframe_is_a_map_that_rejects_with_its_reason(frames, caplog):
    scene_map = build(frames[:1])
    assert "one keyframe" in caplog.text
    estimate = make_localizer(scene_map, "cpu").localize(replace(frames[1], map_from_camera=None))
    assert estimate.status is Status.NO_SCALE and "distance" in estimate.message
    with pytest.raises(UserError, match="at least one"):
        build([])


def test_one_keyframe_with_depth_localizes(frames):
    scene_map = build(frames[:1], use_depth=True)
    estimate = make_localizer(scene_map, "cpu").localize(replace(frames[1], map_from_camera=None, depth_m=None))
    assert estimate.accepted, estimate.message
    assert pose_error(estimate.map_from_camera, frames[1].map_from_camera)[0] < 0.1


def test_the_keyframes_are_far_from_each_other(frames, small_map):
    assert len(small_map.sections["keyframes"]["poses"]) == 10
    poses = np.stack([frame.map_from_camera for frame in frames])
    chosen = select_views(poses, 10)
    assert len(set(chosen)) == 10 and sorted(chosen) == list(chosen)

    def nearest(indices):
        centres = poses[indices, :3, 3]
        distances = np.linalg.norm(centres[:, None] - centres, axis=2) + 1e9 * np.eye(len(indices))
        return distances.min(1).mean()

    assert nearest(chosen) > nearest(np.arange(10))
    assert select_views(poses, 100).tolist() == list(range(len(poses)))


@pytest.mark.parametrize("key", ["poses", "words", "first", "depths_m"])
def test_damaged_keyframes_are_rejected(small_map, key):
    section = dict(small_map.sections["keyframes"])
    with pytest.raises(UserError, match="do not fit together"):
        PosedKeyframes.from_section(section | {key: section[key][:-1]})
    del section[key]
    with pytest.raises(UserError, match=key):
        PosedKeyframes.from_section(section)


def test_a_network_is_used_and_random_weights_localize_nothing(frames, imported, tmp_path):
    build(frames[::6], network=imported).save(tmp_path / "net.map")
    scene_map = SceneMap.load(tmp_path / "net.map")
    assert scene_map.settings["relative_pose"] == "network" and "tokens" in scene_map.sections
    localizer = make_localizer(scene_map, "cpu")
    for frame in frames[1::12]:
        estimate = localizer.localize(replace(frame, map_from_camera=None))
        assert estimate.status in (Status.NO_CONSENSUS, Status.NO_SCALE), estimate.message
    with pytest.raises(UserError, match="tokens do not fit"):
        KeyframeTokens.from_section(scene_map.sections["tokens"], 3)


def test_a_map_whose_network_changed_is_rejected(frames, imported, tmp_path):
    scene_map = build(frames[:2], network=imported)
    reference = replace(scene_map.network("relative_pose"), identity="relative-pose:0000")
    changed = replace(scene_map, networks=scene_map.networks | {"relative_pose": reference})
    with pytest.raises(UserError, match="was made with network relative-pose:0000"):
        make_localizer(changed, "cpu")


@pytest.mark.parametrize(("given", "sentence"), [
    ({"relative_pose": "network", "encoder": "compact"}, "trained on keypoints of encoder compact3:.*not of compact:"),
    ({"relative_pose": "matches", "network": "x.safetensors"}, "leave out --network"),
    ({"network": "x.safetensors"}, "No relative pose network 'x.safetensors'"),
])
def test_what_cannot_work_is_said_in_a_sentence(frames, given, sentence):
    with pytest.raises(UserError, match=sentence):
        build(frames[:2], **given)


def test_crops_are_centred_on_the_principal_point():
    camera = Camera(width=640, height=480, fx=500.0, fy=500.0, cx=299.5, cy=239.5)
    image = np.zeros((480, 640, 3), np.uint8)
    image[:, 300:] = 255                                    # an edge at the principal point
    cropped = crop_for_network(image, camera, RelativePoseConfig())
    assert cropped.shape == (416, 512, 3) and abs((cropped[0, :, 0] > 127).argmax() - 256) <= 1
    assert crop_for_network(image, camera, RelativePoseConfig(img_size=224)).shape == (224, 224, 3)
    upright = crop_for_network(np.zeros((640, 480, 3), np.uint8), replace(camera, width=480, height=640, cx=239.5,
                                                                          cy=319.5), RelativePoseConfig())
    assert upright.shape == (512, 384, 3)
