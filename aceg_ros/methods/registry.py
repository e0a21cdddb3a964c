# SPDX-License-Identifier: Apache-2.0
"""The registry of methods: a `MethodSpec` for each.

Command line flags, choices of ROS parameters, kinds of `aceg import`, benchmarks and help texts are made from the
registered specs; no other code refers to a method by its name. See docs/adding_a_method.md.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from aceg_ros.errors import UserError
from aceg_ros.methods.base import Localizer, Mapper, MappingOptions
from aceg_ros.methods.options import NoOptions, Option, check_options, make_options, options_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from aceg_ros.maps.scene_map import SceneMap

_BUILT_IN = ("aceg_ros.methods.ace_g", "aceg_ros.methods.ace", "aceg_ros.methods.marepo",
             "aceg_ros.methods.sacreg", "aceg_ros.methods.reloc3r")       # each has a SPEC
ENTRY_POINTS = "aceg_ros.methods"            # entry points of installed packages that add methods: name = "module:SPEC"


@dataclass(frozen=True, kw_only=True)
class ImporterSpec:
    """One kind of `aceg import`: how a published file is converted to a file of this package.

    kind: its name on the command line. description: of the published file, for the help. inputs: other files that the
    import needs, keys of `importers.registry.INPUTS`. function: "module:name" of the function that converts `source` to
    `target`, `(source: Path, target: Path, *, <input>: str | None, ...) -> str`; it returns a sentence that says what
    was written, and raises UserError if the file is of another kind or damaged.
    """

    kind: str
    description: str
    function: str
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """The complete definition of a method.

    To keep `aceg --help` fast, the module of a spec imports torch and mapping code inside of functions only.

    Attributes:
        name: name in maps, on the command line and in parameters.
        summary: one phrase for the help.
        make_mapper: returns a mapper, given `MappingOptions` and an instance of `options`.
        make_localizer: returns a localizer, given a map, a device ("auto", "cpu", "cuda") and a seed.
        options: dataclass of the method's own options; see `methods.options`.
        map_settings: dataclass of the settings stored in its maps; None if there are none.
        importers: kinds of published files that can be imported.
        after_growth: returns a map whose keyframe database has changed with everything else that depends on it, given
            the map, a device and a seed; None if maps of this method cannot grow.
        priority: if the user names no method, the one of highest priority that supports the options is used; a method
            of priority 0 is only used by name.
        supports: returns whether the method works with these `MappingOptions`.
        untrained_map: returns a map with random weights of the default size, given a device and an encoder, to measure
            the speed of localization; None if there is no such map.
    """

    name: str
    summary: str
    make_mapper: Callable[[MappingOptions, Any], Mapper]
    make_localizer: Callable[[SceneMap, str, int], Localizer]
    options: type[DataclassInstance] = NoOptions
    map_settings: type[DataclassInstance] | None = None
    importers: tuple[ImporterSpec, ...] = ()
    after_growth: Callable[[SceneMap, str, int], SceneMap] | None = None
    priority: int = 0
    supports: Callable[[MappingOptions], bool] = lambda options: True
    untrained_map: Callable[[str, str], SceneMap] | None = None

    def option_names(self) -> frozenset[str]:
        """Return the names of the method's own options."""
        return frozenset(option.name for option in options_of(self.options))


_SPECS: dict[str, MethodSpec] = {}


def register(spec: MethodSpec) -> None:
    """Add a method in this process.

    Raises ValueError if its name is taken, or if another method has an option of the same name but another type.
    """
    if spec.name in _known():
        raise ValueError(f"There is a method '{spec.name}' already.")
    for option in options_of(spec.options):
        if any(option.kind is not other.kind for other in all_options().get(option.name, {}).values()):
            raise ValueError(f"Option {option.name} of method {spec.name} has another type than the one there is.")
    _SPECS[spec.name] = spec


def unregister(name: str) -> None:
    """Remove a method that was added by `register`."""
    _known().pop(name)


def get(name: str) -> MethodSpec:
    """Return the spec of a method. Raises UserError if there is no such method."""
    if name not in _known():
        raise UserError(f"Unknown method '{name}': this version has {', '.join(names())}.")
    return _SPECS[name]


def specs() -> tuple[MethodSpec, ...]:
    """Return the specs of all methods, by descending priority."""
    return tuple(sorted(_known().values(), key=lambda spec: -spec.priority))


