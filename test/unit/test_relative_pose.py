# SPDX-License-Identifier: Apache-2.0
"""The published relative pose network: parity, conventions, and files of the release."""

import json

import pytest
import torch
from parity import agrees, reference
from safetensors.torch import save_file

from aceg_ros.errors import UserError
from aceg_ros.importers.reloc3r import import_network
from aceg_ros.networks.relative_pose import RelativePoseConfig, RelativePoseNet
from aceg_ros.networks.relative_pose_file import load_relative_pose
from aceg_ros.networks.rotations import nearest_rotation

TINY = RelativePoseConfig(patch_size=4, enc_embed_dim=64, enc_depth=2, enc_num_heads=1, dec_embed_dim=64, dec_depth=1,
                          dec_num_heads=1)


def tiny_state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return RelativePoseNet(TINY).state_dict()


@pytest.mark.needs_data
def test_reproduces_the_published_network():
    state, tensors, config = reference("reloc3r")
    net = RelativePoseNet(RelativePoseConfig(**config)).eval()
    net.load_state_dict(state)
    with torch.inference_mode():
        pose1, pose2 = net(tensors["in.image1"], tensors["in.image2"])
    assert agrees(pose1, tensors["out.pose1"])
    assert agrees(pose2, tensors["out.pose2"])


def test_images_swapped_swap_the_poses_and_may_differ_in_size():
    net = RelativePoseNet(TINY).eval()
    first, second = torch.rand(2, 3, 16, 24), torch.rand(2, 3, 12, 32)
    with torch.inference_mode():
        a, b = net(first, second)
        swapped_b, swapped_a = net(second, first)
    assert torch.allclose(a, swapped_a, atol=1e-5) and torch.allclose(b, swapped_b, atol=1e-5)
    assert not torch.allclose(a, b, atol=1e-2)


def test_rotations_are_rotations_whatever_the_matrix():
    rotations = nearest_rotation(torch.randn(50, 3, 3))
    assert torch.allclose(rotations @ rotations.mT, torch.eye(3).expand(50, 3, 3), atol=1e-5)
    assert torch.allclose(torch.linalg.det(rotations), torch.ones(50), atol=1e-5)


def test_a_file_in_the_layout_of_the_release_is_imported_and_computes_the_same(tmp_path):
    state = tiny_state()
    (tmp_path / "reloc3r-224").mkdir()
    save_file(state, tmp_path / "reloc3r-224" / "model.safetensors")
    sentence = import_network(tmp_path / "reloc3r-224" / "model.safetensors", tmp_path / "net.safetensors")
    assert "images 224 pixels wide" in sentence
    loaded = load_relative_pose(str(tmp_path / "net.safetensors"))
    assert loaded.net.config.img_size == 224 and loaded.net.config.enc_depth == 2
    original = RelativePoseNet(TINY).eval()
    original.load_state_dict(state)
    images = torch.rand(1, 3, 16, 24), torch.rand(1, 3, 16, 24)
    with torch.inference_mode():
        for found, expected in zip(loaded.net(*images), original(*images), strict=True):
            assert torch.allclose(found, expected, atol=2e-2)        # fp16 weights
    again = load_relative_pose(str(tmp_path / "net.safetensors"))
    assert again.identity == loaded.identity and again.source == loaded.source


def test_the_size_of_the_images_is_that_of_config_json(tmp_path):
    save_file(tiny_state(), tmp_path / "model.safetensors")
    for size, sentence in ((224, "images 224 pixels wide"), (512, "images 512 pixels wide")):
        (tmp_path / "config.json").write_text(json.dumps({"img_size": size}))
        assert sentence in import_network(tmp_path / "model.safetensors", tmp_path / "net.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"img_size": 300}))
    with pytest.raises(UserError, match="img_size = 300"):
        import_network(tmp_path / "model.safetensors", tmp_path / "net.safetensors")


def changed(state: dict, key: str, value: torch.Tensor | None) -> dict:
    return {**{other: tensor for other, tensor in state.items() if other != key},
            **({} if value is None else {key: value})}


@pytest.mark.parametrize(("key", "value", "sentence"), [
    ("dec_norm.weight", None, "it has no dec_norm.weight"),
    ("patch_embed.proj.weight", None, "it has no patch_embed.proj.weight"),
    ("mask_token", torch.zeros(1), "it has an unknown mask_token"),
    ("enc_norm.weight", torch.zeros(65), r"its enc_norm.weight is \(65,\), not \(64,\)"),
    ("decoder_embed.weight", torch.zeros(60, 64), "widths 64 and 60 are not multiples of 64"),
])
def test_files_whose_keys_or_shapes_differ_are_rejected_with_a_sentence(tmp_path, key, value, sentence):
    save_file(changed(tiny_state(), key, value), tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=sentence):
        import_network(tmp_path / "x.safetensors", tmp_path / "y.safetensors")
    assert not (tmp_path / "y.safetensors").exists()


def test_files_that_are_no_network_are_rejected(tmp_path):
    (tmp_path / "x").write_bytes(b"junk")
    for path in (tmp_path / "x", tmp_path / "absent"):
        with pytest.raises(UserError, match="not a readable"):
            import_network(path, tmp_path / "y")
    with pytest.raises(UserError, match="No relative pose network"):
        load_relative_pose(str(tmp_path / "absent"))
    with pytest.raises(UserError, match="of kind 'compact'"):
        load_relative_pose("compact")
