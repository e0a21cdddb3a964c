# SPDX-License-Identifier: Apache-2.0
"""The training loop and its schedule; heads and map codes that learn from a toy buffer."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from aceg_ros.camera import Camera
from aceg_ros.encoders.feature_map import FeatureMap
from aceg_ros.geometry import look_at
from aceg_ros.mapping import training_loop
from aceg_ros.mapping.augmentation import PreparedFrame
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.optimize_map_code import MapCodeOptions, optimize_map_code
from aceg_ros.mapping.patch_buffer import PatchBuffer
from aceg_ros.mapping.train_head import BatchSampler, HeadTrainingOptions, train_head
from aceg_ros.mapping.training_loop import TrainingResult, one_cycle, run_training
from aceg_ros.networks.ace_head import SceneHead
from aceg_ros.networks.map_code_transformer import MapCode, TransformerHead, TransformerHeadConfig


def toy_buffer(*radii: float) -> PatchBuffer:
    """Features that are a fixed random function of points on spheres around a ring of cameras, with their depths."""
    rng = np.random.default_rng(0)
    camera = Camera(width=640, height=480, fx=500.0, fy=500.0, cx=320.0, cy=240.0)
    buffer = PatchBuffer(20 * 400 * len(radii), dim=32, stride=8, device="cpu", with_depth=True)
    for radius in radii:
        basis = torch.from_numpy(rng.normal(size=(3, 32))).float()
        for angle in np.arange(20) * 2 * np.pi / 20:
            pose = look_at(np.array([3 * np.cos(angle), 3 * np.sin(angle), 1.0]), np.zeros(3))
            rows, columns = np.mgrid[0:60, 0:80]
            pixels = (np.stack([columns, rows], -1) + 0.5) * 8 - 0.5
            rays = np.concatenate([(pixels - (320, 240)) / 500, np.ones((60, 80, 1))], -1)
            directions = rays @ pose[:3, :3].T
            b = directions @ pose[:3, 3]
            a = (directions**2).sum(-1)
            depth = (-b + np.sqrt(b**2 - a * (pose[:3, 3] @ pose[:3, 3] - radius**2))) / a
            points = torch.from_numpy(pose[:3, 3] + depth[..., None] * directions).float()
            features = torch.sin(5.0 / radius * points @ basis).permute(2, 0, 1)
            image = np.zeros((480, 640, 3), np.uint8)
            frame = PreparedFrame(image=image, camera=camera, map_from_camera=pose, mask=None,
                                  depth_m=np.kron(depth, np.ones((8, 8))))
            buffer.add(FeatureMap(features[None], None), frame, rng, count=400)
    return buffer


# --- the loop -------------------------------------------------------------------------------------------------------


class ScriptedStep:
    """A step that takes a second of `clock`; its pixel errors count down from 100. Keeps its arguments."""

    def __init__(self, clock: SimpleNamespace):
        self.clock, self.asked = clock, []

    def __call__(self, progress: float, rate: float) -> torch.Tensor:
        self.asked.append((progress, rate))
        self.clock.now += 1.0
        return torch.tensor(100.0 - len(self.asked))


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """The clock of the training loop: `now` in seconds."""
    clock = SimpleNamespace(now=0.0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(training_loop, "time", clock)
    return clock


def test_iterations_end_a_training_and_drive_its_schedule(clock):
    step = ScriptedStep(clock)
    result = run_training(step, 50, MappingBudget.start(1000.0, started=0.0))
    assert step.asked == [(done / 50, one_cycle(done / 50)) for done in range(50)]
    assert result == TrainingResult(iterations=50, seconds=50.0, reprojection_px=59.0, finished=True)


def test_the_clock_ends_a_training_and_drives_its_schedule(clock):
    step = ScriptedStep(clock)
    result = run_training(step, 1000, MappingBudget.start(40.0, started=0.0))
    assert step.asked == [(second / 40, one_cycle(second / 40)) for second in range(40)]
    assert (result.iterations, result.finished) == (40, True)


def test_a_stop_runs_through_the_rest_of_the_schedule_in_a_tenth_of_the_time_so_far(clock):
    step = ScriptedStep(clock)
    budget = MappingBudget.start(1000.0, started=0.0, should_stop=lambda: clock.now >= 100.0)
    result = run_training(step, 1000, budget)
    assert (result.iterations, result.finished) == (110, False)
    rates = [rate for _, rate in step.asked[100:]]
    assert rates == pytest.approx([one_cycle(0.1) * (1.0 - second / 10) for second in range(10)])
    progress = [progress for progress, _ in step.asked[100:]]
    assert progress == pytest.approx([0.1 + 0.09 * second for second in range(10)])


@pytest.mark.parametrize(("stop_s", "total_s", "ends_s"), [(400.0, 1000.0, 415.0), (98.0, 100.0, 100.0)])
def test_a_cooldown_is_short_and_ends_with_the_budget(clock, stop_s, total_s, ends_s):
    budget = MappingBudget.start(total_s, started=0.0, should_stop=lambda: clock.now >= stop_s)
    assert run_training(ScriptedStep(clock), 10_000, budget).seconds == ends_s


def test_training_reports_progress_and_the_median_of_recent_errors(clock):
    reports = []
    budget = MappingBudget.start(1000.0, started=0.0, progress=reports.append).phase("training")
    run_training(ScriptedStep(clock), 50, budget, report_every=20)
    assert [report.stage for report in reports] == ["training"] * 2
    assert [report.fraction for report in reports] == [19 / 50, 39 / 50]
    assert [report.reprojection_px for report in reports] == [89.0, 69.0]
    assert reports[0].remaining_s == pytest.approx(19 / 20 * 30)


def test_a_training_without_time_ends_after_one_step(clock):
    assert run_training(ScriptedStep(clock), 50, MappingBudget.start(0.0, started=-1.0)).iterations == 1
    nothing = run_training(ScriptedStep(clock), 0, MappingBudget.start(10.0, started=0.0))
    assert nothing.iterations == 0 and nothing.finished and np.isnan(nothing.reprojection_px)


def trained_head(budget: MappingBudget) -> TrainingResult:
    return train_head(SceneHead(32, 16, 0), toy_buffer(5.0), HeadTrainingOptions(iterations=1000, batch=64), budget)


def trained_code(budget: MappingBudget) -> TrainingResult:
    code = MapCode.noise(4, 16, torch.zeros(3), torch.Generator().manual_seed(0))
    net = TransformerHead(TransformerHeadConfig(dim_in=32, num_blocks=1, num_attention_heads=2, dim_emb=16))
    return optimize_map_code(code, net, toy_buffer(5.0), budget=budget,
                             options=MapCodeOptions(codes=4, iterations=1000, batch=64))


@pytest.mark.parametrize("train", [trained_head, trained_code])
def test_heads_and_codes_are_stopped_alike(clock, train):
    """The loop asks for the time once a step."""
    def tick() -> float:
        clock.now += 1.0
        return clock.now

    clock.monotonic = tick
    reports = []
    result = train(MappingBudget.start(1000.0, started=0.0, progress=reports.append,
                                       should_stop=lambda: clock.now > 60.0))
    assert 60 < result.iterations < 70 and not result.finished
    assert reports and all(0.0 < report.fraction < 1.0 and report.reprojection_px > 0.0 for report in reports)
    assert [report.fraction for report in reports] == sorted(report.fraction for report in reports)


# --- heads ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_learns_geometry_from_reprojection_alone_and_is_deterministic():
    buffer = toy_buffer(5.0)
    buffer.depth_m = None
    errors = []
    for _ in range(2):
        torch.manual_seed(3)
        head = SceneHead(32, 64, 1)
        result = train_head(head, buffer, HeadTrainingOptions(iterations=400, batch=512, seed=3), MappingBudget.start())
        assert result.iterations == 400 and result.finished
        points = head(buffer.patches(torch.arange(2000)).features)
        errors.append(((points.norm(dim=1) - 5).abs().median().item(), result.reprojection_px))
    assert errors[0] == errors[1]
    assert errors[0][1] < 12 and errors[0][0] < 0.5, "points should lie on the sphere"


def test_training_ends_soon_when_asked_and_says_so():
    buffer = toy_buffer(5.0)
    calls = []

    def stop() -> bool:
        calls.append(0)
        return len(calls) > 5

    result = train_head(SceneHead(32, 16, 0), buffer, HeadTrainingOptions(iterations=400, batch=64),
                        MappingBudget.start(should_stop=stop))
    assert 5 <= result.iterations < 400 and not result.finished


def test_one_cycle_rises_and_falls():
    rates = [one_cycle(t) for t in (0.0, 0.02, 0.04, 0.5, 1.0)]
    assert rates[0] < rates[1] < rates[2] == pytest.approx(1.0)
    assert rates[2] > rates[3] > rates[4] and rates[4] == pytest.approx(1e-4)


def test_training_starts_with_known_depths_and_keeps_its_share_for_them():
    known = torch.arange(50, 60)
    batches = BatchSampler(known, 100, 20, torch.Generator().manual_seed(0))
    assert sorted(batches.draw(1.0).tolist()) == sorted([*range(50, 60), *range(50, 60)])
    mixed = [batches.draw(0.5) for _ in range(10)]
    assert all(set(batch[:10].tolist()) <= set(known.tolist()) for batch in mixed)
    assert sorted(torch.cat([batch[10:] for batch in mixed]).tolist()) == list(range(100)), "each patch once"


@pytest.mark.slow
def test_known_depths_get_training_over_a_bad_start():
    """Predictions begin far from all cameras: reprojection alone does not get near within these steps, depths do."""
    buffer = toy_buffer(5.0)
    depth = buffer.depth_m.clone()
    depth[torch.rand(len(depth), generator=torch.Generator().manual_seed(0)) > 0.2] = float("nan")
    errors = []
    for known in (None, depth):
        buffer.depth_m = known
        torch.manual_seed(3)
        head = SceneHead(32, 64, 1, mean=torch.tensor([0.0, 0.0, 30.0]))
        train_head(head, buffer, HeadTrainingOptions(iterations=400, batch=512, seed=3, anneal_depth_loss=True),
                   MappingBudget.start())
        found = head(buffer.patches(torch.arange(2000)).features)
        errors.append((found.norm(dim=1) - 5).abs().median().item())
    assert errors[1] < 0.5 < errors[0], errors


@pytest.mark.slow
def test_a_contracted_head_learns_a_room_before_a_skyline():
    """Points a hundred times as far as others: outputs in metres do not reach both in these steps."""
    buffer = toy_buffer(5.0, 500.0)
    errors = []
    for radius in (None, torch.tensor(5.0)):
        torch.manual_seed(3)
        head = SceneHead(32, 64, 1, radius=radius)
        options = HeadTrainingOptions(iterations=200, batch=512, seed=3, anneal_depth_loss=True)
        result = train_head(head, buffer, options, MappingBudget.start())
        errors.append(result.reprojection_px)
    assert errors[1] < min(10.0, 0.7 * errors[0]), errors
