"""Training of the encoder: its losses, and that an interrupted run ends as an uninterrupted one."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from aceg_ros.datasets import write_ace_scene
from aceg_ros.encoders.base import load_encoder
from aceg_ros.encoders.compact import CompactNet
from aceg_ros.errors import UserError
from aceg_ros.mapping.losses import points_at_depth
from aceg_ros.pretraining import ace_g as regressor_training
from aceg_ros.pretraining import encoder as training
from aceg_ros.pretraining.ace_g import RegressorTraining
from aceg_ros.pretraining.augment import Sample
from aceg_ros.pretraining.encoder import EncoderTraining, train
from aceg_ros.pretraining.encoder_data import EncoderData
from aceg_ros.pretraining.encoder_losses import coordinate_loss, encoder_losses, sample_at
from aceg_ros.pretraining.places import Place, PlaceData, make_place
from aceg_ros.synthetic.demo import demo_world, mapping_path
from aceg_ros.synthetic.rearrange import rearranged
from aceg_ros.synthetic.room import random_room
from aceg_ros.synthetic.textures import load_atlas
from aceg_ros.synthetic.visits import mapping_and_later_visit


def test_features_are_sampled_where_the_pixel_is():
    """The grid holds its own pixel coordinates: sampling gives them back, between cell centres too."""
    rows, columns = torch.meshgrid(torch.arange(6.0), torch.arange(8.0), indexing="ij")
    grid = (torch.stack([columns, rows]) + 0.5) * 8 - 0.5
    points = torch.tensor([[3.5, 3.5], [30.0, 21.0], [55.0, 40.0]])
    assert torch.allclose(sample_at(grid, points, 64, 48), points, atol=1e-3)


def test_coordinate_loss_rewards_features_that_tell_where_a_point_is():
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(200, 3, generator=generator)
    telling = torch.nn.functional.normalize(torch.sin(points @ torch.randn(3, 64, generator=generator) * 2), dim=1)
    mute = torch.nn.functional.normalize(torch.randn(200, 64, generator=generator), dim=1)
    assert coordinate_loss(telling, telling, points).item() < 0.25 * coordinate_loss(mute, mute, points).item()


def test_losses_fall_when_a_batch_is_learned():
    """A few steps on one batch, with every kind of loss in it."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    image = rng.integers(0, 255, (96, 128, 3), np.uint8)
    points = np.stack([rng.uniform(8, 88, (64, 2))] * 2)
    batch = [Sample(np.stack([image, image[::-1].copy()]), points, "a", rng.uniform(0, 3, (64, 3)), None),
             Sample(np.stack([image, image]), points, "b", None, rng.normal(size=(64, 16)).astype(np.float16))]
    net, pupil = CompactNet(), torch.nn.Linear(128, 16)
    optimizer = torch.optim.AdamW([*net.parameters(), *pupil.parameters()], lr=2e-3)
    totals = []
    for _ in range(12):
        losses = encoder_losses(net, batch, "cpu", pupil)
        assert set(losses.terms) == {"contrast", "reliability", "coordinates", "teacher"}
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        totals.append(losses.total.item())
    assert totals[-1] < 0.8 * totals[0]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scene")
    world = demo_world()
    write_ace_scene(folder, (world.photograph(pose, name=f"{index:06d}")
                             for index, pose in enumerate(mapping_path(60, world.room)[:3])))
    return folder


