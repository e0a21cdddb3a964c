"""The pose solver on simulated correspondences: recovery, weights and masks, covariance, and every refusal."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from aceg_ros.camera import Camera
from aceg_ros.estimate import PoseEstimate, Status
from aceg_ros.pose.gates import check_number
from aceg_ros.pose.solver import SolverConfig, solve_pose

CAMERA = Camera(width=640, height=480, fx=520.0, fy=470.0, cx=317.0, cy=242.0)
BACKENDS = ("poselib", "opencv")


def random_pose(seed: int) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    pose[:3, 3] = np.random.default_rng(seed).normal(size=3) * 3.0
    return pose


def to_map(pixels: np.ndarray, depth: np.ndarray, pose: np.ndarray) -> np.ndarray:
    """Map points that a camera at `pose` sees at `pixels`, `depth` metres along its axis."""
    rays = np.column_stack([(pixels[:, 0] - CAMERA.cx) / CAMERA.fx, (pixels[:, 1] - CAMERA.cy) / CAMERA.fy,
                            np.ones(len(pixels))])
    return rays * depth[:, None] @ pose[:3, :3].T + pose[:3, 3]


def view(seed: int, count: int = 2000, noise_px: float = 0.0, outliers: float = 0.0
         ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels, points and pose of a view into a room; outliers: share of points thrown anywhere in it."""
    rng = np.random.default_rng(seed)
    pose = random_pose(seed)
    pixels = rng.uniform((0.0, 0.0), (640.0, 480.0), (count, 2))
    points = to_map(pixels + rng.normal(size=pixels.shape) * noise_px, rng.uniform(1.0, 5.0, count), pose)
    wrong = rng.random(count) < outliers
    points[wrong] = points.mean(0) + rng.uniform(-3.0, 3.0, (int(wrong.sum()), 3))
    return pixels, points, pose


def grid() -> np.ndarray:
    """Patch centres of a stride-8 encoder, row by row: (4800, 2)."""
    row, column = np.mgrid[:60, :80]
    return np.column_stack([column.ravel(), row.ravel()]) * 8.0 + 3.5


