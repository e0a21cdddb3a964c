# SPDX-License-Identifier: Apache-2.0
"""Augmentation, the pixel convention, the patch buffer, and which cells are localized by."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from aceg_ros.camera import Camera, Frame
from aceg_ros.encoders.base import load_encoder
from aceg_ros.encoders.feature_map import FeatureMap
from aceg_ros.encoders.preprocess import patch_centres
from aceg_ros.geometry import is_pose, look_at
from aceg_ros.mapping.augmentation import PreparedFrame, augment, prepare_frame
from aceg_ros.mapping.frames import MappingFrames
from aceg_ros.mapping.patch_buffer import PatchBuffer
from aceg_ros.methods.scene_coordinates import select_cells
from aceg_ros.synthetic.demo_room import demo_world, query_path

# --- augmentation and pixel convention --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rendered_frame() -> Frame:
    world = demo_world()
    return world.render_frame(query_path(5, world.room)[3])


def test_rendered_depth_and_pose_obey_the_pixel_convention(rendered_frame):
    """A surface point seen at a pixel of one image shows the same colour at its projection in another: with a wrong
    convention (half a pixel) the mean difference rises measurably above that of the right one."""
    world = demo_world()
    first = rendered_frame
    pose = first.map_from_camera.copy()
    pose[:3, 3] += pose[:3, :3] @ (0.05, 0.02, 0.0)
    second = world.render_frame(pose)
    rows, columns = np.mgrid[20:460:3, 20:620:3]
    rows, columns = rows.ravel(), columns.ravel()

    def difference(shift: float) -> float:
        rays = np.column_stack([(columns + shift - first.camera.cx) / first.camera.fx,
                                (rows + shift - first.camera.cy) / first.camera.fy, np.ones(len(rows))])
        points = (rays * first.depth_m[rows, columns][:, None]) @ first.map_from_camera[:3, :3].T
        points = points + first.map_from_camera[:3, 3]
        local = (points - pose[:3, 3]) @ pose[:3, :3]
        u = local[:, 0] / local[:, 2] * second.camera.fx + second.camera.cx
        v = local[:, 1] / local[:, 2] * second.camera.fy + second.camera.cy
        inside = (u > 1) & (u < 638) & (v > 1) & (v < 478)
        u, v = u[inside], v[inside]
        x, y = np.floor(u).astype(int), np.floor(v).astype(int)
        a, b = (u - x)[:, None], (v - y)[:, None]
        image = second.image.astype(float)
        interpolated = (image[y, x] * (1 - a) * (1 - b) + image[y, x + 1] * a * (1 - b)
                        + image[y + 1, x] * (1 - a) * b + image[y + 1, x + 1] * a * b)
        return float(np.median(np.abs(interpolated - first.image[rows, columns][inside]).mean(1)))

    assert difference(0.0) < 0.7 * min(difference(0.5), difference(-0.5))


def test_augmented_views_keep_pixels_on_their_points(rendered_frame):
    """The depth of the warped image, unprojected with the warped K and pose, gives the same map points."""
    view = prepare_frame(rendered_frame, 480, 8)
    rng = np.random.default_rng(1)
    for _ in range(6):
        warped = augment(view, rng, 480, 8)
        assert is_pose(warped.map_from_camera)
        assert warped.image.shape[0] % 8 == 0 and warped.image.shape[1] % 8 == 0
        rows, columns = np.nonzero(warped.mask)
        chosen = rng.choice(len(rows), 500)
        rows, columns = rows[chosen], columns[chosen]
        camera = warped.camera
        rays = np.column_stack([(columns - camera.cx) / camera.fx, (rows - camera.cy) / camera.fy, np.ones(500)])
        points = (rays * warped.depth_m[rows, columns][:, None]) @ warped.map_from_camera[:3, :3].T
        points = points + warped.map_from_camera[:3, 3]
        local = (points - view.map_from_camera[:3, 3]) @ view.map_from_camera[:3, :3]
        u = local[:, 0] / local[:, 2] * view.camera.fx + view.camera.cx
        v = local[:, 1] / local[:, 2] * view.camera.fy + view.camera.cy
        there = view.depth_m[np.clip(v.round().astype(int), 0, 479), np.clip(u.round().astype(int), 0, 639)]
        assert np.median(np.abs(there - local[:, 2]) / local[:, 2]) < 0.005


def test_images_of_other_sizes_and_lenses_come_to_the_working_size():
    image = np.random.default_rng(0).integers(0, 255, (270, 480, 3), np.uint8)
    camera = Camera(width=480, height=270, fx=400.0, fy=410.0, cx=239.5, cy=134.5, model="plumb_bob",
                    distortion=(-0.3, 0.1, 0.0, 0.0))
    pose = look_at(np.zeros(3), np.array([1.0, 0.0, 0.0]))
    view = prepare_frame(Frame(image=image, camera=camera, map_from_camera=pose), 480, 8)
    assert view.image.shape == (480, 856, 3) and view.mask.shape == (480, 856)
    assert (view.camera.width, view.camera.height) == (856, 480) and view.camera.is_pinhole
    assert view.camera.fy == pytest.approx(410 * 480 / 270)


# --- buffer -----------------------------------------------------------------------------------------------------------


def test_buffer_keeps_feature_pixel_camera_and_depth_together():
    """Every stored patch is found again in its image; masked cells are never taken."""
    rng = np.random.default_rng(0)
    buffer = PatchBuffer(60, dim=4, stride=8, device="cpu", with_depth=True)
    grids = []
    for number in range(3):
        features = torch.randn(4, 6, 10)
        mask = np.ones((48, 80), bool)
        mask[:, :9] = False                                # half of the second column of cells: both columns are out
        depth = np.full((48, 80), 1.0 + number, np.float32)
        depth[:24] = 0.0
        pose = look_at(np.array([number, 0.0, 0.0]), np.array([number, 5.0, 1.0]))
        camera = Camera(width=80, height=48, fx=50.0 + number, fy=55.0, cx=40.0, cy=24.0)
        frame = PreparedFrame(image=rng.integers(0, 255, (48, 80, 3), np.uint8), camera=camera, map_from_camera=pose,
                              mask=mask, depth_m=depth)
        assert buffer.add(FeatureMap(features[None], None), frame, rng, count=25) == (25 if number < 2 else 10)
        grids.append(features)
    assert buffer.size == buffer.capacity == 60
    patches = buffer.patches(torch.arange(60))
    for index in range(60):
        number = min(index // 25, 2)
        u, v = patches.view.pixels[index].tolist()
        column, row = int((u - 3.5) / 8), int((v - 3.5) / 8)
        assert column >= 2
        assert torch.allclose(patches.features[index], grids[number][:, row, column], atol=2e-3)
        assert patches.view.intrinsics[index, 0] == 50.0 + number
        centre = -patches.view.camera_from_map[index, :, :3].T @ patches.view.camera_from_map[index, :, 3]
        assert torch.allclose(centre, torch.tensor([number, 0.0, 0.0]), atol=1e-5)
        depth = patches.depth_m[index]
        assert torch.isnan(depth) if row < 3 else depth == 1.0 + number


def test_buffer_takes_only_patches_of_known_depth_if_asked():
    rng = np.random.default_rng(0)
    buffer = PatchBuffer(600, dim=4, stride=8, device="cpu", with_depth=True)
    depth = np.full((48, 80), 2.0, np.float32)
    depth[:24], depth[24:32] = np.nan, 0.0
    camera = Camera(width=80, height=48, fx=50.0, fy=50.0, cx=40.0, cy=24.0)
    frame = PreparedFrame(image=np.zeros((48, 80, 3), np.uint8), camera=camera, map_from_camera=np.eye(4), mask=None,
                          depth_m=depth)
    grid = FeatureMap(torch.randn(1, 4, 6, 10), None)
    assert buffer.add(grid, frame, rng, count=50, known_depth_only=True) == 20
    assert buffer.add(grid, replace(frame, depth_m=None), rng, count=50, known_depth_only=True) == 0
    assert len(buffer.known_depths()) == buffer.size == 20


def test_triangulated_depths_replace_measured_ones():
    """Frames that there was no time for lose theirs: measured depths of patches on which no two images agree."""
    frames = MappingFrames(load_encoder("compact"), use_depth=True)
    camera = Camera(width=640, height=480, fx=500.0, fy=500.0, cx=320.0, cy=240.0)
    for index in range(3):
        noise = np.random.default_rng(index).integers(0, 255, (480, 640, 3), np.uint8)
        frames.add(Frame(image=noise, camera=camera, stamp_s=0.0, map_from_camera=np.eye(4), name=f"{index}",
                         depth_m=np.full((480, 640), 2.0, np.float32)))
    assert all(frame.depth_m is not None for frame in frames.prepared)
    frames.set_depths({1: np.full((60, 80), 3.0, np.float32)})
    assert [frame.depth_m is None for frame in frames.prepared] == [True, False, True]
    assert (frames.prepared[1].depth_m == 3.0).all()


def test_buffer_prefers_reliable_patches():
    rng = np.random.default_rng(0)
    reliability = torch.full((1, 6, 10), 0.1)
    reliability[:, :, :5] = 0.9
    buffer = PatchBuffer(600, dim=4, stride=8, device="cpu", with_depth=False)
    camera = Camera(width=80, height=48, fx=50.0, fy=50.0, cx=40.0, cy=24.0)
    frame = PreparedFrame(image=np.zeros((48, 80, 3), np.uint8), camera=camera, map_from_camera=np.eye(4), mask=None)
    for _ in range(40):
        assert buffer.add(FeatureMap(torch.randn(1, 4, 6, 10), reliability), frame, rng, count=15) == 15
    left = (buffer.patches(torch.arange(600)).view.pixels[:, 0] < 40).float().mean()
    assert 0.8 < left < 1.0


def test_patch_centres():
    assert patch_centres(torch.tensor([0, 3]), torch.tensor([0, 1]), 8).tolist() == [[3.5, 3.5], [27.5, 11.5]]


def test_the_most_reliable_cell_of_each_block_is_localized_by():
    reliability = torch.rand(6, 8, generator=torch.Generator().manual_seed(0))
    features = FeatureMap(torch.zeros(1, 4, 6, 8), reliability[None])
    rows, columns = select_cells(features, 20)
    assert len(rows) == 12
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        block = reliability[row // 2 * 2:row // 2 * 2 + 2, column // 2 * 2:column // 2 * 2 + 2]
        assert reliability[row, column] == block.max()
    assert len(select_cells(features, 100).rows) == 48
    assert len(select_cells(FeatureMap(features.features, None), 24).rows) == 24


def test_of_these_cells_the_most_reliable_stay_in_order():
    reliability = torch.rand(6, 8, generator=torch.Generator().manual_seed(1))
    features = FeatureMap(torch.zeros(1, 4, 6, 8), reliability[None])
    every, best = select_cells(features, 20), select_cells(features, 20, 5)
    values, kept = reliability[every.rows, every.columns], reliability[best.rows, best.columns]
    assert sorted(kept.tolist()) == sorted(values.tolist())[-5:]
    assert (torch.diff(best.rows // 2 * 4 + best.columns // 2) > 0).all()