def test_an_interrupted_run_ends_as_an_uninterrupted_one(scene, tmp_path, monkeypatch):
    data = EncoderData((scene,), rooms=3, held_out_rooms=1, teacher="sift", teacher_every=1)

    def options(run):
        return EncoderTraining(run, data, iterations=4, pairs=2, points=48, width=160, height=128, keep_every=2)

    whole = load_file(train(options(tmp_path / "whole")))
    shutil.copytree(tmp_path / "whole" / "rendered", tmp_path / "halves" / "rendered")
    calls = []

    def interrupted(*arguments):
        calls.append(0)
        if len(calls) == 15:                     # two steps, twelve batches of evaluation, and then
            raise KeyboardInterrupt
        return encoder_losses(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(training, "encoder_losses", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(options(tmp_path / "halves"))
    halves = load_file(train(options(tmp_path / "halves")))
    assert all(torch.equal(whole[key], halves[key]) for key in whole)
    curve = [json.loads(line) for line in (tmp_path / "halves" / "curve.jsonl").read_text().splitlines()]
    assert [entry["iteration"] for entry in curve if "held_out_hit" in entry] == [2, 4]


def test_what_cannot_be_used_is_said_before_anything_is_computed(tmp_path):
    for data, word in ((EncoderData(rooms=5), "held out"), (EncoderData(textures=tmp_path / "none"), "none"),
                       (EncoderData((tmp_path / "nowhere",)), "nowhere"), (EncoderData(teacher="nobody"), "nobody")):
        with pytest.raises(UserError, match=word):
            train(EncoderTraining(tmp_path / "run", data))
    assert not (tmp_path / "run").exists()


# --- the regressor of ace_g -----------------------------------------------------------------------------------------


def made_up_place(seed: int) -> Place:
    """Landmarks whose features tell where they are, and one picture of patches at some of them."""
    rng = np.random.default_rng(seed)
    points = rng.uniform((-2, -2, 3), (2, 2, 6), (900, 3))
    features = np.sin(points @ np.random.default_rng(1).normal(0, 2, (3, 128)))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    asked = rng.permutation(900)[:300]
    pixels = points[asked, :2] / points[asked, 2:] * 300 + (240, 180)
    kept = (pixels > 0).all(1) & (pixels < (480, 360)).all(1)
    asked, pixels = asked[kept], pixels[kept]
    arrays = (features.astype(np.float16), points.astype(np.float32), rng.integers(0, 9, 900),
              features[asked].astype(np.float16), pixels.astype(np.float32), np.zeros(len(asked), np.int64),
              points[asked, 2].astype(np.float32), np.eye(4, dtype=np.float32)[None, :3],
              np.array([[300.0, 300.0, 240.0, 180.0]], np.float32))
    return Place(*map(torch.from_numpy, arrays))


@pytest.fixture
def places(monkeypatch):
    made = [made_up_place(seed) for seed in range(3)]
    monkeypatch.setattr(regressor_training, "open_places", lambda data, folder: (made[:2], made[2:]))


@pytest.mark.parametrize("query_share", [1.0, 0.0])
def test_regressor_run_resumes_and_ends_as_one_that_was_not_interrupted(tmp_path, places, monkeypatch, query_share):
    options = RegressorTraining(tmp_path / "whole", PlaceData(), iterations=8, batch=64, keep_every=4,
                                query_share=query_share)
    for name in ("whole", "parts"):
        (tmp_path / name).mkdir()
    whole = load_file(regressor_training.train(options))
    parts = replace(options, run=tmp_path / "parts")
    steps = iter(range(6))

    def interrupted(*arguments):
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return step(*arguments)

    step = regressor_training._step_loss
    monkeypatch.setattr(regressor_training, "_step_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        regressor_training.train(parts)
    monkeypatch.setattr(regressor_training, "_step_loss", step)
    resumed = load_file(regressor_training.train(parts))
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
    last = json.loads((tmp_path / "whole" / "curve.jsonl").read_text().splitlines()[-1])
    assert last["iteration"] == 8 and last["recall"] == last["nearest_recall"] == 1.0


def test_regressor_learns_what_the_nearest_landmark_gets_wrong(tmp_path, places):
    options = RegressorTraining(tmp_path, PlaceData(), iterations=120, batch=128, keep_every=120, peak_rate=3e-3)
    regressor_training.train(options)
    curve = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in curve if "loss" in entry]
    before, after = (entry for entry in curve if "median_m" in entry)
    assert after["median_m"] <= before["median_m"] + 0.01 and losses


def test_a_place_is_a_mapping_visit_and_a_later_one_of_the_same_room():
    """Points of the later visit's patches, by their depths, are where the landmarks they resemble are."""
    mapping, later = mapping_and_later_visit(2_000_003, load_atlas(None), mapping=8, later=2, stations=1)
    place = make_place(list(mapping), list(later), load_encoder("compact"))
    assert len(place.points) > 500 and len(place.camera_from_map) == 2
    index = torch.arange(len(place.features))
    view = place.view(index)
    points = regressor_training._in_map(view, points_at_depth(view, place.depth[:, None]))
    similarity, nearest = (place.features.float() @ place.keys.float().T).max(1)
    apart = (place.points[nearest] - points).norm(dim=1)
    assert apart[similarity > similarity.quantile(0.9)].median() < 0.2


def test_rearranged_rooms_keep_their_walls():
    room = random_room(5, 100)
    changed = rearranged(room, np.random.default_rng(0), moved=0.3, gone=0.3)
    assert np.array_equal(changed.centre[0], room.centre[0]) and np.array_equal(changed.half[0], room.half[0])
    assert len(changed) < len(room)
    kept = [np.flatnonzero((room.half == half).all(1))[0] for half in changed.half]
    moved = np.abs(changed.centre - room.centre[kept]).max(1) > 1e-6
    assert 0.1 < moved.mean() < 0.7
    same = rearranged(room, np.random.default_rng(0), moved=0.0, gone=0.0)
    assert np.array_equal(same.centre, room.centre)