def answer(estimate: PoseEstimate) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pose, covariance and inlier indices of an accepted estimate."""
    assert estimate.accepted, estimate.message
    assert estimate.map_from_camera is not None and estimate.covariance is not None
    assert estimate.inlier_indices is not None
    return estimate.map_from_camera, estimate.covariance, estimate.inlier_indices


def error(estimate: PoseEstimate, pose: np.ndarray) -> np.ndarray:
    """Position and rotation error, both (3,) in the map frame, concatenated."""
    found, _, _ = answer(estimate)
    turn = Rotation.from_matrix(pose[:3, :3] @ found[:3, :3].T).as_rotvec()
    return np.r_[pose[:3, 3] - found[:3, 3], turn]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", range(5))
def test_exact_points_give_the_exact_pose(backend: str, seed: int) -> None:
    pixels, points, pose = view(seed)
    estimate = solve_pose(pixels, points, CAMERA, SolverConfig(backend=backend))
    assert np.abs(error(estimate, pose)).max() <= 1e-6
    assert estimate.inliers == len(pixels) and estimate.inlier_ratio == 1.0
    assert set(estimate.stage_ms) == {"ransac", "refine", "gates"}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("outliers", [0.0, 0.3, 0.6, 0.8])
def test_noise_and_outliers(backend: str, outliers: float) -> None:
    for seed in range(10):
        pixels, points, pose = view(seed, 4000, noise_px=2.0, outliers=outliers)
        off = error(solve_pose(pixels, points, CAMERA, SolverConfig(backend=backend)), pose)
        assert np.linalg.norm(off[:3]) < 0.05 and np.linalg.norm(off[3:]) < np.radians(1.0)


def test_nine_outliers_in_ten_are_right_or_refused() -> None:
    accepted = 0
    for seed in range(10):
        pixels, points, pose = view(seed, 4800, noise_px=2.0, outliers=0.88)
        estimate = solve_pose(pixels, points, CAMERA)
        if estimate.accepted:
            accepted += 1
            assert np.linalg.norm(error(estimate, pose)[:3]) < 0.1
    assert accepted >= 8


def test_same_seed_same_answer() -> None:
    pixels, points, _ = view(3, noise_px=3.0, outliers=0.4)
    for backend in BACKENDS:
        first, second = (solve_pose(pixels, points, CAMERA, SolverConfig(backend=backend), seed=7) for _ in range(2))
        for one, other in zip(answer(first), answer(second), strict=True):
            assert np.array_equal(one, other)


def test_masked_points_are_never_used() -> None:
    pixels, points, pose = view(4, noise_px=1.0)
    mask = np.random.default_rng(0).random(len(pixels)) < 0.5
    clean = solve_pose(pixels, points, CAMERA, mask=mask)
    points[~mask] = np.random.default_rng(1).normal(size=(int((~mask).sum()), 3)) * 1e3
    spoilt = solve_pose(pixels, points, CAMERA, mask=mask)
    assert np.array_equal(answer(clean)[0], answer(spoilt)[0])
    assert mask[answer(spoilt)[2]].all() and spoilt.inlier_ratio > 0.99
    assert np.linalg.norm(error(spoilt, pose)[:3]) < 0.02


def test_inlier_indices_are_the_callers() -> None:
    pixels, points, _ = view(5)
    points[::2] = np.nan
    points[1::4] += np.random.default_rng(5).uniform(0.5, 3.0, points[1::4].shape)
    _, _, inliers = answer(solve_pose(pixels, points, CAMERA))
    assert np.isin(np.arange(3, len(pixels), 4), inliers).all()
    assert not np.isin(np.arange(0, len(pixels), 2), inliers).any()


def test_weights_decide_between_two_worlds() -> None:
    """Two poses explain half of the points each: the one with the trusted points wins."""
    pixels, here, pose_here = view(6)
    _, _, pose_there = view(7)
    there = to_map(pixels, np.random.default_rng(8).uniform(1.0, 5.0, len(pixels)), pose_there)
    even = np.arange(len(pixels)) % 2 == 0
    points = np.where(even[:, None], here, there)
    for trusted, pose in ((even, pose_here), (~even, pose_there)):
        estimate = solve_pose(pixels, points, CAMERA, weights=np.where(trusted, 1.0, 0.05))
        assert np.abs(error(estimate, pose)).max() < 0.01


def test_weights_reduce_the_error() -> None:
    rng = np.random.default_rng(9)
    plain, weighted = [], []
    for seed in range(20):
        pixels, points, pose = view(seed, 1000)
        sigma = np.where(rng.random(1000) < 0.5, 0.3, 6.0)
        noisy = pixels + rng.normal(size=pixels.shape) * sigma[:, None]
        plain.append(np.linalg.norm(error(solve_pose(noisy, points, CAMERA), pose)))
        weighted.append(np.linalg.norm(error(solve_pose(noisy, points, CAMERA, weights=sigma**-2.0), pose)))
    assert np.median(weighted) < 0.8 * np.median(plain)


def test_covariance_matches_monte_carlo() -> None:
    """Translation, rotation and their coupling, at a pose that is neither upright nor at the origin."""
    pixels, points, pose = view(11, 1500)
    rng = np.random.default_rng(12)
    config = SolverConfig(residual_correlation=0.0)
    errors, predicted = [], []
    for trial in range(250):
        estimate = solve_pose(pixels + rng.normal(size=pixels.shape) * 1.5, points, CAMERA, config, seed=trial)
        errors.append(error(estimate, pose))
        predicted.append(answer(estimate)[1])
    mean = np.mean(predicted, axis=0)
    measured = np.cov(np.array(errors).T)
    # Whitened by the prediction, the errors must have unit covariance, cross terms included (250 draws: +-0.09).
    root = np.linalg.inv(np.linalg.cholesky(mean))
    assert np.abs(root @ measured @ root.T - np.eye(6)).max() < 0.4
    assert np.trace(root @ measured @ root.T) / 6.0 == pytest.approx(1.0, abs=0.2)


def test_covariance_grows_with_correlated_errors() -> None:
    pixels, pose = grid(), random_pose(13)
    rng = np.random.default_rng(14)
    points = to_map(pixels, rng.uniform(1.0, 5.0, len(pixels)), pose)
    smooth = np.stack([gaussian_filter(rng.normal(size=(60, 80)), 6.0) for _ in range(2)], -1).reshape(-1, 2)
    smooth *= 2.0 / smooth.std()
    independent = rng.normal(size=smooth.shape) * 2.0
    traces = [np.trace(answer(solve_pose(pixels + noise, points, CAMERA))[1]) for noise in (independent, smooth)]
    assert traces[1] > 30.0 * traces[0]


# --- refusals ---------------------------------------------------------------------------------------------------


def refusal(status: Status | tuple[Status, ...], pixels: np.ndarray, points: np.ndarray,
            config: SolverConfig | None = None, **options: object) -> PoseEstimate:
    estimate = solve_pose(pixels, points, CAMERA, config, **options)  # type: ignore[arg-type]
    assert not estimate.accepted and estimate.map_from_camera is None and estimate.covariance is None
    assert estimate.status in (status if isinstance(status, tuple) else (status,)), estimate.message
    assert any(letter.isdigit() for letter in estimate.message), estimate.message
    return estimate


def test_too_few_usable_correspondences() -> None:
    pixels, points, _ = view(0, 100)
    refusal(Status.TOO_FEW_CORRESPONDENCES, np.empty((0, 2)), np.empty((0, 3)))
    refusal(Status.TOO_FEW_CORRESPONDENCES, pixels[:5], points[:5])
    refusal(Status.TOO_FEW_CORRESPONDENCES, pixels, np.full_like(points, np.nan))
    refusal(Status.TOO_FEW_CORRESPONDENCES, pixels, np.full_like(points, np.inf))
    refusal(Status.TOO_FEW_CORRESPONDENCES, pixels, np.full_like(points, 1e30))
    refusal(Status.TOO_FEW_CORRESPONDENCES, np.full_like(pixels, np.nan), points)
    refusal(Status.TOO_FEW_CORRESPONDENCES, pixels, points, mask=np.zeros(100, bool))
    refusal(Status.TOO_FEW_CORRESPONDENCES, pixels, points, weights=np.zeros(100))
    refusal(Status.TOO_FEW_CORRESPONDENCES, pixels, points, weights=np.full(100, np.nan))


def test_some_bad_values_do_no_harm() -> None:
    pixels, points, pose = view(1)
    for row, value in enumerate((np.nan, np.inf, -np.inf, 1e200, 1e7)):
        points[row, row % 3] = value
        pixels[row + 10, row % 2] = value
    weights = np.ones(len(pixels))
    weights[20:24] = np.nan, np.inf, -1.0, 0.0
    estimate = solve_pose(pixels, points, CAMERA, weights=weights)
    assert np.abs(error(estimate, pose)).max() <= 1e-6
    assert not np.isin(np.r_[0:5, 10:15, 20:24], answer(estimate)[2]).any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_pure_noise(backend: str) -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        for count in (20, 200, 4800):
            refusal((Status.TOO_FEW_INLIERS, Status.LOW_INLIER_RATIO, Status.NO_CONSENSUS, Status.CHANCE_CONSENSUS,
                     Status.UNCERTAIN_POSE, Status.POOR_SPREAD, Status.DEGENERATE_POINTS),
                    rng.uniform((0, 0), (640, 480), (count, 2)), rng.uniform(-2.0, 2.0, (count, 3)),
                    SolverConfig(backend=backend))


def smooth_field(seed: int, width: float) -> np.ndarray:
    """What a network says about a picture of another place: smooth, correlated, within the map's volume."""
    rng = np.random.default_rng(seed)
    field = np.stack([gaussian_filter(rng.normal(size=(180, 240)), width)[60:120, 80:160] for _ in range(3)], -1)
    return (field / field.std()).reshape(-1, 3) + rng.normal(size=(4800, 3)) * 0.02


