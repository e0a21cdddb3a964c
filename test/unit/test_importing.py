# SPDX-License-Identifier: Apache-2.0
"""`aceg import`: files of the ACE release, as the release writes them."""

import inspect
import pickle
from importlib import import_module

import numpy as np
import pytest
import torch

from aceg_ros.camera import Camera, Frame
from aceg_ros.cli import main
from aceg_ros.encoders.ace import AceNet
from aceg_ros.encoders.base import load_encoder
from aceg_ros.errors import UserError
from aceg_ros.importers.registry import INPUTS, import_file, importers
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.registry import make_localizer
from aceg_ros.utils.device import computes_in_bf16


def release_head(dim: int, width: int) -> dict[str, torch.Tensor]:
    """A state dict with the layout of a scene file of the release: 1x1 convolutions in fp16, scale buffers."""
    torch.manual_seed(1)
    names = ["res3_conv1", "res3_conv2", "res3_conv3", "0c0", "0c1", "0c2", "fc1", "fc2"]
    state = {}
    for name in names:
        state[f"{name}.weight"] = 0.05 * torch.randn(width, dim if name == "res3_conv1" else width, 1, 1)
        state[f"{name}.bias"] = torch.zeros(width)
    state["fc3.weight"], state["fc3.bias"] = 0.05 * torch.randn(4, width, 1, 1), torch.zeros(4)
    if dim != width:
        state["head_skip.weight"], state["head_skip.bias"] = torch.zeros(width, dim, 1, 1), torch.zeros(width)
    state = {key: value.half() for key, value in state.items()}
    scales = {"max_scale": 4.0, "min_scale": 0.01, "max_inv_scale": 0.25, "min_inv_scale": 100.0, "h_beta": 0.924}
    return state | {key: torch.tensor([value]) for key, value in scales.items()} | {
        "mean": torch.tensor([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1)}


@pytest.fixture
def imported(tmp_path):
    torch.manual_seed(0)
    net = AceNet(32)
    torch.save({key: value.half() for key, value in net.state_dict().items()}, tmp_path / "encoder.pt")
    torch.save(release_head(32, 64), tmp_path / "scene.pt")
    assert main(["import", "ace-encoder", str(tmp_path / "encoder.pt"), "-o", str(tmp_path / "ace.safetensors")]) == 0
    assert main(["import", "ace-head", str(tmp_path / "scene.pt"), "-o", str(tmp_path / "scene.map"),
                 "--encoder", str(tmp_path / "ace.safetensors")]) == 0
    return tmp_path, net


def test_an_imported_encoder_computes_what_the_original_does(imported):
    folder, net = imported
    encoder = load_encoder(str(folder / "ace.safetensors"))
    assert (encoder.dim, encoder.stride, encoder.name) == (32, 8, "ace")
    images = torch.rand(1, 3, 64, 96)
    # Features are around 0.05; encoders compute in bf16 where the processor has it.
    atol = 1e-3 if computes_in_bf16() else 1e-4
    assert torch.allclose(encoder(images), net.half().float()(images).features, atol=atol)


def test_an_imported_head_localizes_with_its_encoder(imported):
    folder, _ = imported
    scene_map = SceneMap.load(folder / "scene.map")
    assert scene_map.method == "ace"
    image = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    camera = Camera(width=640, height=480, fx=525.0, fy=525.0, cx=320.0, cy=240.0)
    estimate = make_localizer(scene_map, "cpu").localize(Frame(image=image, camera=camera))
    assert not estimate.accepted, "random weights know no scene"


def test_the_release_has_its_patch_centres_half_a_pixel_further(imported):
    folder, _ = imported
    image = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    frame = Frame(image=image, camera=Camera(width=640, height=480, fx=525.0, fy=525.0, cx=320.0, cy=240.0))
    seen = make_localizer(SceneMap.load(folder / "scene.map"), "cpu").scene_coordinates(frame)
    assert seen.pixels[0].tolist() == [4.0, 4.0]


@pytest.mark.parametrize("content", [b"", b"junk", pickle.dumps({"a": 1})])
@pytest.mark.parametrize("kind", ["ace-encoder", "ace-head"])
def test_wrong_files_are_rejected_with_a_sentence(tmp_path, capsys, content, kind):
    (tmp_path / "x.pt").write_bytes(content)
    assert main(["import", kind, str(tmp_path / "x.pt"), "-o", str(tmp_path / "y")]) == 2
    message = capsys.readouterr().err
    assert "x.pt" in message and "weights_only" not in message and "Traceback" not in message
    assert not (tmp_path / "y").exists()


def test_code_in_a_weight_file_is_never_run(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "touched"), "w"))

    torch.save({"weight": Evil()}, tmp_path / "x.pt")
    assert main(["import", "ace-encoder", str(tmp_path / "x.pt"), "-o", str(tmp_path / "y")]) == 2
    assert not (tmp_path / "touched").exists()


def test_heads_and_encoders_that_do_not_fit(imported, capsys):
    folder, _ = imported
    torch.save(release_head(64, 64), folder / "other.pt")
    assert main(["import", "ace-head", str(folder / "other.pt"), "-o", str(folder / "o.map"),
                 "--encoder", str(folder / "ace.safetensors")]) == 2
    assert "64-D features" in capsys.readouterr().err
    assert main(["import", "ace-head", str(folder / "scene.pt"), "-o", str(folder / "o.map")]) == 2
    assert "--encoder" in capsys.readouterr().err
    assert main(["import", "ace-head", str(folder / "encoder.pt"), "-o", str(folder / "o.map"),
                 "--encoder", str(folder / "ace.safetensors")]) == 2
    assert "not a scene head" in capsys.readouterr().err


def test_a_map_whose_encoder_changed_is_rejected(imported):
    folder, _ = imported
    torch.manual_seed(9)
    torch.save(AceNet(32).state_dict(), folder / "encoder.pt")
    assert main(["import", "ace-encoder", str(folder / "encoder.pt"), "-o", str(folder / "ace.safetensors")]) == 0
    with pytest.raises(UserError, match="was made with encoder"):
        make_localizer(SceneMap.load(folder / "scene.map"), "cpu")


def test_every_importer_is_there_and_takes_its_inputs():
    """What specs name by a string has to exist: `aceg --help` does not load it."""
    for spec in importers().values():
        module, name = spec.function.split(":")
        parameters = inspect.signature(getattr(import_module(module), name)).parameters
        assert tuple(parameters) == ("source", "target", *spec.inputs) and set(spec.inputs) <= set(INPUTS)
    assert set(importers()) == {"ace-encoder", "ace-head", "ace-g", "ace-g-map", "aliked", "marepo", "marepo-map",
                                "reloc3r"}


def test_unknown_kinds_are_rejected(tmp_path):
    with pytest.raises(UserError, match="Unknown kind 'magic'"):
        import_file("magic", tmp_path / "x.pt", tmp_path / "y")
