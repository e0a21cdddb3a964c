# SPDX-License-Identifier: Apache-2.0
"""The registry: methods by name, which one is the default, flags and their rejections made from a method's options."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import pytest

from aceg_ros.cli import main
from aceg_ros.errors import UserError
from aceg_ros.methods import registry
from aceg_ros.methods.ace import AceOptions
from aceg_ros.methods.base import MappingOptions
from aceg_ros.methods.options import option, options_of
from aceg_ros.methods.registry import MethodSpec, default_method, make_method_options


@dataclass(frozen=True, kw_only=True)
class MadeUpOptions:
    colour: str = option("red", "what colour it has", choices=("red", "green"))
    weight: float = option(1.0, "how heavy it is", metavar="KG", minimum=0.5, maximum=2.0)
    upside_down: bool = option(False, "turn it over", conflicts_with="use_depth")


given_to_the_mapper: list[MadeUpOptions] = []


def fail(_: object, method_options: object, *__: object):
    given_to_the_mapper.append(method_options)
    raise UserError("The made-up method makes nothing.")


@pytest.fixture
def made_up():
    spec = MethodSpec(name="made_up", summary="nothing", options=MadeUpOptions, make_mapper=fail, make_localizer=fail)
    given_to_the_mapper.clear()
    registry.register(spec)
    yield spec
    registry.unregister("made_up")


def test_the_default_is_ace_g_where_its_regressor_reads_the_encoder():
    assert default_method(MappingOptions()) == "ace_g"
    assert default_method(MappingOptions(encoder="other.safetensors")) == "ace"
    assert default_method(MappingOptions(), {"reprojection_only"}) == "ace"
    assert default_method(MappingOptions(), {"codes"}) == "ace_g"
    assert registry.default_names() == ("ace_g", "ace") and "marepo" in registry.names()


@pytest.mark.parametrize(("method", "given", "sentence"), [
    ("ace", {"codes": 9}, "--codes is of method ace_g or marepo: leave it out, or map with --method ace_g or marepo."),
    ("ace_g", {"reprojection_only": True},
     "--reprojection-only is of method ace: leave it out, or map with --method ace."),
    ("ace_g", {"codes": 0}, "Option codes: '0' is not a whole number of 1 or more."),
    ("magic", {}, "Unknown method 'magic': this version has ace_g, ace,"),
    ("ace", {"colour": "red"},
     "No method has an option 'colour': there are keep_poses, compact, regressor, codes, reprojection_only,"),
])
def test_options_of_another_method_are_rejected(method, given, sentence):
    with pytest.raises(UserError) as found:
        make_method_options(method, given)
    assert str(found.value).startswith(sentence)


def test_options_become_flags_and_the_method_gets_them(made_up, rendered_scene, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["map", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "of --method made_up: how heavy it is (default: 1.0)" in text and "made_up (nothing)" in text
    arguments = ["map", str(rendered_scene / "query"), "-o", str(tmp_path / "x.map")]
    assert main([*arguments, "--method", "made_up", "--colour", "green", "--weight", "1.5"]) == 2
    assert given_to_the_mapper == [MadeUpOptions(colour="green", weight=1.5)]
    capsys.readouterr()
    for wrong, sentence in ((["--weight", "3"], "'3.0' is not a number from 0.5 to 2.0"),
                            (["--weight", "heavy"], "'heavy' is not a number from 0.5 to 2.0"),
                            (["--colour", "blue"], "blue"),
                            (["--upside-down", "--use-depth"], "not allowed with"),
                            (["--colour", "red", "--method", "ace"], "--colour is of method made_up")):
        try:
            assert main([*arguments, *wrong]) == 2
        except SystemExit as stop:
            assert stop.code == 2
        assert sentence in capsys.readouterr().err


def test_names_and_options_cannot_clash(made_up):
    with pytest.raises(ValueError, match="already"):
        registry.register(made_up)

    @dataclass(frozen=True, kw_only=True)
    class Other:
        weight: int = option(1, "as a whole number")

    with pytest.raises(ValueError, match="another type"):
        registry.register(MethodSpec(name="other", summary="", options=Other, make_mapper=fail, make_localizer=fail))
    with pytest.raises(TypeError):
        registry.make_mapper("ace", MappingOptions(), MadeUpOptions())


def test_methods_share_a_flag_and_each_has_its_own_default(made_up, capsys):
    @dataclass(frozen=True, kw_only=True)
    class Lighter:
        weight: float = option(0.1, "how light it is", metavar="KG", maximum=0.2)

    registry.register(MethodSpec(name="lighter", summary="", options=Lighter, make_mapper=fail, make_localizer=fail))
    try:
        with pytest.raises(SystemExit):
            main(["map", "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert "of --method made_up: how heavy it is (default: 1.0); of --method lighter: how light it is" in text
        assert make_method_options("lighter", {}).weight == 0.1 and make_method_options("made_up", {}).weight == 1.0
        assert make_method_options("lighter", {"weight": 0.2}).weight == 0.2
        with pytest.raises(UserError, match="weight: '0.3' is not a number of 0.2 or less"):
            make_method_options("lighter", {"weight": 0.3})
        with pytest.raises(UserError, match="--weight is of method made_up or lighter"):
            make_method_options("ace", {"weight": 0.2})
    finally:
        registry.unregister("lighter")


def test_only_described_fields_of_plain_types_are_options():
    @dataclass(frozen=True)
    class Undescribed:
        weight: float = 1.0

    @dataclass(frozen=True)
    class Structured:
        weights: tuple = option((), "several")

    for kind in (Undescribed, Structured):
        with pytest.raises(TypeError):
            options_of(kind)


def test_help_loads_no_torch():
    code = ("import sys; from aceg_ros.cli import main\n"
            "try: main(['map', '--help'])\n"
            "except SystemExit: pass\n"
            "sys.exit('torch' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


def test_options_that_exclude_each_other_do_so_without_the_command_line():
    with pytest.raises(UserError, match="reprojection_only and use_depth cannot be used together"):
        registry.make_mapper("ace", MappingOptions(use_depth=True), AceOptions(reprojection_only=True))