def test_smooth_nonsense() -> None:
    accepted = [solve_pose(grid(), smooth_field(seed, width), CAMERA, seed=seed).accepted
                for seed in range(25) for width in (1.5, 3.0, 6.0, 12.0)]
    assert sum(accepted) <= 1


def test_bunched_nonsense() -> None:
    for seed in range(10):
        points = 0.2 * smooth_field(seed, 2.0) + np.array([1.0, 2.0, 3.0])
        assert not solve_pose(grid(), points, CAMERA, seed=seed).accepted


def test_true_room_mirrored() -> None:
    """The geometry of a real room, left and right swapped: the hardest nonsense of all."""
    pixels = grid()
    for seed in range(10):
        rng = np.random.default_rng(seed)
        depth = 2.5 + gaussian_filter(rng.normal(size=(60, 80)), 6.0).ravel() * 8.0
        points = to_map(pixels, np.clip(depth, 0.8, 6.0), random_pose(seed))
        mirrored = points.reshape(60, 80, 3)[:, ::-1].reshape(-1, 3)
        noisy = mirrored + rng.normal(size=mirrored.shape) * 0.03
        estimate = solve_pose(pixels, noisy, CAMERA, seed=seed)
        assert not estimate.accepted, estimate.message


def test_chance_consensus_is_named() -> None:
    """A gain no frame can reach stands in for a frame that mirrored does as well."""
    pixels, points, _ = view(2, 4800, noise_px=1.0, outliers=0.75)
    refusal(Status.CHANCE_CONSENSUS, pixels, points, SolverConfig(min_mirror_gain=1e3, sure_inlier_ratio=0.9))


