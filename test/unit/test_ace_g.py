# SPDX-License-Identifier: Apache-2.0
"""ACE-G: the published regressor and its files, ours, its codes, and mapping with both."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from parity import PARITY, agrees, reference

from aceg_ros.camera import Camera, Frame
from aceg_ros.cli import main
from aceg_ros.encoders.base import load_encoder
from aceg_ros.encoders.feature_map import FeatureMap
from aceg_ros.errors import UserError
from aceg_ros.geometry import pose_error
from aceg_ros.importers.registry import import_file
from aceg_ros.mapping.augmentation import PreparedFrame, prepare_frame
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.landmarks import Landmarks, cluster_landmarks, find_landmarks, subsample
from aceg_ros.mapping.losses import View, laplace_loss, laplace_reprojection_loss, points_at_depth
from aceg_ros.mapping.optimize_map_code import MapCodeOptions, optimize_map_code
from aceg_ros.mapping.patch_buffer import PatchBuffer
from aceg_ros.mapping.triangulation import TriangulationOptions
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.ace_g import AceGOptions
from aceg_ros.methods.base import MappingOptions
from aceg_ros.methods.build_map import build_map
from aceg_ros.methods.registry import make_localizer, make_mapper
from aceg_ros.networks.landmark_regressor import (
    KeySearch,
    LandmarkCode,
    LandmarkConfig,
    LandmarkRegressor,
    Mixture,
    grouped_topk,
)
from aceg_ros.networks.map_code_transformer import MapCode, TransformerHead, TransformerHeadConfig, head_from_release
from aceg_ros.networks.regressor import load_regressor, save_regressor
from aceg_ros.synthetic.demo_room import demo_world, mapping_path, query_path
from aceg_ros.synthetic.render import EVENING


def unit(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


SMALL = TransformerHeadConfig(dim_in=16, num_blocks=1, num_attention_heads=2, dim_emb=32)


# --- the published network and its files ----------------------------------------------------------------------------


@pytest.mark.needs_data
def test_reproduces_the_published_regressor():
    state, tensors, config = reference("ace_g_head")
    head = head_from_release(state, config["num_attention_heads"])
    features = tensors["in.features"]
    with torch.inference_mode():
        found = head(features.flatten(1).T, MapCode(tensors["in.map_codes"], tensors["in.mean"]))
    assert agrees(found.coordinates.T.reshape(3, *features.shape[1:]), tensors["out.scene_coordinates"])
    assert agrees(found.sigma.reshape(1, *features.shape[1:]), tensors["out.uncertainty"])


def write_encoder(path, dim: int):
    """An ACE encoder file of any width."""
    from aceg_ros.encoders.ace import AceNet
    torch.manual_seed(0)
    torch.save(AceNet(dim).state_dict(), path.with_suffix(".pt"))
    import_file("ace-encoder", path.with_suffix(".pt"), path)


@pytest.mark.needs_data
def test_release_files_are_imported_and_compute_the_same(tmp_path):
    _, tensors, _ = reference("ace_g_head")
    assert main(["import", "ace-g", str(PARITY / "ace_g_head_release_format.pt"), "-o", str(tmp_path / "g.st")]) == 0
    regressor = load_regressor(str(tmp_path / "g.st"))
    with torch.inference_mode():
        found = regressor.net(tensors["in.features"].flatten(1).T, MapCode(tensors["in.map_codes"], tensors["in.mean"]))
    assert agrees(found.coordinates.T.reshape(tensors["out.scene_coordinates"].shape),
                  tensors["out.scene_coordinates"])
    write_encoder(tmp_path / "e.safetensors", 48)
    command = ["import", "ace-g-map", str(PARITY / "ace_g_map_release_format.pt"), "-o", str(tmp_path / "g.map"),
               "--encoder", str(tmp_path / "e.safetensors")]
    assert main(command) == 2, "the regressor is missing"
    assert main([*command, "--regressor", str(tmp_path / "g.st")]) == 0
    image = np.random.default_rng(0).integers(0, 255, (240, 320, 3), np.uint8)
    estimate = make_localizer(SceneMap.load(tmp_path / "g.map"), "cpu").localize(
        Frame(image=image, camera=Camera(width=320, height=240, fx=260.0, fy=260.0, cx=160.0, cy=120.0)))
    assert estimate.map_from_camera is None, "noise shows no part of the scene"
    assert "head" in estimate.stage_ms


@pytest.mark.parametrize("change", [{"num_attention_heads": 5}, {"use_uncertainty": False}, {"dim_map_emb": 32}])
def test_other_networks_than_the_published_one_are_rejected(tmp_path, change):
    head = TransformerHead(SMALL)
    config = {"num_attention_heads": 2} | change
    torch.save(head.state_dict() | {"_extra_state": {"_head_config_dict": config}}, tmp_path / "h.pt")
    with pytest.raises(UserError):
        import_file("ace-g", tmp_path / "h.pt", tmp_path / "h.st")
    assert not (tmp_path / "h.st").exists()


def test_files_that_run_code_are_rejected(tmp_path):
    import pickle
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(print))
    with pytest.raises(UserError, match="damaged"):
        import_file("ace-g", tmp_path / "evil.pt", tmp_path / "h.st")


def test_codes_are_projected_once_for_all_patches():
    """Time must not be tested; what is: the keys' layer sees the codes, not a copy of them for each patch."""
    head = TransformerHead(SMALL)
    seen = []
    head.transformer_blocks[0].attn.k_proj.register_forward_hook(
        lambda layer, inputs, out: seen.append(inputs[0].shape))
    head(unit(50, 16), MapCode.noise(7, 32, torch.zeros(3), torch.Generator().manual_seed(0)))
    assert seen == [(7, 32)]


