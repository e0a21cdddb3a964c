# SPDX-License-Identifier: Apache-2.0
"""Relative poses from weighted matches: exact without noise, robust with wrong matches, with derivatives."""

from __future__ import annotations

import torch
from scipy.spatial.transform import Rotation

from aceg_ros.networks.rotations import skew
from aceg_ros.networks.weighted_essential import decompose, refine, sampson_errors, solve_essential

SCALES = (0.05, 0.02, 0.01, 0.005)
PAIRS, MATCHES = 8, 120


def views(seed: int = 0, *, noise: float = 0.0, wrong: int = 0) -> dict[str, torch.Tensor]:
    """Rays of points in both images of PAIRS pairs, with their poses; the first `wrong` matches are of other points."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    points = torch.rand(PAIRS, MATCHES, 3, generator=generator, dtype=torch.float64) * 4 + torch.tensor([-2, -2, 3.0])
    rotation = torch.from_numpy(Rotation.from_rotvec(0.2 * normal(PAIRS, 3).numpy()).as_matrix())
    direction = torch.nn.functional.normalize(normal(PAIRS, 3), dim=1)
    first = points @ rotation.mT + direction[:, None]
    first[:, :wrong] = first[:, torch.randperm(wrong, generator=generator)]
    rays = [each / each[..., 2:] for each in (first, points)]
    rays = [each + noise * torch.cat([normal(PAIRS, MATCHES, 2), torch.zeros(PAIRS, MATCHES, 1)], 2) for each in rays]
    return {"first": rays[0], "second": rays[1], "rotation": rotation, "direction": direction}


def errors_deg(found: tuple[torch.Tensor, torch.Tensor], truth: dict[str, torch.Tensor]) -> torch.Tensor:
    between = Rotation.from_matrix((found[0].mT @ truth["rotation"]).numpy()).magnitude()
    cosine = (found[1] * truth["direction"]).sum(1).clamp(-1.0, 1.0)
    return torch.maximum(torch.from_numpy(between), torch.acos(cosine)).rad2deg()


def test_exact_matches_give_the_pose_exactly():
    truth = views()
    rays = truth["first"], truth["second"]
    weights = torch.ones(PAIRS, MATCHES)
    essential = solve_essential(*rays, weights, ())
    expected = skew(truth["direction"]) @ truth["rotation"]
    expected = expected / expected.flatten(1).norm(dim=1)[:, None, None]
    assert torch.minimum((essential - expected).norm(dim=(1, 2)), (essential + expected).norm(dim=(1, 2))).max() < 1e-5
    assert sampson_errors(essential, *rays).abs().max() < 1e-5
    assert errors_deg(decompose(essential, *rays, weights), truth).max() < 1e-3


def test_wrong_matches_that_weigh_less_are_left_out_and_refining_gets_nearer():
    """A fifth is wrong, with a tenth of the weight: they spoil the eight-point algorithm, not its further rounds."""
    truth = views(noise=0.001, wrong=24)
    rays = truth["first"], truth["second"]
    weights = torch.ones(PAIRS, MATCHES)
    weights[:, :24] = 0.1
    once, often = (decompose(solve_essential(*rays, weights, scales), *rays, weights) for scales in ((), SCALES))
    assert errors_deg(often, truth).median() < 0.5 * errors_deg(once, truth).median()
    refined = errors_deg(refine(often, *rays, weights, scales=(0.02, 0.01, 0.005, 0.003, 0.002)), truth)
    assert refined.median() < min(0.5, float(errors_deg(often, truth).median()))


def test_weights_have_derivatives_that_lower_the_error():
    truth = views(noise=0.001, wrong=24)
    rays = truth["first"], truth["second"]
    logits = torch.zeros(PAIRS, MATCHES, requires_grad=True)

    def loss() -> torch.Tensor:
        return sampson_errors(solve_essential(*rays, logits.sigmoid(), SCALES), *rays)[:, 24:].abs().mean()

    before = loss()
    before.backward()
    assert torch.isfinite(logits.grad).all() and float(logits.grad.abs().max()) > 0.0
    with torch.no_grad():
        logits -= 1e-3 * logits.grad / logits.grad.abs().max()
        assert loss() < before


def test_no_matches_give_a_finite_pose():
    rays = torch.zeros(1, 4, 3)
    rays[..., 2] = 1.0
    weights = torch.zeros(1, 4)
    found = refine(decompose(solve_essential(rays, rays, weights, SCALES), rays, rays, weights), rays, rays, weights,
                   scales=(0.01,))
    assert torch.isfinite(found[0]).all() and torch.isfinite(found[1]).all()