def test_residuals_without_a_peak() -> None:
    """Agreement that is as loose as chance's: residuals spread far beyond the threshold."""
    pixels, points, _ = view(2, 4800, noise_px=16.0)
    estimate = refusal(Status.CHANCE_CONSENSUS, pixels, points)
    assert "no peak" in estimate.message


def test_a_tenth_of_few_correspondences_is_not_enough() -> None:
    """Two poses that were wrong by 6.6 m had 43 and 40 inliers of 360 (docs/benchmarks/2026-11-26-encoder.md)."""
    for number, offered, enough in ((43, 360, False), (50, 360, True), (500, 4800, False), (525, 4800, True)):
        refused = check_number(number, offered, 12, 0.1, 10.0)
        assert refused is None if enough else refused is not None and refused.status is Status.LOW_INLIER_RATIO


def test_low_inlier_ratio_and_number() -> None:
    pixels, points, _ = view(2, 3000, outliers=0.7)
    refusal(Status.LOW_INLIER_RATIO, pixels, points, SolverConfig(min_inlier_ratio=0.5))
    refusal(Status.TOO_FEW_INLIERS, pixels, points, SolverConfig(min_inliers=2500))


def test_inliers_in_one_corner() -> None:
    pixels, points, _ = view(3, 4800)
    corner = (pixels[:, 0] < 200) & (pixels[:, 1] < 150)
    config = SolverConfig(min_inlier_ratio=0.05)
    refusal(Status.POOR_SPREAD, pixels[corner], points[corner], config)
    points[~corner] = np.random.default_rng(0).uniform(-3, 3, (int((~corner).sum()), 3))
    refusal((Status.POOR_SPREAD, Status.LOW_INLIER_RATIO), pixels, points, config)


def test_points_in_one_spot_or_on_a_line() -> None:
    pixels = grid()
    degenerate = (Status.DEGENERATE_POINTS, Status.NO_CONSENSUS, Status.TOO_FEW_INLIERS, Status.LOW_INLIER_RATIO,
                  Status.UNCERTAIN_POSE, Status.POOR_SPREAD)
    rng = np.random.default_rng(0)
    for backend in BACKENDS:
        config = SolverConfig(backend=backend)
        refusal(degenerate, pixels, np.ones((4800, 3)), config)
        refusal(degenerate, pixels, np.ones((4800, 3)) + rng.normal(size=(4800, 3)) * 1e-4, config)
        along = np.outer(rng.uniform(-1, 1, 4800), [1.0, 2.0, 0.5])
        refusal(degenerate, pixels, along, config)
        refusal(degenerate, pixels, along + rng.normal(size=along.shape) * 1e-3, config)
    # A true view of a line (a lamp post): every correspondence fits, the pose turns about the post.
    pixels = np.column_stack([np.linspace(20, 620, 500), np.linspace(10, 470, 500)])
    points = to_map(pixels, np.full(500, 2.0), random_pose(1))
    refusal(degenerate, pixels, points)
    refusal(Status.DEGENERATE_POINTS, pixels, points,
            SolverConfig(min_spread_blocks=1, max_position_std=np.inf, max_rotation_std_rad=np.inf))


def test_duplicates_count_once() -> None:
    """Ten distinct correspondences, each 400 times."""
    pixels, points, _ = view(4, 4, noise_px=1.0)
    refusal((Status.POOR_SPREAD, Status.DEGENERATE_POINTS, Status.UNCERTAIN_POSE),
            np.repeat(pixels, 400, axis=0), np.repeat(points, 400, axis=0))


@pytest.mark.parametrize("tilt_deg", [20.0, 45.0])
def test_planar_wall_is_a_scene(tilt_deg: float) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        pixels, pose = grid(), random_pose(seed)
        slope = np.tan(np.radians(tilt_deg))
        depth = 3.0 / (1.0 - slope * (pixels[:, 0] - CAMERA.cx) / CAMERA.fx * 0.9)
        points = to_map(pixels + rng.normal(size=pixels.shape), depth, pose)
        off = error(solve_pose(pixels, points, CAMERA), pose)
        assert np.linalg.norm(off[:3]) < 0.05 and np.linalg.norm(off[3:]) < np.radians(1.0)