# --- losses ---------------------------------------------------------------------------------------------------------


def view(count: int) -> View:
    return View(camera_from_map=torch.eye(3, 4).repeat(count, 1, 1),
                intrinsics=torch.tensor([500.0, 480.0, 320.0, 240.0]).repeat(count, 1),
                pixels=torch.full((count, 2), 100.0))


def test_laplace_losses_by_hand():
    truth = torch.tensor([[1.0, 2.0, 3.0]])
    off = truth + torch.tensor([[0.0, 3.0, 4.0]])
    assert laplace_loss(off, torch.tensor([2.0]), truth).item() == pytest.approx(np.log(2) + 2 ** 0.5 * 5 / 2)
    target = points_at_depth(view(1), 2.0)
    aside = target + torch.tensor([[3.0 * 2 / 500, -4.0 * 2 / 480, 0.0]])
    loss, error = laplace_reprojection_loss(aside, torch.tensor([0.04]), view(1))
    assert error.item() == pytest.approx(7.0, abs=1e-3)
    assert loss.item() == pytest.approx(np.log(10.0) + 2 ** 0.5 * 0.7, abs=1e-3), "0.04 m at 2 m are 10 px"
    behind = -target
    expected = np.log(0.04) + 2 ** 0.5 * (behind - points_at_depth(view(1), 0.1)).norm().item() / 0.04
    loss, _ = laplace_reprojection_loss(behind, torch.tensor([0.04]), view(1))
    assert loss.item() == pytest.approx(expected, rel=1e-4)


def test_mixture_prefers_weight_where_the_truth_is():
    points = torch.tensor([[[0.0, 0, 0], [5.0, 0, 0]]])
    distance = torch.tensor([[0.1, 5.0]])
    losses = [Mixture(points, torch.tensor([[a, 1 - a - 0.01]]).log(), torch.full((1, 2), 0.2),
                      torch.tensor([0.01]).log()).loss(distance, torch.full((1, 2), 0.2), 30.0).item()
              for a in (0.1, 0.5, 0.9)]
    assert losses[0] > losses[1] > losses[2]


# --- our regressor --------------------------------------------------------------------------------------------------


def landmarks(count: int = 400, seed: int = 3) -> LandmarkCode:
    generator = torch.Generator().manual_seed(seed)
    return LandmarkCode(unit(count, 16, seed), 4 * torch.rand(count, 3, generator=generator), LandmarkConfig(dim_in=16))


def test_an_untrained_regressor_is_the_nearest_landmark():
    code, net = landmarks(), LandmarkRegressor(LandmarkConfig(dim_in=16))
    with torch.inference_mode():
        found = net(code.keys[:50], code)
    assert ((found.coordinates - code.points[:50]).norm(dim=1) < code.spacing).all()