def names() -> tuple[str, ...]:
    """Return the names of all methods, by descending priority."""
    return tuple(spec.name for spec in specs())


def default_names() -> tuple[str, ...]:
    """Return the names of the methods that can be the default (priority above 0), by descending priority."""
    return tuple(spec.name for spec in specs() if spec.priority > 0)


def default_method(options: MappingOptions, given: Iterable[str] = ()) -> str:
    """Return the name of the default method for these options.

    given: names of method-specific options that the user has set. Of the methods that support `options`, it is the
    first that has all of these. If none has, it is the last; `make_method_options` then reports the error.
    """
    supporting = [spec for spec in specs() if spec.priority > 0 and spec.supports(options)]
    fitting = [spec for spec in supporting if spec.option_names().issuperset(given)]
    return (fitting or supporting[-1:])[0].name


def all_options() -> dict[str, dict[str, Option]]:
    """Return the options of all methods, by name of the option and then by name of the method."""
    found: dict[str, dict[str, Option]] = {}
    for spec in specs():
        for option in options_of(spec.options):
            found.setdefault(option.name, {})[spec.name] = option
    return found


def make_method_options(method: str, given: Mapping[str, Any]) -> Any:
    """Return a method's options with the given values.

    Raises UserError if an option is unknown or of another method, or its value is not allowed.
    """
    spec, known = get(method), all_options()
    for name in given:
        if name not in known:
            raise UserError(f"No method has an option '{name}': there are {', '.join(known)}.")
        if name not in spec.option_names():
            owners = " or ".join(known[name])
            flag = next(iter(known[name].values())).flag
            raise UserError(f"{flag} is of method {owners}: leave it out, or map with --method {owners}.")
    return make_options(spec.options, given)


def make_mapper(method: str, options: MappingOptions, method_options: Any = None) -> Mapper:
    """Return a mapper of a method. Raises UserError if options are not allowed or its networks cannot be loaded.

    method_options: an instance of `MethodSpec.options`; None for its defaults.
    """
    spec = get(method)
    chosen = spec.options() if method_options is None else method_options
    if not isinstance(chosen, spec.options):
        raise TypeError(f"Method {method} takes {spec.options.__name__}, not {type(chosen).__name__}.")
    check_options(chosen)
    for option in options_of(spec.options):
        other = option.conflicts_with
        if other is not None and getattr(chosen, option.name) and getattr(options, other):
            raise UserError(f"{option.name} and {other} cannot be used together.")
    return spec.make_mapper(options, chosen)


def after_growth(scene_map: SceneMap, device: str = "auto", seed: int = 0) -> SceneMap:
    """Return a map whose keyframe database has changed with everything that depends on it."""
    check_growth(scene_map)
    complete = get(scene_map.method).after_growth
    assert complete is not None
    return complete(scene_map, device, seed)


def check_growth(scene_map: SceneMap) -> None:
    """Raise UserError unless maps of this method can grow."""
    if get(scene_map.method).after_growth is None:
        growing = " or ".join(spec.name for spec in specs() if spec.after_growth is not None)
        raise UserError(f"Maps of method '{scene_map.method}' cannot grow: map all recordings together with 'aceg map"
                        f" RECORDING RECORDING ...', or make the map with --method {growing}.")


def make_localizer(scene_map: SceneMap, device: str = "auto", seed: int = 0, method: str | None = None) -> Localizer:
    """Return a localizer for a map.

    method: another one than that which made the map, if it can read what the map has. Raises UserError if it cannot,
    the method is unknown, or its networks cannot be loaded.
    """
    return get(method or scene_map.method).make_localizer(scene_map, device, seed)


def _known() -> dict[str, MethodSpec]:
    if not _SPECS:
        for module in _BUILT_IN:
            spec = import_module(module).SPEC
            _SPECS[spec.name] = spec
        _register_installed()
    return _SPECS


def _register_installed() -> None:
    """Register the methods of other packages; one that fails is left out with a warning."""
    for entry_point in entry_points(group=ENTRY_POINTS):
        try:
            register(entry_point.load())
        except Exception as error:               # of any kind: this is code of another package
            warnings.warn(f"Method {entry_point.name} ({entry_point.value}) is left out: {error!r}", stacklevel=2)
