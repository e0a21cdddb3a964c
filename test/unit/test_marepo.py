# SPDX-License-Identifier: Apache-2.0
"""marepo: files of the release, its maps, frames of coordinates, and what it says where it cannot work."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from coordinate_grid import coordinates_of_cells
from scipy.spatial.transform import Rotation

from aceg_ros.camera import Camera, Frame
from aceg_ros.cli import main
from aceg_ros.encoders.ace import AceNet
from aceg_ros.encoders.base import load_encoder
from aceg_ros.errors import UserError
from aceg_ros.estimate import Status
from aceg_ros.maps.header import NetworkReference
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.ace_g_mapper import AceGMapper
from aceg_ros.methods.ace_mapper import AceMapper
from aceg_ros.methods.base import MappingOptions
from aceg_ros.methods.marepo import MarepoOptions, as_marepo_map
from aceg_ros.methods.marepo_localizer import MAX_TOKENS, tokens_of
from aceg_ros.methods.marepo_mapper import MarepoMapper
from aceg_ros.methods.registry import make_localizer
from aceg_ros.networks.ace_head import SceneHead
from aceg_ros.networks.coordinate_frames import image_frame
from aceg_ros.networks.pose_regressor import load_pose_regressor, regress_pose, save_pose_regressor
from aceg_ros.networks.pose_transformer import PoseTransformer, PoseTransformerConfig
from aceg_ros.networks.weighing_transformer import WeighingConfig, WeighingTransformer, ranked, start_pose
from aceg_ros.networks.weighted_pose import solve_weighted_pose

SMALL = PoseTransformerConfig(width=32, heads=4, layers=2, group=1)
OURS = WeighingConfig(width=32, heads=4, layers=2, group=1)
SCALES = {"max_scale": 4.0, "min_scale": 0.01, "max_inv_scale": 0.25, "min_inv_scale": 100.0, "h_beta": 0.924}


def network(config):
    torch.manual_seed(3)
    return (PoseTransformer if isinstance(config, PoseTransformerConfig) else WeighingTransformer)(config).eval()


def release_state(net: PoseTransformer, mean: tuple[float, float, float] = (1.0, 2.0, 3.0)) -> dict[str, torch.Tensor]:
    """A state dict as the release writes it: 1x1 convolutions for the cells, buffers of the scales, the mean."""
    state = {key: value[..., None, None] if key.startswith(("res_conv", "pos_encoding")) and value.ndim == 2 else value
             for key, value in net.state_dict().items()}
    buffers = {key: torch.tensor([[value]]) for key, value in SCALES.items()}
    return state | buffers | {"transformer_pose_mean": torch.tensor(mean).reshape(1, 3, 1, 1)}


def view(count: int = 300, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Points (1, N, 3) of a box seen by a camera, their rays (1, N, 2), and map_from_camera."""
    rng = np.random.default_rng(seed)
    rays = rng.uniform((-0.6, -0.45), (0.6, 0.45), (count, 2))
    depth = 2.0 + 0.8 * rays[:, 0] + (rng.random(count) < 0.3) * 0.7
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = Rotation.random(random_state=seed).as_matrix(), rng.normal(0, 3, 3)
    points = np.c_[rays, np.ones(count)] * depth[:, None] @ pose[:3, :3].T + pose[:3, 3]
    return (*(torch.from_numpy(each).float()[None] for each in (points, rays)), pose)


# --- files of the release -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrapped", [
    lambda state: state,
    lambda state: {"state_dict": state},
    lambda state: {f"module.{key}": value for key, value in state.items()},
    lambda state: {f"transformer_head.{key}": value for key, value in state.items()} | {"heads.fc1": torch.zeros(2)}])
def test_a_file_in_the_layout_of_the_release_is_imported(tmp_path, wrapped):
    original = network(PoseTransformerConfig(width=32, layers=4, rotation="9D"))
    torch.save(wrapped(release_state(original)), tmp_path / "marepo.pt")
    out = tmp_path / "marepo.safetensors"
    assert main(["import", "marepo", str(tmp_path / "marepo.pt"), "-o", str(out)]) == 0
    loaded = load_pose_regressor(str(out))
    assert loaded.net.config == original.config
    points, rays, _ = view()
    for found, expected in zip(loaded.net(points, rays), original(points, rays), strict=True):
        assert torch.equal(found.rotation, expected.rotation) and torch.equal(found.translation, expected.translation)


