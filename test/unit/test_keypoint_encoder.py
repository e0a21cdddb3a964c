# SPDX-License-Identifier: Apache-2.0
"""The encoder with keypoints of its own, and its training."""

import cv2
import numpy as np
import pytest
import torch
from torch.nn import functional

from aceg_ros.benchmarks.made_up_scenes import write_encoder_data
from aceg_ros.encoders.base import load_encoder
from aceg_ros.encoders.compact import fuse_batch_norm
from aceg_ros.encoders.compact2 import Compact2Net, bilinear_rows, find_keypoints, sample_rows
from aceg_ros.encoders.compact3 import Compact3Net, patches_around
from aceg_ros.encoders.corners import sample
from aceg_ros.encoders.keypoints import extract_keypoints, select_keypoints
from aceg_ros.encoders.preprocess import image_to_tensor
from aceg_ros.errors import UserError
from aceg_ros.networks.weights_file import read_weights
from aceg_ros.pretraining.common.loop import batches_of_processes
from aceg_ros.pretraining.common.run import write_arrays
from aceg_ros.pretraining.encoder import packing
from aceg_ros.pretraining.encoder.chunks import Chunk, chunk_indices
from aceg_ros.pretraining.encoder.keypoint_batch import cell_targets, collate, transfer_pixels
from aceg_ros.pretraining.encoder.keypoint_losses import keypoint_losses, repetition_loss
from aceg_ros.pretraining.encoder.keypoint_samples import (
    ChunkFiles,
    CropSize,
    MatchedImages,
    RenderedRooms,
    WarpedImages,
)
from aceg_ros.pretraining.encoder.keypoint_scores import exact_scores, room_pairs
from aceg_ros.pretraining.encoder.keypoint_train import KeypointTask, KeypointTraining, load_start, train
from aceg_ros.pretraining.encoder.packing import pack, unpack
from aceg_ros.pretraining.encoder.rendered_pairs import render_views
from aceg_ros.pretraining.encoder.teacher import detect_peaks
from aceg_ros.synthetic.textures import load_atlas

SIZE = CropSize(width=128, height=96)


@pytest.fixture(scope="module")
def room():
    return render_views(3, load_atlas(None), width=240, height=184, count=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_encoder_data(folder)
    return folder


@pytest.mark.parametrize("make", [Compact2Net, Compact3Net])
def test_folding_the_batch_norms_changes_nothing(make):
    net = make()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    images = torch.rand(2, 3, 72, 104)
    with torch.inference_mode():
        net.train()(images)
        before = net.eval().raw_output(images)
        after = fuse_batch_norm(net).raw_output(images)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-3) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("make", [Compact2Net, Compact3Net])
def test_each_cell_has_a_keypoint_and_a_unit_descriptor(make):
    with torch.inference_mode():
        found = make().eval()(torch.rand(2, 3, 72, 104))
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


def test_rows_are_sampled_as_by_grid_sampling():
    grid, places = torch.randn(2, 16, 5, 7), torch.rand(2, 30, 2) * torch.tensor([8.0, 6.0]) - 1
    expected = functional.grid_sample(grid, ((places + 0.5) / torch.tensor([7, 5]) * 2 - 1)[:, None], mode="bilinear",
                                      padding_mode="border", align_corners=False)
    assert torch.allclose(bilinear_rows(grid, places), expected[:, :, 0].transpose(1, 2), atol=1e-4)


def test_the_detail_of_a_keypoint_is_around_it():
    columns = torch.arange(20).expand(1, 1, 16, 20) + 100.0 * torch.arange(16)[:, None]
    # Pixel 16.5 lies between the places 7 and 8 of the map at half of the resolution, whose centres are 14.5 and 16.5.
    patch = patches_around(columns, torch.tensor([[[16.5, 10.5]]])).reshape(4, 4)
    assert patch[0].tolist() in ([306, 307, 308, 309], [307, 308, 309, 310], [406, 407, 408, 409], [407, 408, 409, 410])
    assert (patch[1] - patch[0]).tolist() == [100] * 4


