"""The compact encoder and how encoders are found."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from aceg_ros.encoders.base import load_encoder, pick_device
from aceg_ros.encoders.compact import CompactNet, fuse_batch_norm
from aceg_ros.errors import UserError
from aceg_ros.synthetic.demo import demo_world, mapping_path
from aceg_ros.synthetic.render import DAYLIGHT, EVENING


def test_shapes_and_unit_features():
    net = CompactNet().eval()
    features, reliability = net(torch.rand(2, 3, 120, 168))
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


def test_shipped_weights_are_small_and_tell_places_apart():
    """The same surface point under another light is, for most points, nearer than any other point of the picture."""
    encoder = load_encoder("compact")
    assert (encoder.stride, encoder.dim) == (8, 128) and encoder.identity.startswith("compact:")
    world = demo_world()
    pose = mapping_path(20, world.room)[13]
    first, second = (world.photograph(pose, light) for light in (DAYLIGHT, EVENING))
    a, b = (encoder(torch.from_numpy(frame.image).permute(2, 0, 1)[None].float() / 255)[0].flatten(1).T
            for frame in (first, second))
    chosen = torch.from_numpy(np.random.default_rng(0).choice(len(a), 400, replace=False))
    nearest = (a[chosen] @ b.T).argmax(1)
    rows = (nearest // 80 - chosen // 80).abs()
    columns = (nearest % 80 - chosen % 80).abs()
    assert ((rows <= 1) & (columns <= 1)).float().mean() > 0.6


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
