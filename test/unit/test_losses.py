# SPDX-License-Identifier: Apache-2.0
"""Head, contraction and losses, against values worked out by hand."""

import numpy as np
import pytest
import torch

from aceg_ros.mapping.losses import View, ace_loss, known_depth_loss, points_at_depth, reproject, softness
from aceg_ros.networks.ace_head import SceneHead, head_from_state
from aceg_ros.networks.contraction import Contraction


def one_view(count: int, pixels: torch.Tensor | None = None) -> View:
    pose = torch.eye(3, 4).repeat(count, 1, 1)
    intrinsics = torch.tensor([500.0, 480.0, 320.0, 240.0]).repeat(count, 1)
    return View(camera_from_map=pose, intrinsics=intrinsics,
                pixels=torch.full((count, 2), 100.0) if pixels is None else pixels)


# --- head -------------------------------------------------------------------------------------------------------------


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
    head = SceneHead(dim, width, blocks, homogeneous, mean=torch.tensor([1.0, 2.0, 3.0]))
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


# --- contraction ------------------------------------------------------------------------------------------------------


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


def test_the_loss_of_a_known_depth_has_a_gradient_everywhere():
    contraction = Contraction(centre=torch.zeros(3), radius=torch.tensor(4.0))
    for start in ([0.0, 0.0, 0.0], [1.0, 0.0, -3.0], [0.0, 300.0, 0.0], [9000.0, 0.0, 0.0]):
        for depth in (2.0, 200.0):
            prediction = contraction.contract(torch.tensor([start])).requires_grad_()
            loss, _ = known_depth_loss(contraction.expand(prediction), one_view(1), torch.tensor([depth]), contraction)
            loss.backward()
            assert 1e-3 < prediction.grad.norm().item() < 1e5, (start, depth)


# --- losses -----------------------------------------------------------------------------------------------------------


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
def test_the_target_of_invalid_predictions_is_ten_metres_along_the_ray(point):
    view = one_view(1)
    prediction = torch.tensor([point])
    assert not reproject(prediction, view).valid.item()
    expected = (prediction - points_at_depth(view, 10.0)).norm()
    assert ace_loss(prediction, view, 0.3)[0].item() == pytest.approx(expected.item(), rel=1e-6)


def test_measured_depth_is_a_target_if_it_is_known():
    view = one_view(2)
    right = points_at_depth(view, 3.0)
    depth = torch.tensor([3.0, float("nan")])
    assert ace_loss(right, view, 0.2, depth)[0].item() == pytest.approx(0.0, abs=1e-3)
    farther = points_at_depth(view, 4.0)                  # same pixel, wrong depth
    loss, error = ace_loss(farther, view, 0.2, depth)
    distance_px = (farther - right)[0].norm().item() * 500 / 3
    assert error.max() < 1e-3
    assert loss.item() == pytest.approx(50 * np.log1p(distance_px / 50) / 2, rel=1e-3)


def test_a_known_depth_has_a_gradient_however_far_off_a_prediction_is():
    """ACE's tanh does not: its gradient is nothing a few hundred pixels away."""
    view = one_view(1)
    start = points_at_depth(view, 3.0) + torch.tensor([[4.0, 0.0, 0.0]])               # about 670 px aside
    gradients = []
    for depth in (None, torch.tensor([3.0])):
        prediction = start.clone().requires_grad_()
        ace_loss(prediction, view, 0.1, depth, annealed=True)[0].backward()
        gradients.append(prediction.grad.norm().item())
    assert gradients[0] < 1e-6 < 1.0 < gradients[1]
    prediction = start.clone().requires_grad_()
    ace_loss(prediction, view, 0.95, torch.tensor([3.0]), annealed=True)[0].backward()
    assert prediction.grad.norm().item() < 0.4 * gradients[1], "a triangulated depth fades"


def test_the_target_of_invalid_predictions_of_unknown_depth_is_the_median_one():
    view = one_view(3)
    prediction = torch.tensor([[0.0, 0.0, -1.0]]).repeat(3, 1)
    prediction[1:] = points_at_depth(view, torch.tensor([[1.0], [2.0], [2.0]]))[1:]
    loss, _ = ace_loss(prediction, view, 0.9, torch.tensor([float("nan"), 2.0, 2.0]), annealed=True)
    expected = (prediction[0] - points_at_depth(view, 2.0)[0]).norm()
    assert 3 * loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_loss_gradient_survives_extreme_predictions():
    coordinates = torch.tensor([[0.0, 0.0, 0.0], [1e6, 0.0, 1e-9], [0.1, 0.1, 5.0]], requires_grad=True)
    ace_loss(coordinates, one_view(3), 0.5)[0].backward()
    assert torch.isfinite(coordinates.grad).all()