@pytest.mark.parametrize("make", [Compact2Net, Compact3Net])
def test_positions_are_not_rounded_to_16_bits(make):
    net, images = make().eval(), torch.rand(1, 3, 64, 640)
    with torch.inference_mode():
        peaks = net.raw_output(images).peaks
        exact = find_keypoints(peaks)[0]
        with torch.autocast("cpu", torch.bfloat16):
            rounded = find_keypoints(peaks)[0]
    assert torch.allclose(exact, rounded, atol=1e-3)


def test_the_heaviest_target_of_a_cell_counts():
    targets = cell_targets(np.array([[1.0, 1.0, 0.1], [5.0, 3.0, 0.9], [2.0, 2.0, 0.5], [100, 3, 1]]), SIZE)
    assert targets[0, 0].tolist() == pytest.approx([5, 3, 0.9]) and targets[0, 12, 2] == 1
    assert (targets[..., 2] > 0).sum() == 2
    share = torch.full((1, 4, 64), -9.0)
    share[0, 0, 3 * 8 + 5] = 0.0
    pixels = torch.tensor([[[1.0, 1.0], [5.0, 3.0]]])
    right = repetition_loss(share, pixels, torch.tensor([[0.1, 0.9]]), columns=2)
    wrong = repetition_loss(share, pixels, torch.tensor([[0.9, 0.1]]), columns=2)
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


def drawn(source, seed):
    rng = np.random.default_rng(seed)
    return next(one for one in (source.draw(rng, SIZE) for _ in range(50)) if one is not None)


def batch_of(samples, points=64):
    return collate(samples, np.random.default_rng(0), points)


def test_transfers_are_where_the_same_surface_is(data, room):
    """Crops of a rendered room with even light: pixels and their transfers show the same surface."""
    sample_drawn = drawn(RenderedRooms([room], ["room"]), 1)
    surface = sample_drawn.transfer.surface
    pixels = np.random.default_rng(1).uniform((8, 8), (120, 88), (200, 2))
    there, visible = transfer_pixels(batch_of([sample_drawn]), torch.from_numpy(pixels).float()[None])
    visible = visible[0].numpy()
    assert visible.sum() > 20 and SIZE.inside(there[0].numpy()[visible]).all()
    depths = []
    for moved, warp, depth in ((pixels, sample_drawn.transfer.back, surface.depth_m[0]),
                               (there[0].numpy(), np.linalg.inv(sample_drawn.transfer.forward), surface.depth_m[1])):
        original = cv2.perspectiveTransform(moved[visible][:, None].astype(float), warp)[:, 0]
        z = depth[tuple(original.round().astype(int).T[::-1])].astype(float)
        rays = (original - np.array([239, 183]) / 2) / surface.focal_px
        depths.append(np.column_stack([rays * z[:, None], z]))
    expected = depths[0] @ surface.b_from_a[:3, :3].T + surface.b_from_a[:3, 3]
    assert np.median(np.linalg.norm(depths[1] - expected, axis=1)) < 0.02


def test_matched_points_of_warps_agree_with_the_transfer(data):
    batch = batch_of([drawn(WarpedImages(ChunkFiles(data / "chunks")), 2)])
    moved, _ = transfer_pixels(batch, batch.points[:, 0])
    assert batch.count > 5 and len(batch.surfaces) == 0
    assert torch.allclose(moved[0, :batch.count], batch.points[0, 1, :batch.count], atol=1e-3)


def test_pixels_of_matched_images_cannot_be_transferred(data):
    batch = batch_of([drawn(MatchedImages(ChunkFiles(data / "chunks")), 2)])
    assert not transfer_pixels(batch, batch.points[:, 0])[1].any()