@pytest.mark.parametrize(("spoil", "sentence"), [
    (lambda state: state.pop("fc_rot.weight"), "is not a pose transformer"),
    (lambda state: state.update({"fc_rot.bias": torch.zeros(4)}), "is not a pose transformer"),
    (lambda state: state.update({"max_scale": torch.tensor([[9.0]])}), "max_scale is 9, not 4"),
])
def test_other_files_are_rejected_with_a_sentence(tmp_path, capsys, spoil, sentence):
    state = release_state(network(PoseTransformerConfig(width=32, layers=4)))
    spoil(state)
    torch.save(state, tmp_path / "x.pt")
    assert main(["import", "marepo", str(tmp_path / "x.pt"), "-o", str(tmp_path / "y")]) == 2
    message = capsys.readouterr().err
    assert sentence in message and "x.pt" in message and not (tmp_path / "y").exists()


# --- the network ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "stride"), [(30, 40, 8), (9, 17, 14), (60, 33, 4)])
def test_any_image_size_and_stride(height, width, stride):
    found = coordinates_of_cells(np.ones((height, width, 3)), stride, (500.0, 510.0, 160.0, 120.0))
    rays = torch.from_numpy(tokens_of(found, stride, network(SMALL)).rays)[None]
    assert rays[0, 1].tolist() == pytest.approx([(stride - 160.0) / 500, -120.0 / 510])
    assert tokens_of(found, stride, network(OURS)).rays[0] == pytest.approx([((stride - 1) / 2 - 160.0) / 500,
                                                                             ((stride - 1) / 2 - 120.0) / 510])
    points = torch.cat([rays, torch.ones_like(rays[..., :1])], -1) * 3
    pose = network(SMALL)(points, rays)[-1]
    assert pose.rotation.shape == (1, 3, 3) and torch.isfinite(pose.translation).all()
    assert torch.allclose(pose.rotation @ pose.rotation.mT, torch.eye(3), atol=1e-5)


def test_our_network_takes_the_most_confident_of_the_usable_tokens():
    found = coordinates_of_cells(np.ones((30, 40, 3)), 8, (500.0, 500.0, 160.0, 120.0))
    confidence = np.arange(1200.0)
    mask = confidence < 1000
    tokens = tokens_of(replace(found, confidence=confidence, mask=mask), 8, network(OURS))
    assert tokens.confidence.tolist() == list(range(1000 - MAX_TOKENS, 1000)) and tokens.mask.all()
    assert ranked(torch.tensor([[5.0, torch.nan, 1.0, 3.0]])).nan_to_num(9.0).tolist() == [[1.0, 9.0, -1.0, 0.0]]


def test_masked_cells_do_not_count_in_our_networks():
    net = network(OURS)
    points, rays, _ = view()
    mask = torch.rand(points.shape[:2], generator=torch.Generator().manual_seed(0)) < 0.6
    spoilt = torch.where(mask[..., None], points, 1e4)
    expected = regress_pose(net, points[:, mask[0]], rays[:, mask[0]], centre=torch.zeros(3))
    found = regress_pose(net, spoilt, rays, mask, centre=torch.zeros(3))
    # The sums are over other numbers of zeros, and the layers compute in bf16 where the processor can.
    assert torch.allclose(found.rotation, expected.rotation, atol=2e-2)
    assert torch.allclose(found.translation, expected.translation, atol=2e-2 * float(points.std()))


@pytest.mark.parametrize("part", ["reattention", "ray_encoding", "errors", "confidence"])
def test_every_part_of_our_network_changes_the_weights(part):
    points, rays, _ = view()
    confidence = torch.linspace(-1, 1, points.shape[1])[None]
    whole, without = (network(replace(OURS, **{part: value}))(points, rays, confidence)[-1] for value in (True, False))
    assert (whole.trust - without.trust).abs().max() > 1e-3


