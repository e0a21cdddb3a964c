# SPDX-License-Identifier: Apache-2.0
"""The compact encoder and how encoders are found."""

from itertools import islice, pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from aceg_ros.benchmarks import encoder_speed
from aceg_ros.benchmarks.encoder_speed import SpeedSetting, prepare
from aceg_ros.datasets import open_scene
from aceg_ros.encoders.aliked import AlikedNet, DeformableConv
from aceg_ros.encoders.base import load_encoder
from aceg_ros.encoders.compact import CompactNet, fuse_batch_norm
from aceg_ros.errors import UserError
from aceg_ros.mapping.augmentation import prepare_frame
from aceg_ros.mapping.matching import epipolar_lines, extract_features, homogeneous_pixels
from aceg_ros.networks.ace_head import SceneHead
from aceg_ros.synthetic.demo_room import demo_world, mapping_path
from aceg_ros.synthetic.render import DAYLIGHT, EVENING
from aceg_ros.utils import device
from aceg_ros.utils.device import pick_device


def test_shapes_and_unit_features():
    net = CompactNet().eval()
    features, reliability, _ = net(torch.rand(2, 3, 120, 168))
    assert features.shape == (2, 128, 15, 21) and reliability.shape == (2, 15, 21)
    assert ((reliability > 0) & (reliability < 1)).all()
    assert torch.allclose(features.norm(dim=1), torch.tensor(128**0.5), rtol=1e-4)


def test_folding_the_batch_norms_changes_nothing():
    torch.manual_seed(0)
    net = CompactNet()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -1, 1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.uniform_(module.weight, 0.5, 2)
            torch.nn.init.uniform_(module.bias, -1, 1)
    images = torch.rand(1, 3, 64, 96)
    expected = net.eval()(images).features
    fused = fuse_batch_norm(net)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fused.modules())
    assert torch.allclose(fused(images).features, expected, atol=1e-3)


def test_exposure_and_colour_temperature_are_taken_out():
    """Per-channel gain and offset, without clipping, leave the features as they are."""
    encoder = load_encoder("compact")
    images = torch.rand(1, 3, 96, 128) * 0.5 + 0.2
    changed = images * torch.tensor([1.2, 0.8, 0.6])[:, None, None] + 0.05
    assert torch.allclose(encoder(images), encoder(changed), atol=0.05)


@pytest.mark.parametrize("grey", [False, True])
def test_shipped_weights_are_small_and_match_a_relit_image(repository, grey):
    """The same surface point under another light is, for most points, closer in feature space than any
    other point of the image."""
    assert (repository / "aceg_ros" / "weights" / "compact.safetensors").stat().st_size < 8e6
    encoder = load_encoder("compact")
    assert (encoder.stride, encoder.dim) == (8, 128) and encoder.identity.startswith("compact:")
    world = demo_world()
    pose = mapping_path(20, world.room)[13]
    images = [torch.from_numpy(world.render_frame(pose, light).image).permute(2, 0, 1)[None].float() / 255
              for light in (DAYLIGHT, EVENING)]
    if grey:
        images = [image.mean(1, keepdim=True).expand(-1, 3, -1, -1) for image in images]
    a, b = (encoder(image)[0].flatten(1).T for image in images)
    assert _neighbours((a @ b.T).argmax(1), torch.arange(len(a))).float().mean() > 0.9


def test_reliable_patches_match_more_often_than_others(shared_scenes):
    """In a kitchen that it has never seen: share of patches whose nearest feature in another image lies where the poses
    allow. Measured: 0.84 of the more reliable half, 0.66 of the others."""
    encoder = load_encoder("compact")
    prepared = [prepare_frame(frame, encoder.short_side_px, encoder.stride)
                for frame in islice(open_scene(shared_scenes / "redkitchen7s" / "mapping"), 0, 60, 4)]
    reliable, others = [], []
    for first, second in pairwise(prepared):
        a, b = (extract_features(frame, encoder, 5000) for frame in (first, second))     # the most reliable first
        nearest = (a.features @ b.features.T).argmax(1)
        lines = epipolar_lines(a.rays, a.centre, b.camera_from_map[None], b.intrinsics[None])[0]
        allowed = (homogeneous_pixels(b.pixels[nearest], b.intrinsics) * lines).sum(-1).abs() < 6.0
        reliable.append(allowed[:2400].float().mean())
        others.append(allowed[2400:].float().mean())
    assert np.mean(reliable) > np.mean(others) + 0.12, (np.mean(reliable), np.mean(others))