def test_maps_of_any_scale_and_position_are_alike_to_it():
    torch.manual_seed(1)
    code, net = landmarks(), LandmarkRegressor(LandmarkConfig(dim_in=16))
    torch.nn.init.normal_(net.weigh.weight)
    turn = torch.linalg.qr(torch.randn(3, 3))[0]
    moved = LandmarkCode(code.keys, 7 * code.points @ turn.T + torch.tensor([10.0, -3.0, 2.0]),
                         net.config)
    with torch.inference_mode():
        here, there = (net(unit(30, 16, 9), each) for each in (code, moved))
    assert torch.allclose(7 * here.coordinates @ turn.T + torch.tensor([10.0, -3.0, 2.0]), there.coordinates, atol=1e-2)
    assert torch.allclose(7 * here.sigma, there.sigma, rtol=1e-2)


def test_regressor_files_come_back_and_others_are_rejected(tmp_path):
    net = LandmarkRegressor(LandmarkConfig(dim_in=16, width=32, heads=2, blocks=1, nearest=4))
    save_regressor(net, "compact:0", tmp_path / "r.safetensors")
    found = load_regressor(str(tmp_path / "r.safetensors"))
    assert (found.dim_in, found.encoder, found.net.config) == (16, "compact:0", net.config)
    assert found.identity == load_regressor(str(tmp_path / "r.safetensors")).identity
    with pytest.raises(UserError, match="was trained for encoder compact:0"):
        make_mapper("ace_g", MappingOptions(), AceGOptions(regressor=str(tmp_path / "r.safetensors")))
    (tmp_path / "damaged.safetensors").write_bytes((tmp_path / "r.safetensors").read_bytes()[:200])
    for name in ("damaged.safetensors", "missing.safetensors"):
        with pytest.raises(UserError):
            load_regressor(str(tmp_path / name))


def test_subsampling_keeps_so_many_and_is_repeatable():
    points = torch.rand(500, 3)
    many = Landmarks(features=unit(500, 8), points=points, colours=torch.zeros(500, 3, dtype=torch.uint8),
                     source=torch.arange(500) % 7)
    few = subsample(many, 100, 0)
    assert len(few) == 100 and torch.equal(few.points, subsample(many, 100, 0).points)
    assert subsample(many, 1000, 0) is many