# --- the solver -----------------------------------------------------------------------------------------------------


def test_exact_points_give_the_exact_pose_whatever_it_is():
    for seed in range(8):
        points, rays, pose = view(count=20, seed=seed)
        rotation, translation = solve_weighted_pose(points, rays, torch.ones(1, 20))
        assert np.allclose(rotation[0].T, pose[:3, :3], atol=1e-4)
        assert np.allclose(-rotation[0].T @ translation[0], pose[:3, 3], atol=1e-3)


def test_points_on_a_plane_and_points_without_weight_are_no_problem():
    points, rays, pose = view(seed=1)
    local = torch.cat([rays, torch.ones_like(rays[..., :1])], -1) * (2.0 + rays[..., :1])
    points = (local @ torch.from_numpy(pose[:3, :3]).float().T + torch.from_numpy(pose[:3, 3]).float())
    weights = (torch.arange(300) % 2).float()[None]
    points[:, ::2] += 3.0
    rotation, _ = solve_weighted_pose(points, rays, weights)
    assert np.allclose(rotation[0].T, pose[:3, :3], atol=1e-3)


def test_the_solver_is_differentiable_in_the_weights():
    points, rays, _ = view(count=40, seed=2)
    generator = torch.Generator().manual_seed(0)
    points = points.double() + 0.02 * torch.randn(points.shape, generator=generator, dtype=torch.float64)
    weights = torch.rand((1, 40), generator=generator, dtype=torch.float64).add(0.5).requires_grad_(True)

    def value(weights):
        rotation, translation = solve_weighted_pose(points, rays, weights)
        return rotation[0, 0, 1] + translation[0, 2]

    value(weights).backward()
    step = torch.randn((1, 40), generator=generator, dtype=torch.float64)
    with torch.no_grad():
        expected = (value(weights + 1e-4 * step) - value(weights - 1e-4 * step)) / 2e-4
    assert float((weights.grad * step).sum()) == pytest.approx(float(expected), rel=0.05)


def test_the_first_pose_is_right_without_outliers_and_near_with_some():
    degrees = {0.0: [], 0.3: []}
    for seed in range(6):
        points, rays, pose = view(seed=seed)
        for share, found in degrees.items():
            wrong = torch.rand(points.shape[:2], generator=torch.Generator().manual_seed(seed)) < share
            start = start_pose(torch.where(wrong[..., None], points.flip(1), points), rays)
            found.append(np.rad2deg(Rotation.from_matrix(start.rotation[0].numpy() @ pose[:3, :3]).magnitude()))
    assert max(degrees[0.0]) < 0.1 and np.median(degrees[0.3]) < 5.0


# --- frames ---------------------------------------------------------------------------------------------------------


def test_the_frame_of_an_image_is_about_that_of_its_camera():
    for seed in range(5):
        points, rays, pose = view(seed=seed)
        frame = image_frame(points, rays, extent=10.0)
        turn = Rotation.from_matrix(frame.rotation[0].numpy().T @ pose[:3, :3]).magnitude()
        assert np.rad2deg(turn) < 35
        assert frame.to_frame(points).norm(dim=-1).median() == pytest.approx(10.0, rel=1e-3)


def test_poses_follow_a_map_that_is_moved_turned_and_scaled():
    net = network(OURS)
    points, rays, _ = view()
    turn, shift = torch.from_numpy(Rotation.random(random_state=5).as_matrix()).float(), torch.tensor([5.0, -3.0, 2.0])
    first = regress_pose(net, points, rays, centre=torch.zeros(3))
    second = regress_pose(net, 7.0 * points @ turn.T + shift, rays, centre=torch.zeros(3))
    assert torch.allclose(second.rotation, turn @ first.rotation, atol=2e-2)
    extent = 7.0 * float(points.std())
    assert torch.allclose(second.translation, 7.0 * first.translation @ turn.T + shift, atol=2e-2 * extent)


