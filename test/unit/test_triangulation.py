# SPDX-License-Identifier: Apache-2.0
"""Depths from matched patches: against exact geometry, with features whose matches are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from aceg_ros.camera import Camera
from aceg_ros.encoders.base import Encoder, load_encoder
from aceg_ros.encoders.feature_map import FeatureMap
from aceg_ros.geometry import look_at
from aceg_ros.mapping.augmentation import PreparedFrame, prepare_frame
from aceg_ros.mapping.budget import MappingBudget
from aceg_ros.mapping.covisibility import CovisibilityFeatures, select_covisible_images
from aceg_ros.mapping.matching import extract_features, match_features
from aceg_ros.mapping.patch_buffer import FillOptions, PatchBuffer, fill_buffer
from aceg_ros.mapping.triangulation import TriangulationOptions, triangulate
from aceg_ros.synthetic.demo_room import demo_world, mapping_path

CAMERA = Camera(width=320, height=240, fx=260.0, fy=255.0, cx=160.0, cy=119.0)


class WallEncoder(torch.nn.Module):
    """Features that are a smooth function of the point of the wall x = 5 that a patch shows, which the image holds in
    its three channels; a share `wrong` of the patches of each image gets noise instead."""

    def __init__(self, wrong: float):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.wrong, self.basis = wrong, 6.0 * torch.randn(3, 64, generator=generator)
        self.generator = torch.Generator().manual_seed(1)

    def forward(self, images):
        points = images[:, :, 4::8, 4::8].permute(0, 2, 3, 1)
        features = torch.sin(points @ self.basis)
        lost = torch.rand(features.shape[:3], generator=self.generator) < self.wrong
        noise = torch.randn(features[lost].shape, generator=self.generator)
        features[lost] = noise.to(features)         # which are bf16 on some processors
        return FeatureMap(features.permute(0, 3, 1, 2), None)


def wall_encoder(wrong: float = 0.0) -> Encoder:
    return Encoder(name="wall", identity="wall:0", source="wall", stride=8, dim=64, short_side_px=240,
                   net=WallEncoder(wrong))


def wall_frames(centres) -> tuple[list[PreparedFrame], list[np.ndarray]]:
    """Frames of the wall x = 5 that hold its (y, z) as colours, and their exact depths at the patch centres."""
    frames, depths = [], []
    rows, columns = np.mgrid[0:240, 0:320]
    rays = np.stack([(columns - CAMERA.cx) / CAMERA.fx, (rows - CAMERA.cy) / CAMERA.fy, np.ones(rows.shape)], -1)
    for centre in centres:
        pose = look_at(np.asarray(centre, float), np.array([5.0, 0.3 * centre[1], 0.0]))
        directions = rays @ pose[:3, :3].T
        depth = (5.0 - centre[0]) / directions[..., 0]
        points = centre + depth[..., None] * directions
        image = np.stack([points[..., 1], points[..., 2], np.zeros(rows.shape)], -1) * 20 + 128
        frames.append(PreparedFrame(image=image.clip(0, 255).astype(np.uint8), camera=CAMERA, map_from_camera=pose,
                                    mask=None))
        depths.append((depth[3::8, 3::8] + depth[4::8, 4::8]) / 2)
    return frames, depths


def run(frames, encoder, **options):
    return triangulate(frames, encoder, TriangulationOptions(**options), MappingBudget.start())


@pytest.mark.parametrize("wrong", [0.0, 0.4])
def test_depths_are_right_and_wrong_matches_are_left_out(wrong):
    frames, exact = wall_frames([(0.0, y, 0.1 * y) for y in np.linspace(-1.0, 1.0, 7)])
    encoder = wall_encoder(wrong)
    depths = run(frames, encoder, patches=1200)
    assert len(depths) == 7
    found = np.stack([depths[index] for index in range(7)])
    known = np.isfinite(found)
    error = np.abs(found[known] / np.stack(exact)[known] - 1)
    assert known.mean() > (0.5 if wrong == 0 else 0.15)
    assert np.median(error) < 0.03 and (error > 0.15).mean() < 0.04


def test_measured_depths_are_taken_where_patches_were_found_and_nowhere_else():
    frames, _ = wall_frames([(0.0, y, 0.1 * y) for y in np.linspace(-1.0, 1.0, 7)])
    encoder = wall_encoder()
    found = run(frames, encoder)
    measured = np.full((240, 320), 7.0, np.float16)
    measured[:, 160:] = 0.0
    frames[2] = replace(frames[2], depth_m=measured)
    taken = triangulate(frames, encoder, TriangulationOptions(), MappingBudget.start(), use_measured=True)
    expected = found[2].copy()
    expected[:, :20][np.isfinite(found[2][:, :20])] = 7.0
    assert np.isfinite(found[2][:, :20]).any() and np.isfinite(found[2][:, 20:]).any()
    np.testing.assert_array_equal(taken[2], expected)
    np.testing.assert_array_equal(taken[3], found[3])


def test_one_spot_and_two_images_give_no_depth():
    encoder = wall_encoder()
    for centres, why in (([(0.0, 0.0, 0.0)] * 5, "one spot"), ([(0.0, 0.0, 0.0), (0.0, 0.5, 0.0)], "two images"),
                        ([(0.0, 0.002 * i, 0.0) for i in range(5)], "millimetres of parallax")):
        depths = run(wall_frames(centres)[0], encoder)
        assert len(depths) == len(centres) and all(np.isnan(depth).all() for depth in depths.values()), why


def test_masked_patches_take_no_part():
    frames, _ = wall_frames([(0.0, y, 0.1 * y) for y in np.linspace(-1.0, 1.0, 7)])
    mask = np.ones((240, 320), bool)
    mask[:, :81] = False                        # ten columns of cells, and a sliver of the next
    encoder = wall_encoder()
    depths = run([replace(frame, mask=mask) for frame in frames], encoder)
    assert depths and all(np.isnan(depth[:, :11]).all() for depth in depths.values())
    assert run([replace(frame, mask=np.zeros_like(mask)) for frame in frames], encoder) == {}


def test_it_stops_when_time_is_up():
    frames, _ = wall_frames([(0.0, y, 0.0) for y in np.linspace(-1.0, 1.0, 7)])
    encoder = wall_encoder()
    asked = iter([False] * 9 + [True] * 100)
    stopped = MappingBudget.start(should_stop=lambda: next(asked))
    assert 0 < len(triangulate(frames, encoder, TriangulationOptions(), stopped)) < 7
    assert triangulate(frames, encoder, TriangulationOptions(), MappingBudget.start(0.0)) == {}


def test_a_buffer_of_known_depths_takes_any_patch_of_an_image_without_depths():
    frames = wall_frames([(0.0, y, 0.0) for y in (-1.0, 0.0, 1.0)])[0]
    encoder = wall_encoder()
    tried = np.full((240, 320), np.nan, np.float32)
    nothing = replace(frames[1], depth_m=tried.copy())
    tried[120:] = 5.0
    buffer = PatchBuffer(3000, dim=64, stride=8, device="cpu", with_depth=True)
    fill_buffer(buffer, encoder, [replace(frames[0], depth_m=tried), nothing, frames[2]],
                options=FillOptions(patches_per_image=200, known_depth_only=True), budget=MappingBudget.start(),
                first_pass=MappingBudget.start(), rng=np.random.default_rng(0))
    known, frame = buffer.known_depths(), buffer.frame_index[:buffer.size]
    assert 0.3 < len(known) / buffer.size < 0.7
    assert not set(frame[known].tolist()) & set(frame[torch.isnan(buffer.depth_m)].tolist())


def test_only_the_first_pass_over_the_images_outlasts_the_budget_of_the_buffer():
    frames = wall_frames([(0.0, y, 0.0) for y in (-1.0, 0.0, 1.0)])[0]
    for first_pass, encoded in ((MappingBudget.start(), 3), (MappingBudget.start(0.0), 0)):
        buffer = PatchBuffer(3000, dim=64, stride=8, device="cpu", with_depth=False)
        assert fill_buffer(buffer, wall_encoder(), frames, options=FillOptions(patches_per_image=200),
                           budget=MappingBudget.start(0.0), first_pass=first_pass,
                           rng=np.random.default_rng(0)) == encoded
        assert buffer.size == 200 * encoded


def extracted_of(frames):
    encoder = wall_encoder()
    return [extract_features(frame, encoder, 1200) for frame in frames]


def test_covisible_images_show_the_same_from_other_positions():
    """Cameras at two ends of the wall face the same way; only those of one end have patches in common."""
    here = wall_frames([(0.0, 0.05 * y, 0.0) for y in range(20)])[0]
    there = wall_frames([(0.0, 12.0 + 0.05 * y, 0.0) for y in range(20)])[0]
    images = extracted_of(here + there)
    covisible = select_covisible_images(images[3], CovisibilityFeatures.stack(images), 6, 8)
    assert len(covisible) == 6 and 3 not in covisible and max(covisible) < 20
    assert max(covisible) - min(covisible) > 10, "baselines are spread"


def test_matches_lie_on_epipolar_lines():
    """The nearest feature of all is made to be elsewhere: the one on the line is taken, or none."""
    a, b = extracted_of(wall_frames([(0.0, 0.0, 0.0), (0.0, 0.6, 0.0)])[0])
    honest = match_features(a, b, 8.0)
    known = honest >= 0
    assert known.float().mean() > 0.5
    assert (a.pixels[known, 1] - b.pixels[honest[known], 1]).abs().max() < 12, "moved sideways: rows are kept"
    row = a.pixels[:, 1] < 60
    copy = replace(b, features=torch.where((b.pixels[:, 1] > 180)[:, None], a.features[row][0], b.features))
    deceived = match_features(a, copy, 8.0)
    assert (deceived[row & known] == honest[row & known]).float().mean() > 0.95


@pytest.mark.slow
def test_rendered_room_with_the_shipped_encoder():
    """Real features, exact depth: what is triangulated is nearly always right."""
    world = demo_world()
    frames = [world.render_frame(pose) for pose in mapping_path(48, world.room)[10:22]]
    frames = [prepare_frame(frame, 480, 8) for frame in frames]
    depths = run(frames, load_encoder("compact"))
    assert len(depths) >= 8
    error, share = [], []
    for index, found in depths.items():
        exact = frames[index].depth_m[4::8, 4::8]
        known = np.isfinite(found)
        share.append(known.mean())
        error.append(np.abs(found[known] / exact[known] - 1))
    error = np.concatenate(error)
    assert np.mean(share) > 0.03
    assert np.median(error) < 0.03 and (error > 0.2).mean() < 0.05
