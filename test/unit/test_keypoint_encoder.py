"""The encoder with keypoints of its own, and its training."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from aceg_ros.encoders.base import load_encoder
from aceg_ros.encoders.compact import CompactNet, fuse_batch_norm
from aceg_ros.encoders.compact2 import (
    Compact2Net,
    choose_keypoints,
    find_keypoints,
    sample_rows,
    start_from_compact,
)
from aceg_ros.encoders.corners import sample
from aceg_ros.errors import UserError
from aceg_ros.networks.weights_file import find_weights, read_weights
from aceg_ros.pretraining.encoder.chunks import Chunk, Match, chunk_indices
from aceg_ros.pretraining.encoder.keypoint_losses import Pixels, keypoint_losses, position_loss
from aceg_ros.pretraining.encoder.keypoint_samples import (
    ChunkFiles,
    CropSize,
    MatchedImages,
    RenderedRooms,
    WarpedImages,
)
from aceg_ros.pretraining.encoder.keypoint_scores import exact_scores, room_pairs
from aceg_ros.pretraining.encoder.keypoint_train import KeypointTraining, load_start, train
from aceg_ros.pretraining.encoder.rendered_pairs import render_views
from aceg_ros.pretraining.encoder.teacher import Detections, detect_peaks
from aceg_ros.synthetic.textures import load_atlas

SIZE = CropSize(width=128, height=96)


def shipped(name):
    return {key: value.float() for key, value in read_weights(find_weights(name)[0], "encoder").tensors.items()}


@pytest.fixture(scope="module")
def room():
    return render_views(3, load_atlas(None), width=240, height=184, count=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory, room):
    """Prepared data: 14 times the same small room, and two chunks of its views, as if real."""
    folder = tmp_path_factory.mktemp("data")
    for number in range(14):
        room.save(folder / "rendered" / f"room_{number:05d}.npz")
    rng = np.random.default_rng(0)
    pixels = rng.uniform((12, 12), (225, 170), (120, 2)).astype(np.float32)
    found = Detections(pixels=pixels, scores=np.linspace(1, 0.1, 120, dtype=np.float32),
                       descriptors=functional.normalize(torch.randn(100, 128), dim=1).half().numpy())
    pairs = np.column_stack([np.arange(90), np.arange(90)])
    for name in ("a_000", "b_000"):
        Chunk(scene=name[0], images=[room.images[0], room.images[0]], detections=[found, found],
              matches=[Match(a=0, b=1, indices=pairs)]).save(folder / "chunks" / f"{name}.npz")
    return folder


def test_it_begins_with_the_descriptors_of_compact():
    state, images = shipped("compact"), torch.rand(2, 3, 96, 128)
    before, after = CompactNet().eval(), Compact2Net().eval()
    before.load_state_dict(state, strict=False)
    start_from_compact(after, state)
    with torch.inference_mode():
        assert torch.allclose(before.raw(images)[0], after.raw_output(images).features, atol=1e-4)
        centres, expected = after.at_centres(images), before(images)
    assert centres.keypoints is None and torch.allclose(centres.features, expected.features, atol=1e-3)
    assert torch.allclose(centres.reliability, expected.reliability, atol=1e-4)


def test_folding_the_batch_norms_changes_nothing():
    net = Compact2Net()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    images = torch.rand(2, 3, 72, 104)
    with torch.inference_mode():
        net.train()(images)
        before = net.eval().raw_output(images)
        after = fuse_batch_norm(net).raw_output(images)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(before, after, strict=True))


def test_each_cell_has_a_keypoint_and_a_unit_descriptor():
    with torch.inference_mode():
        found = Compact2Net().eval()(torch.rand(2, 3, 72, 104))
    assert found.features.shape == (2, 128, 9, 13) and found.reliability.shape == (2, 9, 13)
    assert torch.allclose(found.features.norm(dim=1), torch.tensor(128**0.5), rtol=1e-3)
    corner = torch.stack(torch.meshgrid(torch.arange(13) * 8, torch.arange(9) * 8, indexing="xy"))
    inside = found.keypoints - corner
    assert (inside > -2.01).all() and (inside < 9.01).all()


def test_a_keypoint_is_the_peak_of_its_cell_to_a_fraction_of_a_pixel():
    x, y = torch.arange(24.0), torch.arange(16.0)
    peaks = -0.5 * ((x[None] - 11.3)**2 + (y[:, None] - 4.8)**2)
    keypoints, log_share = find_keypoints(peaks[None])
    assert keypoints[0, :, 0, 1].tolist() == pytest.approx([11.3, 4.8], abs=0.1)
    assert log_share[0, 0, 1] < 0 and log_share.shape == (1, 2, 3)


def test_descriptors_are_sampled_as_by_grid_sampling():
    features = torch.randn(2, 128, 5, 7)
    keypoints = torch.rand(2, 2, 5, 7) * torch.tensor([60.0, 44.0])[:, None, None] - 2
    expected = sample(features, keypoints.permute(0, 2, 3, 1), 8)
    assert torch.allclose(sample_rows(features, keypoints), expected, atol=1e-3)


def test_positions_are_not_rounded_to_16_bits():
    net, images = Compact2Net().eval(), torch.rand(1, 3, 64, 640)
    with torch.inference_mode():
        raw = net.raw_output(images)
        exact = choose_keypoints(raw, net.rate_peak)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = choose_keypoints(raw, net.rate_peak)
    assert torch.allclose(exact.keypoints, rounded.keypoints, atol=1e-3)


def test_the_position_loss_counts_the_heaviest_target_of_a_cell():
    peaks = torch.zeros(1, 16, 16)
    peaks[0, 3, 5] = 9.0
    targets = Pixels(image=torch.tensor([0, 0]), xy=torch.tensor([[1.0, 1.0], [5.0, 3.0]]))
    right = position_loss(peaks, targets, torch.tensor([0.1, 0.9]))
    wrong = position_loss(peaks, targets, torch.tensor([0.9, 0.1]))
    assert right < 0.1 and wrong > 5


def test_peaks_of_a_score_map_are_sub_pixel():
    x, y = torch.arange(40.0), torch.arange(30.0)
    score = torch.exp(-0.5 * ((x[None] - 20.4)**2 + (y[:, None] - 12.0)**2) / 1.5**2)
    found = detect_peaks(score, 10)
    assert found[0].tolist() == pytest.approx([20.4, 12.0, 1.0], abs=0.2)


def test_chunks_cover_a_scene_once():
    for length in (11, 12, 13, 30, 100):
        chosen = [index for number in range(20) for index in chunk_indices(length, number)]
        assert len(chosen) == len(set(chosen)) and set(chosen) <= set(range(length))
        assert len(chosen) > 0.4 * length


def test_transfers_are_where_the_same_surface_is(data, room):
    files, rng = ChunkFiles(data / "chunks"), np.random.default_rng(1)
    for source in (WarpedImages(files), RenderedRooms([room], ["room"])):
        sample_drawn = next(drawn for drawn in (source.draw(rng, SIZE) for _ in range(20)) if drawn is not None)
        pixels = rng.uniform((8, 8), (120, 88), (200, 2))
        there, visible = sample_drawn.transfer(pixels)
        assert visible.any() and SIZE.inside(there[visible]).all()
        assert len(sample_drawn.detections[0]) > 0
    if len(sample_drawn.points[0]):
        moved, seen = sample_drawn.transfer(sample_drawn.points[0])
        assert np.allclose(moved[seen], sample_drawn.points[1][seen], atol=0.5)


def test_matched_points_of_warps_agree_with_the_transfer(data):
    source, rng = WarpedImages(ChunkFiles(data / "chunks")), np.random.default_rng(2)
    drawn = next(one for one in (source.draw(rng, SIZE) for _ in range(20)) if one is not None and len(one.points[0]))
    moved, _ = drawn.transfer(drawn.points[0])
    assert np.allclose(moved, drawn.points[1], atol=1e-6)


def test_losses_fall_when_a_batch_is_learned(data, room):
    torch.manual_seed(0)
    files, rng = ChunkFiles(data / "chunks"), np.random.default_rng(3)
    sources = [WarpedImages(files), MatchedImages(files), RenderedRooms([room], ["room"])]
    batch = [next(one for one in (source.draw(rng, SIZE) for _ in range(50)) if one is not None) for source in sources]
    net, student = Compact2Net(), torch.nn.Linear(128, 128)
    start_from_compact(net, shipped("compact"))
    optimizer = torch.optim.Adam([*net.parameters(), *student.parameters()], lr=2e-3)
    history = []
    for _ in range(25):
        losses = keypoint_losses(net.train(), batch, np.random.default_rng(0), student=student, points=64)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.terms.items()})
    assert set(history[0]) == {"contrast", "teacher", "detection", "repetition", "precision", "reliability"}
    assert history[-1]["detection"] < history[0]["detection"] - 0.1
    assert history[-1]["teacher"] < history[0]["teacher"] - 0.1
    assert history[-1]["contrast"] < history[0]["contrast"]


def test_an_interrupted_run_ends_as_an_uninterrupted_one(data, tmp_path):
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        options = {"data": data, "pairs": 2, "points": 32, "width": 128, "height": 96, "checkpoint_every": 2}
        whole = train(KeypointTraining(run=tmp_path / "whole", iterations=4, **options))
        steps = iter(range(100))
        train(KeypointTraining(run=tmp_path / "parts", iterations=4, **options), should_stop=lambda: next(steps) >= 2)
        parts = train(KeypointTraining(run=tmp_path / "parts", iterations=4, **options))
    finally:
        torch.use_deterministic_algorithms(False)
    a, b = (read_weights(path, "encoder").tensors for path in (whole, parts))
    assert a.keys() == b.keys() and all(torch.allclose(a[key], b[key], atol=1e-3) for key in a)
    encoder = load_encoder(str(whole))
    found = encoder.detect(torch.rand(1, 3, 96, 128))
    assert encoder.identity.startswith("compact2:") and found.keypoints.shape == (1, 2, 12, 16)


def test_weights_to_begin_with_must_fit(tmp_path):
    for source, says in (("nothing.safetensors", "no weights"), ("ace_g", "begin with")):
        with pytest.raises(UserError, match=says):
            load_start(Compact2Net(), source)


def test_scores_of_a_perfect_match_are_perfect(room):
    net = Compact2Net().eval()
    start_from_compact(net, shipped("compact"))
    pair = room_pairs([room], 1)[0]
    same = type(pair)(images=(pair.images[0], pair.images[0]),
                      transfer=lambda pixels: (pixels, np.ones(len(pixels), bool)))
    scores = exact_scores(net, [same])
    assert scores["match"] == scores["repeat"] == 1.0 and scores["error_px"] == pytest.approx(0.0, abs=1e-4)