def test_outliers_hardly_turn_the_frame():
    points, rays, _ = view()
    wrong = torch.rand(points.shape[:2], generator=torch.Generator().manual_seed(0)) < 0.3
    spoilt = torch.where(wrong[..., None], points.flip(1), points)
    clean, found = (image_frame(each, rays, extent=1.0).rotation[0].numpy() for each in (points, spoilt))
    assert np.rad2deg(Rotation.from_matrix(clean.T @ found).magnitude()) < 15


# --- maps -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ace_map(tmp_path):
    """A map of ACE with an untrained head, and its encoder's file."""
    torch.manual_seed(0)
    torch.save(AceNet(32).state_dict(), tmp_path / "encoder.pt")
    main(["import", "ace-encoder", str(tmp_path / "encoder.pt"), "-o", str(tmp_path / "ace.safetensors")])
    encoder = load_encoder(str(tmp_path / "ace.safetensors"))
    head = SceneHead(32, 64, mean=torch.tensor([1.0, 2.0, 3.0]))
    scene_map = SceneMap(method="ace", networks={"encoder": NetworkReference.from_network(encoder)},
                         sections={"head": head.state_dict()}, settings={"patch_offset_px": 0.5})
    scene_map.save(tmp_path / "scene.map")
    save_pose_regressor(network(SMALL), tmp_path / "marepo.safetensors")
    return tmp_path


def test_a_map_of_ace_becomes_one_of_marepo(ace_map):
    assert main(["import", "marepo-map", str(ace_map / "scene.map"), "-o", str(ace_map / "new.map"), "--regressor",
                 str(ace_map / "marepo.safetensors")]) == 0
    made = SceneMap.load(ace_map / "new.map")
    assert made.method == "marepo" and made.settings["patch_offset_px"] == 0.5
    assert made.sections["pose_regressor"]["centre"].tolist() == [1.0, 2.0, 3.0]
    image = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    frame = Frame(image=image, camera=Camera(width=640, height=480, fx=525.0, fy=525.0, cx=320.0, cy=240.0))
    localizer = make_localizer(made, "cpu")
    estimate = localizer.localize(frame)
    assert not estimate.accepted and {"encode", "head", "regress", "gates"} <= set(estimate.stage_ms)
    grey = Frame(image=np.full_like(image, 90), camera=frame.camera)
    assert localizer.localize(grey).status is Status.BAD_IMAGE


def test_maps_without_scene_coordinates_are_rejected(ace_map):
    published = load_pose_regressor(str(ace_map / "marepo.safetensors"))
    scene_map = SceneMap.load(ace_map / "scene.map")
    database = replace(scene_map, method="ace_g", sections={
        "database": {}, "trajectory": {"map_from_camera": torch.eye(4).repeat(2, 1, 1)}})
    with pytest.raises(UserError, match="keyframe database has no scene coordinates for each cell: take one of ace or"):
        as_marepo_map(database, published)
    assert as_marepo_map(database).settings["coordinates"] == "database"
    with pytest.raises(UserError, match="method 'marepo' has no scene coordinates"):
        as_marepo_map(as_marepo_map(scene_map, published), published)


def test_the_published_network_is_mapped_for_with_a_head(ace_map):
    options = MappingOptions(encoder=str(ace_map / "ace.safetensors"))
    published = MarepoOptions(regressor=str(ace_map / "marepo.safetensors"))
    assert isinstance(MarepoMapper(options, published).coordinates, AceMapper)
    assert isinstance(MarepoMapper(MappingOptions(), MarepoOptions()).coordinates, AceGMapper)


def test_a_map_whose_transformer_changed_is_rejected(ace_map):
    regressor = load_pose_regressor(str(ace_map / "marepo.safetensors"))
    made = as_marepo_map(SceneMap.load(ace_map / "scene.map"), regressor)
    save_pose_regressor(network(OURS), ace_map / "marepo.safetensors")
    with pytest.raises(UserError, match="was made with pose regressor"):
        make_localizer(made, "cpu")


def test_files_that_are_no_pose_regressor_are_rejected(ace_map):
    with pytest.raises(UserError, match="No pose regressor 'nothing'"):
        load_pose_regressor("nothing")
    with pytest.raises(UserError, match="not a pose regressor"):
        load_pose_regressor(str(ace_map / "ace.safetensors"))
