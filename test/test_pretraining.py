"""Training of the encoder: its losses, and that an interrupted run ends as an uninterrupted one."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from aceg_ros.datasets import write_ace_scene
from aceg_ros.encoders.compact import CompactNet
from aceg_ros.errors import UserError
from aceg_ros.pretraining import encoder as training
from aceg_ros.pretraining.augment import Sample
from aceg_ros.pretraining.encoder import EncoderTraining, train
from aceg_ros.pretraining.encoder_data import EncoderData
from aceg_ros.pretraining.encoder_losses import coordinate_loss, encoder_losses, sample_at
from aceg_ros.synthetic.demo import demo_world, mapping_path


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