def test_losses_fall_when_a_batch_is_learned(data, room):
    torch.manual_seed(0)
    files = ChunkFiles(data / "chunks")
    batch = batch_of([drawn(source, 3) for source in (WarpedImages(files), MatchedImages(files),
                                                      RenderedRooms([room], ["room"]))])
    net, student = Compact3Net(), torch.nn.Linear(128, 128)
    optimizer = torch.optim.Adam([*net.parameters(), *student.parameters()], lr=2e-3)
    history = []
    for _ in range(40):
        losses = keypoint_losses(net.train(), batch, student)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.terms.items()})
    assert set(history[0]) == {"contrast", "teacher", "detection", "repetition", "precision", "reliability"}
    assert history[-1]["detection"] < history[0]["detection"] - 0.1
    assert history[-1]["teacher"] < history[0]["teacher"] - 0.1
    assert history[-1]["contrast"] < history[0]["contrast"] - 0.5


def test_batches_drawn_in_processes_are_the_same(data, tmp_path):
    task = KeypointTask(Compact3Net(), KeypointTraining(run=tmp_path, data=data, pairs=2, points=16, width=128,
                                                        height=96))
    expected = [task.draw(iteration) for iteration in range(3)]
    for one, other in zip(batches_of_processes(task, range(3), 2), expected, strict=True):
        assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("images", "points", "chance"))


def test_packed_chunks_are_the_same_but_for_losses(data, tmp_path, monkeypatch):
    class Describes:
        def describe(self, image, pixels):
            return np.ones((len(pixels), 128), np.float16)

    monkeypatch.setattr(packing, "load_detector", lambda device: Describes())
    files = sorted((data / "chunks").glob("*.npz"))
    parts = list(pack(files, 1))
    assert len(parts) == len(files)
    write_arrays(tmp_path / "part.npz", next(pack(files, 10**8)))
    assert unpack(tmp_path / "part.npz", tmp_path / "chunks", "cpu") == len(files)
    before, after = Chunk.load(files[0]), Chunk.load(tmp_path / "chunks" / files[0].name)
    assert after.scene == before.scene and len(after.matches) == len(before.matches) == 1
    assert np.array_equal(after.matches[0].indices, before.matches[0].indices)
    assert np.abs(after.detections[1].pixels - before.detections[1].pixels).max() < 0.01
    assert after.detections[1].descriptors.shape == before.detections[1].descriptors.shape
    assert np.abs(after.images[0].astype(int) - before.images[0]).mean() < 8


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
    assert encoder.identity.startswith("compact3:") and found.keypoints.shape == (1, 2, 12, 16)


def test_described_alone_the_best_keypoints_are_the_same(room):
    encoder = load_encoder("compact4")
    mask = np.arange(room.images.shape[2]) < 150
    mask = np.broadcast_to(mask, room.images.shape[1:3])
    few = extract_keypoints(room.images[0], room.camera, encoder, mask=mask, max_count=100)
    every = select_keypoints(encoder.detect(image_to_tensor(room.images[0], "cpu")), room.camera, encoder.stride,
                             mask=mask, max_count=100)
    assert np.array_equal(few.cells, every.cells) and np.array_equal(few.pixels, every.pixels)
    assert (few.pixels[:, 0] < 155).all() and len(few) == 100
    assert torch.allclose(few.descriptors, every.descriptors, atol=0.02)


def test_weights_to_begin_with_must_fit(tmp_path):
    for source, says in (("nothing.safetensors", "no weights"), ("ace_g", "begin with")):
        with pytest.raises(UserError, match=says):
            load_start(Compact3Net(), source)


def test_scores_of_a_perfect_match_are_perfect(room):
    net = load_encoder("compact2").net
    pair = room_pairs([room], 1)[0]
    same = type(pair)(images=(pair.images[0], pair.images[0]),
                      transfer=lambda pixels: (pixels, np.ones(len(pixels), bool)))
    scores = exact_scores(net, [same])
    assert scores["match"] == scores["repeat"] == 1.0 and scores["error_px"] == pytest.approx(0.0, abs=1e-4)
