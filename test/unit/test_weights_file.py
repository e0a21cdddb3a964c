# SPDX-License-Identifier: Apache-2.0
"""Weights files: what changes the result of weights is in the file and in the identity of the network."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from aceg_ros.encoders import SHIPPED_ENCODERS
from aceg_ros.encoders.ace import AceEncoderConfig, AceNet
from aceg_ros.encoders.aliked import AlikedConfig, AlikedNet
from aceg_ros.encoders.base import load_encoder, shipped_encoder
from aceg_ros.encoders.compact import CompactConfig
from aceg_ros.errors import UserError
from aceg_ros.methods import reloc3r, sacreg
from aceg_ros.networks.landmark_regressor import LandmarkCode, LandmarkConfig
from aceg_ros.networks.regressor import load_regressor
from aceg_ros.networks.weights_file import SHIPPED, identity_of, read_weights, shipped_for, write_weights

# As maps of every release name them: they must never change for these weights.
ENCODER, REGRESSOR = "compact:da5b226bce111657", "ace-g-landmarks:78016a5526c349b1"


def shipped_with(path: Path, name: str, config) -> str:
    """A copy of a shipped file with another configuration."""
    weights = read_weights(SHIPPED / f"{name}.safetensors", "any")
    write_weights(path, weights.tensors, kind=weights.kind, config=config, encoder=ENCODER)
    return str(path)


def test_shipped_files_store_their_constants_and_keep_their_identities():
    for name, config_type in (("compact", CompactConfig), ("ace_g", LandmarkConfig)):
        stored = read_weights(SHIPPED / f"{name}.safetensors", "any").config
        assert stored is not None and stored.keys() == {entry.name for entry in fields(config_type)}
    assert load_encoder("compact").identity == ENCODER
    assert load_regressor("ace_g").identity == REGRESSOR and load_regressor("ace_g").encoder == ENCODER


@pytest.mark.parametrize(("names", "encoder", "name"), [
    (sacreg.SHIPPED, "compact4", "sacreg_compact4"), (sacreg.SHIPPED, "compact3", "sacreg_compact3"),
    (sacreg.SHIPPED, "compact", "sacreg"), (sacreg.SHIPPED, "compact2", "sacreg_compact4"),
    (reloc3r.SHIPPED, "compact4", "reloc3r_compact4"), (reloc3r.SHIPPED, "compact3", "reloc3r")])
def test_the_network_of_an_encoder_is_found_among_the_shipped_ones(names, encoder, name):
    assert shipped_for(load_encoder(encoder).identity, names) == name


@pytest.mark.parametrize("name", SHIPPED_ENCODERS)
def test_shipped_encoders_are_found_by_their_identity(name):
    assert shipped_encoder(load_encoder(name).identity) == name
    assert shipped_encoder(f"{name}:0") is None


def test_files_of_the_first_release_load_with_its_constants(tmp_path):
    encoder, regressor = tmp_path / "e.safetensors", tmp_path / "r.safetensors"
    save_file(load_file(SHIPPED / "compact.safetensors"), encoder, {"kind": "compact"})
    size = {"dim_in": 128, "width": 48, "heads": 4, "blocks": 1, "nearest": 4}
    save_file(load_file(SHIPPED / "ace_g.safetensors"), regressor,
              {"kind": "ace-g-landmarks", "size": json.dumps(size), "encoder": ENCODER, "codes": "0"})
    assert load_encoder(str(encoder)).identity == ENCODER
    found = load_regressor(str(regressor))
    assert (found.identity, found.net.config) == (REGRESSOR, load_regressor("ace_g").net.config)


@pytest.mark.parametrize(("change", "value"), [("vote_radius", 0.4), ("voters", 100), ("similarity_scale", 80.0),
                                               ("confident_share", 0.5), ("search_dim", 64), ("search_candidates", 3),
                                               ("nearest", 3)])
def test_another_constant_makes_another_regressor(tmp_path, change, value):
    path = shipped_with(tmp_path / "r.safetensors", "ace_g", replace(LandmarkConfig(), **{change: value}))
    found = load_regressor(path)
    assert getattr(found.net.config, change) == value and found.identity != REGRESSOR


def test_another_constant_makes_another_encoder_and_other_features(tmp_path):
    image = torch.rand(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    expected = load_encoder("compact")(image)
    for number, config in enumerate((CompactConfig(statistics_step=8), CompactConfig(min_deviation=0.5))):
        changed = load_encoder(shipped_with(tmp_path / f"{number}.safetensors", "compact", config))
        assert changed.identity != ENCODER and not torch.equal(changed(image), expected)
    smaller = load_encoder(shipped_with(tmp_path / "small.safetensors", "compact", CompactConfig(short_side_px=240)))
    assert smaller.short_side_px == 240 and smaller.identity != ENCODER


def test_constants_are_used(tmp_path):
    generator = torch.Generator().manual_seed(0)
    keys = torch.nn.functional.normalize(torch.randn(500, 128, generator=generator), dim=1)
    points = 4 * torch.rand(500, 3, generator=generator)
    features = keys[:100] + 0.2 * torch.randn(100, 128, generator=generator)
    shipped = load_regressor("ace_g").net
    expected = shipped(features, LandmarkCode(keys, points, shipped.config))
    for number, change in enumerate(({"vote_radius": 0.6}, {"voters": 20}, {"similarity_scale": 20.0})):
        config = replace(LandmarkConfig(), **change)
        net = load_regressor(shipped_with(tmp_path / f"{number}.safetensors", "ace_g", config)).net
        found = net(features, LandmarkCode(keys, points, net.config))
        assert not torch.equal(found.sigma, expected.sigma), change
    few = load_regressor(shipped_with(tmp_path / "few.safetensors", "ace_g", LandmarkConfig(confident_share=0.2))).net
    assert few.select_confident(expected.sigma).sum() == 20 and shipped.select_confident(expected.sigma).sum() == 60


def test_imported_encoders_keep_their_constants(tmp_path):
    torch.manual_seed(0)
    for kind, net, config in (("ace", AceNet(16), AceEncoderConfig(grey=(0.3, 0.3, 0.4))),
                              ("aliked", AlikedNet((8, 16, 32), 64, 16), AlikedConfig(stride=16))):
        state = {key: value for key, value in net.state_dict().items() if value.is_floating_point()}
        published, other = tmp_path / f"{kind}.safetensors", tmp_path / f"other_{kind}.safetensors"
        write_weights(published, state, kind=kind, config=net.config)
        write_weights(other, state, kind=kind, config=config)
        assert load_encoder(str(published)).identity == identity_of(kind, state), "as in the first release"
        found = load_encoder(str(other))
        assert found.net.config == config and found.identity != identity_of(kind, state)
    assert found.stride == 16 and found(torch.rand(1, 3, 64, 96)).shape == (1, 64, 4, 6)


def test_a_file_with_unknown_constants_is_rejected(tmp_path):
    weights = read_weights(SHIPPED / "compact.safetensors", "encoder")
    for name, config in (("unknown", {"colour": 1}), ("broken", None)):
        text = json.dumps(config) if config else "{"
        save_file(weights.tensors, tmp_path / f"{name}.safetensors", {"kind": "compact", "config": text})
        with pytest.raises(UserError, match="does not hold the weights|not a readable encoder file"):
            load_encoder(str(tmp_path / f"{name}.safetensors"))
