"""Head, losses, augmentation, buffer and training loop."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from aceg_ros.camera import Camera, Frame
from aceg_ros.encoders.base import load_encoder
from aceg_ros.encoders.feature_map import FeatureMap
from aceg_ros.encoders.preprocess import patch_centres
from aceg_ros.geometry import is_pose, look_at
from aceg_ros.mapping.augmentation import Picture, augment, prepared_picture
from aceg_ros.mapping.frames import Collection
from aceg_ros.mapping.losses import View, ace_loss, guide_loss, points_at_depth, reproject, softness
from aceg_ros.mapping.patch_buffer import PatchBuffer
from aceg_ros.mapping.train_head import TrainingOptions, _Batches, one_cycle, train_head
from aceg_ros.methods.scene_coordinates import select_cells
from aceg_ros.networks.ace_head import SceneHead, head_from_state
from aceg_ros.networks.contraction import Contraction
from aceg_ros.synthetic.demo_room import demo_world, query_path


def one_view(count: int, pixels: torch.Tensor | None = None) -> View:
    pose = torch.eye(3, 4).repeat(count, 1, 1)
    intrinsics = torch.tensor([500.0, 480.0, 320.0, 240.0]).repeat(count, 1)
    return View(pose, intrinsics, torch.full((count, 2), 100.0) if pixels is None else pixels)


# --- head -----------------------------------------------------------------------------------------------------------


def test_untrained_homogeneous_head_starts_at_scale_one():
    """h_beta is chosen so that a zero output means scale 1 (ACE, supplement)."""
    head = SceneHead(8, 16, mean=torch.tensor([1.0, 2.0, 3.0]))
    torch.nn.init.zeros_(head.fc3.weight)
    with torch.no_grad():
        head.fc3.bias.copy_(torch.tensor([0.5, -0.5, 0.25, 0.0]))
    assert torch.allclose(head(torch.randn(4, 8)), torch.tensor([1.5, 1.5, 3.25]).expand(4, 3), atol=1e-6)


def test_homogeneous_scale_is_bounded():
    head = SceneHead(8, 16)
    torch.nn.init.zeros_(head.fc3.weight)
    with torch.no_grad():
        for raw, factor in ((-1e4, 4.0), (1e4, 0.01)):
            head.fc3.bias.copy_(torch.tensor([1.0, 1.0, 1.0, raw]))
            assert torch.allclose(head(torch.zeros(1, 8)), torch.full((1, 3), factor), rtol=1e-5)


@pytest.mark.parametrize(("dim", "width", "blocks", "homogeneous"), [(8, 8, 0, True), (8, 16, 2, False)])
def test_head_sizes_are_read_from_the_state(dim, width, blocks, homogeneous):
    head = SceneHead(dim, width, blocks, homogeneous, torch.tensor([1.0, 2.0, 3.0]))
    found = head_from_state(head.state_dict())
    features = torch.randn(5, dim)
    assert torch.equal(found(features), head(features))


def test_a_contracted_head_keeps_its_radius_and_reaches_the_skyline():
    head = SceneHead(8, 16, 1, mean=torch.tensor([1.0, 2.0, 3.0]), radius=torch.tensor(5.0))
    features = torch.randn(5, 8)
    assert torch.equal(head_from_state(head.state_dict())(features), head(features))
    torch.nn.init.zeros_(head.fc3.weight)
    with torch.no_grad():
        for raw, distance in ((0.5, 2.5), (1.9, 50.0), (1.99, 500.0)):
            head.fc3.bias.copy_(torch.tensor([0.0, 0.0, raw, 0.0]))           # scale 1
            assert torch.allclose(head(features[:1]), torch.tensor([[1.0, 2.0, 3.0 + distance]]), rtol=1e-4)


# --- contraction ----------------------------------------------------------------------------------------------------


def test_contraction_keeps_what_is_near_and_its_inverse_gives_back_what_is_far():
    contraction = Contraction(centre=torch.tensor([1.0, 0.0, -2.0]), radius=torch.tensor(4.0))
    directions = torch.nn.functional.normalize(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    near = contraction.centre + directions * torch.linspace(0.0, 4.0, 50)[:, None]
    assert torch.allclose(contraction.contract(near) * 4.0 + contraction.centre, near, atol=1e-5)
    for distance in (5.0, 40.0, 400.0, 4000.0):             # the last: beyond a hundred radii
        far = contraction.centre + directions * distance
        contracted = contraction.contract(far)
        assert (contracted.norm(dim=1) > 1.0).all()
        assert torch.allclose(contraction.expand(contracted), far, rtol=1e-3, atol=1e-3 * distance)


def test_contracted_distance_of_a_skyline_is_that_of_its_direction():
    contraction = Contraction(centre=torch.zeros(3), radius=torch.tensor(4.0))
    truth = torch.tensor([[0.0, 0.0, 200.0], [0.0, 0.0, 2.0]])
    aside = contraction.distance(truth + torch.tensor([[2.0, 0.0, 0.0], [0.02, 0.0, 0.0]]), truth)
    assert aside.tolist() == pytest.approx([2.0, 0.02], rel=1e-3)
    nearer = contraction.distance(0.8 * truth, truth)
    assert nearer[0] < 1.0 and nearer[1].item() == pytest.approx(0.4, rel=1e-3)


def test_contracted_pull_has_a_gradient_everywhere():
    contraction = Contraction(centre=torch.zeros(3), radius=torch.tensor(4.0))
    for start in ([0.0, 0.0, 0.0], [1.0, 0.0, -3.0], [0.0, 300.0, 0.0], [9000.0, 0.0, 0.0]):
        for depth in (2.0, 200.0):
            prediction = contraction.contract(torch.tensor([start])).requires_grad_()
            loss, _ = guide_loss(contraction.expand(prediction), one_view(1), torch.tensor([depth]), contraction)
            loss.backward()
            assert 1e-3 < prediction.grad.norm().item() < 1e5, (start, depth)


# --- losses ---------------------------------------------------------------------------------------------------------


def test_softness_schedule():
    assert softness(0.0) == 51.0
    assert softness(1.0) == 1.0
    assert softness(0.6) == pytest.approx(41.0)


def test_loss_of_valid_predictions_is_tanh_of_the_l1_pixel_error():
    view = one_view(1, torch.tensor([[100.0, 90.0]]))
    target = points_at_depth(view, 2.0)
    off = target + torch.tensor([[3.0 * 2 / 500, -4.0 * 2 / 480, 0.0]])
    loss, error = ace_loss(off, view, 0.0)
    assert error.item() == pytest.approx(7.0, abs=1e-3)
    assert loss.item() == pytest.approx(51 * np.tanh(7 / 51), abs=1e-3)
    assert ace_loss(target, view, 0.5)[0].item() == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("point", [(0.0, 0.0, -1.0), (0.0, 0.0, 0.05), (0.0, 0.0, 2000.0), (9.0, 0.0, 1.0)])
def test_invalid_predictions_are_pulled_to_ten_metres_on_the_ray(point):
    view = one_view(1)
    prediction = torch.tensor([point])
    assert not reproject(prediction, view).valid.item()
    expected = (prediction - points_at_depth(view, 10.0)).norm()
    assert ace_loss(prediction, view, 0.3)[0].item() == pytest.approx(expected.item(), rel=1e-6)


def test_measured_depth_is_a_target_where_it_is_known():
    view = one_view(2)
    right = points_at_depth(view, 3.0)
    depth = torch.tensor([3.0, float("nan")])
    assert ace_loss(right, view, 0.2, depth)[0].item() == pytest.approx(0.0, abs=1e-3)
    farther = points_at_depth(view, 4.0)                  # same pixel, wrong depth
    loss, error = ace_loss(farther, view, 0.2, depth)
    distance_px = (farther - right)[0].norm().item() * 500 / 3
    assert error.max() < 1e-3
    assert loss.item() == pytest.approx(50 * np.log1p(distance_px / 50) / 2, rel=1e-3)


def test_a_known_depth_pulls_however_far_off_a_prediction_is():
    """ACE's tanh does not: its gradient is nothing a few hundred pixels away."""
    view = one_view(1)
    start = points_at_depth(view, 3.0) + torch.tensor([[4.0, 0.0, 0.0]])               # about 670 px aside
    gradients = []
    for depth in (None, torch.tensor([3.0])):
        prediction = start.clone().requires_grad_()
        ace_loss(prediction, view, 0.1, depth, fading=True)[0].backward()
        gradients.append(prediction.grad.norm().item())
    assert gradients[0] < 1e-6 < 1.0 < gradients[1]
    prediction = start.clone().requires_grad_()
    ace_loss(prediction, view, 0.95, torch.tensor([3.0]), fading=True)[0].backward()
    assert prediction.grad.norm().item() < 0.4 * gradients[1], "a triangulated depth fades"