def test_small_far_plane_with_a_twin_pose() -> None:
    """A poster seen from afar fits two poses."""
    rng = np.random.default_rng(5)
    narrow = replace(CAMERA, fx=9000.0, fy=9000.0)
    flat = np.column_stack([rng.uniform(-0.5, 0.5, (2000, 2)), np.zeros(2000)])
    turn = Rotation.from_euler("y", 35, degrees=True).as_matrix()
    seen = flat @ turn.T + np.array([0.0, 0.0, 20.0])
    pixels = narrow.project(seen) + rng.normal(size=(2000, 2)) * 2.0
    estimate = solve_pose(pixels, flat, narrow)
    assert estimate.status in (Status.DEGENERATE_POINTS, Status.UNCERTAIN_POSE), estimate.message


def test_points_behind_the_camera() -> None:
    pixels, pose = grid(), random_pose(6)
    points = to_map(pixels, -np.random.default_rng(0).uniform(1.0, 5.0, 4800), pose)
    refusal((Status.LOW_INLIER_RATIO, Status.CHANCE_CONSENSUS, Status.TOO_FEW_INLIERS), pixels, points)
    refusal(Status.CHANCE_CONSENSUS, pixels, points, SolverConfig(min_inlier_ratio=0.0), seed=1)


def test_far_points_leave_the_position_open() -> None:
    """A skyline fixes the heading, not the place; the covariance owns up to the metres, and the gate refuses."""
    pixels, pose = grid(), random_pose(7)
    rng = np.random.default_rng(1)
    rays = to_map(pixels, np.ones(4800), pose) - pose[:3, 3]
    points = pose[:3, 3] + rays / np.linalg.norm(rays, axis=1, keepdims=True) * 1e4
    noisy = pixels + rng.normal(size=pixels.shape) * 3.0
    refusal(Status.UNCERTAIN_POSE, noisy, points)
    estimate = solve_pose(noisy, points, CAMERA, SolverConfig(max_position_std_m=np.inf))
    assert np.linalg.norm(error(estimate, pose)[:3]) < 4.0 * np.sqrt(np.trace(answer(estimate)[1][:3, :3]))


def test_uncertain_pose() -> None:
    pixels, points, _ = view(8, 500, noise_px=3.0)
    refusal(Status.UNCERTAIN_POSE, pixels, points, SolverConfig(max_position_std=1e-6))


def test_no_consensus(monkeypatch: pytest.MonkeyPatch) -> None:
    from aceg_ros.pose import solver as pose_solver
    for answer in (None, (np.full((3, 3), np.nan), np.zeros(3))):
        monkeypatch.setitem(pose_solver._BACKENDS, "poselib", lambda *_, answer=answer: answer)
        refusal(Status.NO_CONSENSUS, *view(9)[:2])


def test_programming_errors_are_raised() -> None:
    pixels, points, _ = view(10, 50)
    with pytest.raises(ValueError, match="pixels"):
        solve_pose(pixels[:-1], points, CAMERA)
    with pytest.raises(ValueError, match="weights"):
        solve_pose(pixels, points, CAMERA, weights=np.ones(3))
    with pytest.raises(ValueError, match="rectified"):
        solve_pose(pixels, points, replace(CAMERA, model="plumb_bob", distortion=(0.1, 0.0, 0.0, 0.0)))
    with pytest.raises(ValueError, match="backend"):
        SolverConfig(backend="magic")


def repeated(seed: int, copies: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A view of which a sixth is right; `copies` of the patches are taken for the same things four metres away."""
    pixels, points, pose = view(seed, 1000, noise_px=1.0, outliers=0.82)
    elsewhere = np.random.default_rng(seed + 1).random(len(points)) < copies
    _, truth, _ = view(seed, 1000, noise_px=1.0)
    points[elsewhere] = truth[elsewhere] + (4.0, 0.0, 0.0)
    return pixels, points, pose


def test_a_place_that_repeats_itself_is_ambiguous() -> None:
    for seed in range(10):
        pixels, points, _ = repeated(seed, 0.16)
        estimate = refusal(Status.AMBIGUOUS_POSE, pixels, points)
        assert "another one" in estimate.message


def test_a_few_copies_do_not_make_a_place_ambiguous() -> None:
    for seed in range(10):
        pixels, points, pose = repeated(seed, 0.02)
        assert np.abs(error(solve_pose(pixels, points, CAMERA), pose)).max() < 0.05