def test_clusters_are_means_of_similar_features_that_are_near():
    """Two points with the same two features, many landmarks of each combination: one mean of every kind."""
    generator = torch.Generator().manual_seed(0)
    looks, spots = unit(2, 16, 1), torch.tensor([[0.0, 0, 0], [3.0, 0, 0]])
    kind = torch.randint(4, (2000,), generator=generator)
    features = torch.nn.functional.normalize(
        looks[kind % 2] + 0.02 * torch.randn(2000, 16, generator=generator), dim=1)
    points = spots[kind // 2] + 0.01 * torch.randn(2000, 3, generator=generator)
    many = Landmarks(features=features.half(), points=points, colours=torch.zeros(2000, 3, dtype=torch.uint8),
                     source=torch.zeros(2000).long())
    keys, centres = cluster_landmarks(many, 40, 0)
    assert len(keys) == len(centres) == 40
    assert ((centres[:, None] - spots).norm(dim=2).amin(1) < 0.05).all(), "no mean lies between the spots"
    assert ((keys @ looks.T).amax(1) > 0.99).all(), "nor between the looks"
    for look in range(2):
        for spot in range(2):
            assert ((keys @ looks[look] > 0.99) & ((centres - spots[spot]).norm(dim=1) < 0.05)).any()


@pytest.mark.parametrize("total", [5, 100, 3000, 3007])
def test_the_nearest_codes_are_those_of_a_full_sort(total):
    similarity = torch.rand(20, total, generator=torch.Generator().manual_seed(total))
    expected = similarity.topk(min(8, total), 1)
    values, index = grouped_topk(similarity, 8)
    assert torch.equal(values, expected.values)
    assert torch.equal(similarity.gather(1, index), values)


def test_a_rough_search_finds_what_an_exact_one_does():
    """Keys whose axes matter unequally, as those of an encoder do."""
    generator = torch.Generator().manual_seed(3)
    keys = 0.3 + torch.randn(3000, 128, generator=generator) * 0.96 ** torch.arange(128)
    keys = torch.nn.functional.normalize(keys, dim=1)
    changed = keys[:200] + 0.02 * torch.randn(200, 128, generator=generator)
    features = torch.nn.functional.normalize(changed, dim=1)
    (exact, exact_index), (rough, rough_index) = (KeySearch(keys, LandmarkConfig(), in_bf16)(features, 4)
                                                     for in_bf16 in (False, True))
    assert torch.equal(exact_index[:, 0], rough_index[:, 0])
    assert torch.allclose(exact[:, 0], rough[:, 0], atol=1e-5)           # rescored, not rounded
    assert (exact_index == rough_index).float().mean() > 0.99
    assert (exact - rough).max() < 0.01                                  # the fourth may be the fifth


def test_measured_depths_make_landmarks_where_they_are():
    world = demo_world()
    frame = world.render_frame(mapping_path(8, world.room)[0])
    prepared = prepare_frame(frame, 480, 8)
    found = find_landmarks([prepared], load_encoder("compact"), TriangulationOptions(patches=300),
                           MappingBudget.start(), use_depth=True)
    local = (found.points.numpy() - frame.map_from_camera[:3, 3]) @ frame.map_from_camera[:3, :3]
    pixels = local[:, :2] / local[:, 2:] * (frame.camera.fx, frame.camera.fy) + (frame.camera.cx, frame.camera.cy)
    column, row = pixels.astype(int).T                   # the centre of a patch lies between four pixels
    around = np.stack([frame.depth_m[row + down, column + right] for down in (0, 1) for right in (0, 1)])
    assert len(found) > 250
    assert np.abs(around - local[:, 2]).min(0).max() < 0.01


# --- mapping --------------------------------------------------------------------------------------------------------


def test_training_a_code_explains_the_buffer():
    """A buffer whose features tell their points, and a frozen network: the code alone learns."""
    torch.manual_seed(0)
    head = TransformerHead(replace(SMALL, dim_in=8, num_blocks=2))
    before = {key: value.clone() for key, value in head.state_dict().items()}
    head.requires_grad_(False)
    buffer = PatchBuffer(600, dim=8, stride=8, device="cpu", with_depth=False)
    camera = Camera(width=320, height=240, fx=260.0, fy=260.0, cx=160.0, cy=120.0)
    frame = PreparedFrame(image=np.zeros((240, 320, 3), np.uint8), camera=camera, map_from_camera=np.eye(4), mask=None)
    grid = FeatureMap(torch.randn(1, 8, 30, 40, generator=torch.Generator().manual_seed(0)) * 0.1
                + torch.linspace(-1, 1, 40), None)
    buffer.add(grid, frame, np.random.default_rng(0), count=600)
    code = MapCode.noise(16, 32, torch.tensor([0.0, 0.0, 0.0]), torch.Generator().manual_seed(0))
    errors = []
    budget = MappingBudget.start(progress=lambda report: errors.append(report.reprojection_px))
    options = MapCodeOptions(codes=16, iterations=150, batch=256, peak_rate=2e-2)
    result = optimize_map_code(code, head, buffer, options=options, budget=budget)
    assert result.iterations == 150 and result.finished
    assert result.reprojection_px < 0.5 * errors[0]
    assert all(torch.equal(value, before[key]) for key, value in head.state_dict().items()), "the regressor is frozen"


@pytest.mark.slow
def test_published_regressor_maps_and_its_map_comes_back(tmp_path, rendered_scene):
    write_encoder(tmp_path / "e.safetensors", 16)
    torch.manual_seed(0)
    save_regressor(TransformerHead(SMALL), "", tmp_path / "r.safetensors")
    assert main(["map", str(rendered_scene / "mapping"), "-o", str(tmp_path / "p.map"), "--method", "ace_g", "--every",
                 "8", "--encoder", str(tmp_path / "e.safetensors"), "--regressor", str(tmp_path / "r.safetensors"),
                 "--budget", "20"]) == 0
    scene_map = SceneMap.load(tmp_path / "p.map")
    assert scene_map.method == "ace_g" and scene_map.sections["code"]["embeddings"].shape == (1024, 32)
    make_localizer(scene_map, "cpu")
    (tmp_path / "r.safetensors").unlink()
    save_regressor(TransformerHead(replace(SMALL, num_attention_heads=4)), "", tmp_path / "r.safetensors")
    with pytest.raises(UserError, match="made with regressor"):
        make_localizer(scene_map, "cpu")


@pytest.mark.slow
def test_landmark_map_of_a_room_is_small_and_localizes_in_other_light(tmp_path, rendered_scene):
    assert main(["map", str(rendered_scene / "mapping"), "-o", str(tmp_path / "g.map"), "--method", "ace_g",
                 "--codes", "8192", "--budget", "120"]) == 0
    assert (tmp_path / "g.map").stat().st_size <= 2e6
    assert main(["evaluate", str(tmp_path / "g.map"), str(rendered_scene / "query"), "--json",
                 str(tmp_path / "g.json")]) == 0
    found = json.loads((tmp_path / "g.json").read_text())
    assert found["recall"]["0.25m_5deg"] >= 0.7
    assert found["median_translation_m"] < 0.08


@pytest.mark.slow
def test_database_map_of_a_room_localizes_in_other_light_to_centimetres(tmp_path, rendered_scene):
    assert main(["map", str(rendered_scene / "mapping"), "-o", str(tmp_path / "d.map"), "--budget", "120"]) == 0
    assert (tmp_path / "d.map").stat().st_size <= 25e6
    assert "regressor" not in SceneMap.load(tmp_path / "d.map").networks
    assert main(["evaluate", str(tmp_path / "d.map"), str(rendered_scene / "query"), "--json",
                 str(tmp_path / "d.json")]) == 0
    found = json.loads((tmp_path / "d.json").read_text())
    assert found["recall"]["0.1m_5deg"] >= 0.8
    assert found["median_translation_m"] < 0.03


def test_a_map_has_as_many_codes_as_are_asked_for(tmp_path, rendered_scene, capsys):
    scene, path = str(rendered_scene / "mapping"), tmp_path / "few.map"
    assert main(["map", scene, "-o", str(path), "--codes", "700", "--every", "3", "--budget", "60"]) == 0
    assert SceneMap.load(path).sections["landmarks"]["keys"].shape == (700, 128)
    for other in (["--method", "ace"], ["--reprojection-only"]):
        assert main(["map", scene, "-o", str(tmp_path / "no.map"), "--codes", "700", *other]) == 2
        assert "--codes is of method ace_g" in capsys.readouterr().err


@pytest.mark.slow
def test_maps_are_repeatable_and_few_landmarks_are_rejected():
    world = demo_world()
    frames = [world.render_frame(pose) for pose in mapping_path(48, world.room)[10:18]]
    maps = [build_map("ace_g", MappingOptions(), frames, MappingBudget.start(1000.0))[0] for _ in range(2)]
    for key, value in maps[0].sections["database"].items():
        assert torch.equal(value, maps[1].sections["database"][key]), key
    pose = query_path(8, world.room)[0]
    estimate = make_localizer(maps[0], "cpu").localize(world.render_frame(pose, EVENING))
    assert estimate.map_from_camera is None or pose_error(estimate.map_from_camera, pose)[0] < 1.0
    noise = [np.random.default_rng(index).integers(0, 9, frame.image.shape, np.uint8)
             for index, frame in enumerate(frames)]
    bare = [Frame(image=np.full_like(frame.image, 90) + added, camera=frame.camera,
                  map_from_camera=frame.map_from_camera) for frame, added in zip(frames, noise, strict=True)]
    with pytest.raises(UserError, match="matched and triangulated"):
        build_map("ace_g", MappingOptions(), bare, MappingBudget.start(1000.0))


def test_dinov2_reads_the_hub_format(tmp_path):
    """A tiny random DINOv2 with registers stands in for the 300 M parameter one."""
    transformers = pytest.importorskip("transformers", reason="DINOv2 needs the package transformers")
    torch.manual_seed(0)
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, patch_size=14, image_size=56, num_register_tokens=4)
    model = transformers.Dinov2WithRegistersModel(config).eval()
    model.save_pretrained(tmp_path / "dino")
    encoder = load_encoder(f"dinov2:{tmp_path / 'dino'}")
    assert (encoder.dim, encoder.stride, encoder.short_side_px) == (48, 14, 480)
    image = torch.rand(1, 3, 70, 98)
    with torch.inference_mode():
        tokens = model(pixel_values=(image - 0.4) / 0.25).last_hidden_state
    assert tokens.shape[1] == 1 + 4 + 5 * 7
    found = encoder(image)
    assert found.shape == (1, 48, 5, 7)
    assert torch.allclose(found[0].flatten(1).T, tokens[0, 5:], atol=0.05)
    with pytest.raises(UserError):
        load_encoder(f"dinov2:{tmp_path / 'nothing'}")