def test_invalid_predictions_of_unknown_depth_are_pulled_to_the_typical_one():
    view = one_view(3)
    prediction = torch.tensor([[0.0, 0.0, -1.0]]).repeat(3, 1)
    prediction[1:] = points_at_depth(view, torch.tensor([[1.0], [2.0], [2.0]]))[1:]
    loss, _ = ace_loss(prediction, view, 0.9, torch.tensor([float("nan"), 2.0, 2.0]), fading=True)
    expected = (prediction[0] - points_at_depth(view, 2.0)[0]).norm()
    assert 3 * loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_loss_gradient_survives_extreme_predictions():
    coordinates = torch.tensor([[0.0, 0.0, 0.0], [1e6, 0.0, 1e-9], [0.1, 0.1, 5.0]], requires_grad=True)
    ace_loss(coordinates, one_view(3), 0.5)[0].backward()
    assert torch.isfinite(coordinates.grad).all()


# --- augmentation and pixel convention ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rendered_frame() -> Frame:
    world = demo_world()
    return world.render_frame(query_path(5, world.room)[3])


def test_rendered_depth_and_pose_obey_the_pixel_convention(rendered_frame):
    """A surface point seen at a pixel of one picture shows the same colour at its projection in another: with a wrong
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
        picture = second.image.astype(float)
        seen = (picture[y, x] * (1 - a) * (1 - b) + picture[y, x + 1] * a * (1 - b)
                + picture[y + 1, x] * (1 - a) * b + picture[y + 1, x + 1] * a * b)
        return float(np.median(np.abs(seen - first.image[rows, columns][inside]).mean(1)))

    assert difference(0.0) < 0.7 * min(difference(0.5), difference(-0.5))


def test_augmented_views_keep_pixels_on_their_points(rendered_frame):
    """The depth of the warped picture, unprojected with the warped K and pose, gives the same map points."""
    view = prepared_picture(rendered_frame, 480, 8)
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


def test_pictures_of_other_sizes_and_lenses_come_to_the_working_size():
    image = np.random.default_rng(0).integers(0, 255, (270, 480, 3), np.uint8)
    camera = Camera(width=480, height=270, fx=400.0, fy=410.0, cx=239.5, cy=134.5, model="plumb_bob",
                    distortion=(-0.3, 0.1, 0.0, 0.0))
    pose = look_at(np.zeros(3), np.array([1.0, 0.0, 0.0]))
    view = prepared_picture(Frame(image=image, camera=camera, map_from_camera=pose), 480, 8)
    assert view.image.shape == (480, 856, 3) and view.mask.shape == (480, 856)
    assert (view.camera.width, view.camera.height) == (856, 480) and view.camera.is_pinhole
    assert view.camera.fy == pytest.approx(410 * 480 / 270)


# --- buffer ---------------------------------------------------------------------------------------------------------


def test_buffer_keeps_feature_pixel_camera_and_depth_together():
    """Every stored patch is found again in its picture; masked cells are never taken."""
    rng = np.random.default_rng(0)
    buffer = PatchBuffer(60, 4, 8, "cpu", with_depth=True)
    pictures, grids = [], []
    for number in range(3):
        features = torch.randn(4, 6, 10)
        mask = np.ones((48, 80), bool)
        mask[:, :9] = False                                # half of the second column of cells: both columns are out
        depth = np.full((48, 80), 1.0 + number, np.float32)
        depth[:24] = 0.0
        pose = look_at(np.array([number, 0.0, 0.0]), np.array([number, 5.0, 1.0]))
        camera = Camera(width=80, height=48, fx=50.0 + number, fy=55.0, cx=40.0, cy=24.0)
        picture = Picture(rng.integers(0, 255, (48, 80, 3), np.uint8), camera, pose, mask, depth)
        assert buffer.add(FeatureMap(features[None], None), picture, 25, rng) == (25 if number < 2 else 10)
        pictures.append(picture)
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


def test_buffer_takes_only_patches_of_known_depth_where_so_asked():
    rng = np.random.default_rng(0)
    buffer = PatchBuffer(600, 4, 8, "cpu", with_depth=True)
    depth = np.full((48, 80), 2.0, np.float32)
    depth[:24], depth[24:32] = np.nan, 0.0
    camera = Camera(width=80, height=48, fx=50.0, fy=50.0, cx=40.0, cy=24.0)
    picture = Picture(np.zeros((48, 80, 3), np.uint8), camera, np.eye(4), None, depth)
    grid = FeatureMap(torch.randn(1, 4, 6, 10), None)
    assert buffer.add(grid, picture, 50, rng, only_known=True) == 20
    assert buffer.add(grid, replace(picture, depth_m=None), 50, rng, only_known=True) == 0
    assert len(buffer.known_depths()) == buffer.size == 20


def test_depths_that_were_found_take_the_place_of_measured_ones():
    """Pictures that there was no time for lose theirs: measured depths of patches that no two pictures agree on."""
    collection = Collection(load_encoder("compact"), use_depth=True)
    camera = Camera(width=640, height=480, fx=500.0, fy=500.0, cx=320.0, cy=240.0)
    for index in range(3):
        noise = np.random.default_rng(index).integers(0, 255, (480, 640, 3), np.uint8)
        collection.add(Frame(image=noise, camera=camera, stamp_s=0.0, map_from_camera=np.eye(4), name=f"{index}",
                             depth_m=np.full((480, 640), 2.0, np.float32)))
    assert all(picture.depth_m is not None for picture in collection.pictures)
    collection.take_depths({1: np.full((60, 80), 3.0, np.float32)})
    assert [picture.depth_m is None for picture in collection.pictures] == [True, False, True]
    assert (collection.pictures[1].depth_m == 3.0).all()


def test_buffer_prefers_reliable_patches():
    rng = np.random.default_rng(0)
    reliability = torch.full((1, 6, 10), 0.1)
    reliability[:, :, :5] = 0.9
    buffer = PatchBuffer(600, 4, 8, "cpu", with_depth=False)
    camera = Camera(width=80, height=48, fx=50.0, fy=50.0, cx=40.0, cy=24.0)
    picture = Picture(np.zeros((48, 80, 3), np.uint8), camera, np.eye(4), None)
    for _ in range(40):
        assert buffer.add(FeatureMap(torch.randn(1, 4, 6, 10), reliability), picture, 15, rng) == 15
    left = (buffer.patches(torch.arange(600)).view.pixels[:, 0] < 40).float().mean()
    assert 0.8 < left < 1.0


def test_patch_centres():
    assert patch_centres(torch.tensor([0, 3]), torch.tensor([0, 1]), 8).tolist() == [[3.5, 3.5], [27.5, 11.5]]


# --- training -------------------------------------------------------------------------------------------------------


def toy_buffer(*radii: float) -> tuple[PatchBuffer, Camera]:
    """Features that are a fixed random map of true points on spheres around a ring of cameras, with their depths."""
    rng = np.random.default_rng(0)
    camera = Camera(width=640, height=480, fx=500.0, fy=500.0, cx=320.0, cy=240.0)
    buffer = PatchBuffer(20 * 400 * len(radii), 32, 8, "cpu", with_depth=True)
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
            picture = Picture(np.zeros((480, 640, 3), np.uint8), camera, pose, None, np.kron(depth, np.ones((8, 8))))
            buffer.add(FeatureMap(features[None], None), picture, 400, rng)
    return buffer, camera


def test_training_learns_geometry_from_reprojection_alone_and_is_deterministic():
    buffer, _ = toy_buffer(5.0)
    buffer._depth = None
    errors = []
    for _ in range(2):
        torch.manual_seed(3)
        head = SceneHead(32, 64, 1)
        result = train_head(head, buffer, TrainingOptions(400, 512, seed=3), 1e12, lambda *_: None, lambda: False)
        assert result.iterations == 400 and result.finished
        points = head(buffer.patches(torch.arange(2000)).features)
        errors.append(((points.norm(dim=1) - 5).abs().median().item(), result.reprojection_px))
    assert errors[0] == errors[1]
    assert errors[0][1] < 12 and errors[0][0] < 0.5, "points should lie on the sphere"


def test_training_winds_up_when_asked_and_says_so():
    buffer, _ = toy_buffer(5.0)
    calls = []

    def stop() -> bool:
        calls.append(0)
        return len(calls) > 5

    result = train_head(SceneHead(32, 16, 0), buffer, TrainingOptions(400, 64), 1e12, lambda *_: None, stop)
    assert 5 <= result.iterations < 400 and not result.finished


def test_one_cycle_rises_and_falls():
    rates = [one_cycle(t) for t in (0.0, 0.02, 0.04, 0.5, 1.0)]
    assert rates[0] < rates[1] < rates[2] == pytest.approx(1.0)
    assert rates[2] > rates[3] > rates[4] and rates[4] == pytest.approx(1e-4)


def test_training_starts_with_known_depths_and_keeps_its_share_for_them():
    known = torch.arange(50, 60)
    batches = _Batches(known, 100, 20, torch.Generator().manual_seed(0))
    assert sorted(batches.draw(1.0).tolist()) == sorted([*range(50, 60), *range(50, 60)])
    mixed = [batches.draw(0.5) for _ in range(10)]
    assert all(set(batch[:10].tolist()) <= set(known.tolist()) for batch in mixed)
    assert sorted(torch.cat([batch[10:] for batch in mixed]).tolist()) == list(range(100)), "each patch once"


def test_known_depths_get_training_over_a_bad_start():
    """Predictions begin far from all cameras: reprojection alone is lost within these steps, depths are not."""
    buffer, _ = toy_buffer(5.0)
    depth = buffer._depth.clone()
    depth[torch.rand(len(depth), generator=torch.Generator().manual_seed(0)) > 0.2] = float("nan")
    errors = []
    for known in (None, depth):
        buffer._depth = known
        torch.manual_seed(3)
        head = SceneHead(32, 64, 1, mean=torch.tensor([0.0, 0.0, 30.0]))
        train_head(head, buffer, TrainingOptions(400, 512, seed=3, fading_depth=True), 1e12, lambda *_: None,
                   lambda: False)
        found = head(buffer.patches(torch.arange(2000)).features)
        errors.append((found.norm(dim=1) - 5).abs().median().item())
    assert errors[1] < 0.5 < errors[0], errors


def test_a_contracted_head_learns_a_room_before_a_skyline():
    """Points a hundred times as far as others: outputs in metres do not reach both in these steps."""
    buffer, _ = toy_buffer(5.0, 500.0)
    errors = []
    for radius in (None, torch.tensor(5.0)):
        torch.manual_seed(3)
        head = SceneHead(32, 64, 1, radius=radius)
        result = train_head(head, buffer, TrainingOptions(200, 512, seed=3, fading_depth=True), 1e12, lambda *_: None,
                            lambda: False)
        errors.append(result.reprojection_px)
    assert errors[1] < min(10.0, 0.7 * errors[0]), errors


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
