"""Training of the encoder and of both regressors: losses, and that an interrupted run ends as an uninterrupted one."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.spatial.transform import Rotation

from aceg_ros.datasets import write_ace_scene
from aceg_ros.encoders.base import load_encoder
from aceg_ros.encoders.compact import CompactNet
from aceg_ros.errors import UserError
from aceg_ros.mapping.losses import reproject
from aceg_ros.networks.map_code_transformer import MapCode, TransformerHead, TransformerHeadConfig
from aceg_ros.networks.regressor import load_regressor
from aceg_ros.pretraining import ace_g as regressor_training
from aceg_ros.pretraining import encoder as training
from aceg_ros.pretraining.ace_g import map_codes
from aceg_ros.pretraining.ace_g.map_codes import CodePretraining
from aceg_ros.pretraining.ace_g.scenes import Place, PlaceData, make_place
from aceg_ros.pretraining.ace_g.train import RegressorTraining
from aceg_ros.pretraining.encoder.augment import Sample
from aceg_ros.pretraining.encoder.data import EncoderData
from aceg_ros.pretraining.encoder.losses import coordinate_loss, encoder_losses, sample_at
from aceg_ros.pretraining.encoder.train import EncoderTraining, train
from aceg_ros.synthetic.demo_room import demo_world, mapping_path
from aceg_ros.synthetic.move_objects import with_objects_moved
from aceg_ros.synthetic.room import random_room
from aceg_ros.synthetic.room_sessions import render_room_sessions
from aceg_ros.synthetic.textures import load_atlas


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
    write_ace_scene(folder, (world.render_frame(pose, name=f"{index:06d}")
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
    with pytest.raises(UserError, match="begun with other options"):
        train(replace(options(tmp_path / "halves"), without=("teacher",)))
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
    mapping, later = render_room_sessions(2_000_003, load_atlas(None), mapping=8, query=2, viewpoints=1)
    place = make_place(list(mapping), list(later), load_encoder("compact"))
    assert len(place.points) > 500 and len(place.camera_from_map) == 2
    points = place.truth(torch.arange(len(place.features)))
    similarity, nearest = (place.features.float() @ place.keys.float().T).max(1)
    apart = (place.points[nearest] - points).norm(dim=1)
    assert apart[similarity > similarity.quantile(0.9)].median() < 0.2


def test_rearranged_rooms_keep_their_walls():
    room = random_room(5, 100)
    changed = with_objects_moved(room, np.random.default_rng(0), moved=0.3, removed=0.3)
    assert np.array_equal(changed.centre[0], room.centre[0]) and np.array_equal(changed.half[0], room.half[0])
    assert len(changed) < len(room)
    kept = [np.flatnonzero((room.half == half).all(1))[0] for half in changed.half]
    moved = np.abs(changed.centre - room.centre[kept]).max(1) > 1e-6
    assert 0.1 < moved.mean() < 0.7
    same = with_objects_moved(room, np.random.default_rng(0), moved=0.0, removed=0.0)
    assert np.array_equal(same.centre, room.centre)


# --- the published pre-training: codes from noise -------------------------------------------------------------------


SMALL = TransformerHeadConfig(dim_in=128, num_blocks=2, num_attention_heads=2, dim_emb=32, mlp_ratio=1.0,
                              final_mlp_ratio=1.0, unit_features=True)


@pytest.fixture
def coded_places(monkeypatch):
    made = [made_up_place(seed) for seed in range(3)]
    monkeypatch.setattr(map_codes, "open_places", lambda data, folder: (made[:2], made[2:]))


def coding(run, **changes):
    run.mkdir(exist_ok=True)
    return CodePretraining(run, PlaceData(), **{"iterations": 60, "size": SMALL, "codes": 16, "active": 3,
                                                "lifetime": 15, "batch": 64, "keep_every": 30} | changes)


def test_code_pretraining_resumes_and_ends_as_one_that_was_not_interrupted(tmp_path, coded_places, monkeypatch):
    whole = load_file(map_codes.train(coding(tmp_path / "whole")))
    step, steps = map_codes._step, iter(range(40))

    def interrupted(*arguments):
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return step(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(map_codes, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            map_codes.train(coding(tmp_path / "parts"))
    parts = load_file(map_codes.train(coding(tmp_path / "parts")))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    last = json.loads((tmp_path / "parts" / "curve.jsonl").read_text().splitlines()[-1])
    assert last["iteration"] == 60 and np.isfinite(last["median_m"])
    regressor = load_regressor(str(tmp_path / "whole" / "ace_g.safetensors"))
    assert regressor.codes == 16
    features, code = torch.rand(5, 128), torch.rand(16, 32)           # of any length: mapping's are not of unit length
    said = [regressor.net(scale * features, MapCode(code, torch.zeros(3))).coordinates for scale in (1.0, 11.3)]
    assert torch.allclose(*said, atol=1e-4)


def test_similarity_transforms_move_a_place_but_not_what_its_pictures_see():
    place = somewhere(made_up_place(0))
    index = torch.arange(len(place.features))
    mirrored = set()
    for seed in range(6):
        moved = map_codes.transformed(place, np.random.default_rng(seed))
        mirrored.add(bool(torch.linalg.det(moved.camera_from_map[0, :, :3]) < 0))
        truth = moved.truth(index)
        assert torch.allclose(reproject(truth, moved.view(index)).error_px, torch.zeros(len(index)), atol=0.05)
        nearest = torch.cdist(truth, moved.points).min(1).values     # its patches are some of its landmarks
        assert nearest.max() < 0.02                                  # cdist rounds
        radius = (moved.points - moved.points.mean(0)).norm(dim=1).median()
        assert map_codes.RADIUS_M[0] * 0.99 < radius < map_codes.RADIUS_M[1] * 1.01
    assert mirrored == {False, True}


def somewhere(place: Place) -> Place:
    """The place with its map turned and moved: cameras do not stand at its origin."""
    turn = torch.from_numpy(Rotation.from_euler("xyz", (0.4, -0.8, 1.1)).as_matrix()).float()
    shift = torch.tensor([3.0, -1.0, 2.0])
    rotation, translation = place.camera_from_map[:, :, :3], place.camera_from_map[:, :, 3]
    return replace(place, points=place.points @ turn.T + shift,
                   camera_from_map=torch.cat([rotation @ turn.T,
                                              (translation - rotation @ turn.T @ shift)[:, :, None]], 2))


def test_query_steps_train_the_regressor_and_leave_the_code_alone():
    embeddings, gradients = [], []
    for share in (0.0, 1.0):
        options = CodePretraining(Path(), PlaceData(), size=SMALL, codes=16, lifetime=60, batch=256, query_share=share,
                                  feature_dropout=0.0)
        torch.manual_seed(0)
        net, place = TransformerHead(SMALL), made_up_place(0)
        code = map_codes.new_code(place, options, 0)
        slot = map_codes._Slot(0, place, code, map_codes.code_optimizer(code, options), 30, 60)
        for step in range(3):
            asked = dict(map_codes._step(net, slot, np.random.default_rng(step), options))
            assert ("query_loss" in asked) == (share > 0) and code.embeddings.grad is None
        embeddings.append(code.embeddings.detach())
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in net.parameters()]))
    assert torch.equal(*embeddings) and not torch.allclose(*gradients)


def test_a_code_can_be_fitted_to_a_place():
    options = CodePretraining(Path(), PlaceData(), size=SMALL, codes=16, lifetime=60, batch=256)
    torch.manual_seed(0)
    net, place = TransformerHead(SMALL), map_codes.transformed(made_up_place(0), np.random.default_rng(0))
    code = map_codes.new_code(place, options, 0)
    fitted = map_codes.mapped(net, place, options, 0)
    with torch.no_grad():
        losses = [map_codes._query_loss(net, each, place, torch.arange(len(place.features))) for each in (code, fitted)]
    assert losses[1] < losses[0]                                     # even an untrained regressor's code can learn


def test_two_processes_train_one_network(tmp_path):
    """Started by torchrun: both end with the same weights, though each has seen other places."""
    script = tmp_path / "train.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import torch
from test_pretraining import coding, made_up_place
from aceg_ros.pretraining.ace_g import map_codes
from aceg_ros.pretraining.common.distributed import join
made = [made_up_place(seed) for seed in range(5)]
map_codes.open_places = lambda data, folder: (made[:4], [])
nets = []
class Kept(map_codes.TransformerHead):
    def __init__(self, size):
        super().__init__(size)
        nets.append(self)
map_codes.TransformerHead = Kept
map_codes.train(coding(Path(sys.argv[1])))
total = sum(float(p.double().sum()) for p in nets[0].parameters())
Path(sys.argv[1], f"sum_{{join('cpu').rank}}").write_text(repr(total))
""")
    run = tmp_path / "run"
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
                    str(script), str(run)], check=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
                   capture_output=True)
    sums = [(run / f"sum_{rank}").read_text() for rank in (0, 1)]
    assert sums[0] == sums[1]
    assert (run / "pool_0.pt").exists() and (run / "pool_1.pt").exists() and (run / "ace_g.safetensors").exists()