def _neighbours(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Whether cells of a 60x80 grid are the same or touch."""
    return ((a // 80 - b // 80).abs() <= 1) & ((a % 80 - b % 80).abs() <= 1)


def test_unknown_encoders_and_files(tmp_path):
    with pytest.raises(UserError, match="No encoder 'nonesuch'.*compact"):
        load_encoder("nonesuch")
    junk = tmp_path / "junk.safetensors"
    junk.write_bytes(b"junk" * 20)
    with pytest.raises(UserError, match="not a readable encoder file"):
        load_encoder(str(junk))
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(1)}, foreign)
    with pytest.raises(UserError, match="unknown kind"):
        load_encoder(str(foreign))
    wrong = tmp_path / "wrong.safetensors"
    save_file({"x": torch.zeros(1)}, wrong, {"kind": "compact"})
    with pytest.raises(UserError, match="does not hold the weights"):
        load_encoder(str(wrong))


def test_devices():
    assert pick_device("cpu") == "cpu"
    with pytest.raises(UserError, match="Unknown device"):
        pick_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no GPU"):
            pick_device("cuda")
        assert pick_device("auto") == "cpu"


def test_deformable_convolution_is_a_convolution_of_moved_taps():
    """Without offsets the ordinary one; with the same whole-pixel offset everywhere, that of the shifted image."""
    torch.manual_seed(0)
    layer = DeformableConv(3, 5)
    torch.nn.init.zeros_(layer.offset_conv.weight)
    torch.nn.init.zeros_(layer.offset_conv.bias)
    x = torch.randn(2, 3, 24, 32)
    plain = layer.regular_conv(x)
    assert torch.allclose(layer(x), plain, atol=1e-5)
    layer.offset_conv.bias.data = torch.tensor([2.0, -3.0] * 9)                     # (dy, dx) of each tap
    assert torch.allclose(layer(x)[:, :, 4:-4, 4:-4], plain[:, :, 6:-2, 1:-7], atol=1e-4)


def test_aliked_sizes_are_read_from_its_weights_and_its_features_shift_with_the_image():
    torch.manual_seed(0)
    net = AlikedNet((8, 16, 32), 64, 16)
    torch.nn.init.normal_(net.desc_head.agg_weights)
    again = AlikedNet.from_state(net.eval().state_dict()).eval()
    image = torch.rand(1, 3, 96, 120)
    with torch.inference_mode():
        features, score, _ = again(image)
        moved, _, _ = again(torch.roll(image, 32, 3))
    assert features.shape == (1, 64, 12, 15) and score.shape == (1, 12, 15)
    assert torch.allclose(features.norm(dim=1), torch.tensor(8.0), rtol=1e-3)
    inner = torch.nn.functional.cosine_similarity(features[:, :, 4:8, 4:6], moved[:, :, 4:8, 8:10], dim=1)
    other = torch.nn.functional.cosine_similarity(features[:, :, 4:8, 4:6], moved[:, :, 4:8, 4:6], dim=1)
    assert inner.mean() > other.mean()


def test_dense_sift_needs_no_weights():
    encoder = load_encoder("sift")
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 255, (1, 3, 64, 96), np.uint8)).float() / 255
    features, reliability, _ = encoder.extract(image)
    assert features.shape == (1, 128, 8, 12) and reliability is None and encoder.dim == 128
    again = encoder(0.8 * image)
    assert (torch.nn.functional.cosine_similarity(features, again, dim=1) > 0.95).all()


def test_half_precision_does_not_round_coordinates(monkeypatch):
    """A CPU that computes in bf16 does so in the encoder and in the head's hidden layers, not in the coordinates."""
    monkeypatch.setattr(device, "computes_in_bf16", lambda: True)
    encoder = load_encoder("compact")
    image = torch.rand(1, 3, 96, 128)
    half = encoder(image)
    monkeypatch.setattr(device, "computes_in_bf16", lambda: False)
    whole = encoder(image)
    assert half.dtype == torch.float32 and not torch.equal(half, whole)
    assert torch.nn.functional.cosine_similarity(half, whole, dim=1).mean() > 0.99
    torch.manual_seed(0)
    head = SceneHead(16, 32, 1)
    for name in ("fc1", "fc2"):
        getattr(head, name).weight.data = torch.eye(32)
        getattr(head, name).bias.data.zero_()
    head.res3_conv3.weight.data.zero_()                    # what is left: the skip, and the last layer
    head.res3_conv3.bias.data.zero_()
    head.head_skip.bias.data.zero_()
    head.get_submodule("0c2").weight.data.zero_()
    head.get_submodule("0c2").bias.data.zero_()
    head.head_skip.weight.data = torch.eye(32, 16)
    head.fc3.weight.data = torch.full((4, 32), 333.333)
    head.fc3.weight.data[3] = 0.0
    features = torch.rand(500, 16).bfloat16().float()      # exact in bf16, so only the last layer rounds
    expected = head(features)
    with torch.autocast("cpu", torch.bfloat16):
        coordinates = head(features)
    assert (coordinates - expected).abs().max() < 0.01 < expected.abs().max() / 1000


def test_all_speed_settings_of_an_encoder_agree_and_are_timed(tmp_path, monkeypatch, capsys):
    plain, *others = [SpeedSetting(half=False), SpeedSetting(half=False, channels_last=False),
                      SpeedSetting(half=False, form="traced")]
    net = load_encoder("compact").net
    torch.manual_seed(0)
    expected = prepare(net, plain, "cpu")()
    for setting in others:
        torch.manual_seed(0)                            # of the image
        assert torch.allclose(prepare(net, setting, "cpu")()[0], expected[0], atol=2e-3), setting
    monkeypatch.setattr(encoder_speed, "SETTINGS", (plain, SpeedSetting(half=False, threads=1)))
    assert encoder_speed.main(["-o", str(tmp_path), "--repeats", "2", "--device", "cpu"]) == 0
    table = (tmp_path / "encoder_speed.md").read_text()
    assert "| eager, fp32, channels last, all threads |" in table and table.rstrip() == capsys.readouterr().out.rstrip()
