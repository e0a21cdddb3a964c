"""All that a method is, and every method by its name.

A method is one `MethodSpec`. Command line flags, choices of ROS parameters, kinds of `aceg import`, benchmarks and help
texts are made from the registered ones; nothing else knows a method's name. `docs/adding_a_method.md` adds one.
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

_BUILT_IN = ("aceg_ros.methods.ace_g", "aceg_ros.methods.ace")          # each has a SPEC
ENTRY_POINTS = "aceg_ros.methods"            # the group by which installed packages offer methods: name = "module:SPEC"


@dataclass(frozen=True, kw_only=True)
class ImporterSpec:
    """One kind of `aceg import`: a published file that becomes one of ours.

    kind: its name on the command line. description: which file, for the help. inputs: names of the other files it
    needs, keys of `importers.registry.INPUTS`. function: "module:name" of what reads `source` and writes `target`,
    `(source: Path, target: Path, *, <input>: str | None, ...) -> str`; it returns a sentence that says what was written
    and raises UserError on a wrong or damaged file.
    """

    kind: str
    description: str
    function: str
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MethodSpec:
    """All that a method is.

    To keep `aceg --help` fast, the module of a spec loads torch and mapping code in its functions only.

    Attributes:
        name: what maps and users call it.
        summary: one phrase for the help.
        make_mapper: makes a mapper of the options of every method and of its own, an instance of `options`.
        make_localizer: makes a localizer of a map, a device ("auto", "cpu", "cuda") and a seed.
        options: dataclass of its own options, see `methods.options`.
        map_settings: dataclass of the settings that its maps carry, None if they carry none.
        importers: published files of it that can be imported.
        priority: if the user names no method, the one of highest priority is taken that supports the options;
            0: only by name.
        supports: whether it can work with these options of every method.
        untrained_map: makes a map with random weights of default size, to time localization by, for a device and an
            encoder; None if there is no such map.
    """

    name: str
    summary: str
    make_mapper: Callable[[MappingOptions, Any], Mapper]
    make_localizer: Callable[[SceneMap, str, int], Localizer]
    options: type[DataclassInstance] = NoOptions
    map_settings: type[DataclassInstance] | None = None
    importers: tuple[ImporterSpec, ...] = ()
    priority: int = 0
    supports: Callable[[MappingOptions], bool] = lambda options: True
    untrained_map: Callable[[str, str], SceneMap] | None = None

    def option_names(self) -> frozenset[str]:
        """Names of its own options."""
        return frozenset(option.name for option in options_of(self.options))


_SPECS: dict[str, MethodSpec] = {}


def register(spec: MethodSpec) -> None:
    """Make a method known in this process.

    Raises ValueError if its name is taken, or if one of its options is of another type with another method.
    """
    if spec.name in _known():
        raise ValueError(f"There is a method '{spec.name}' already.")
    for option in options_of(spec.options):
        if any(option.kind is not other.kind for other in all_options().get(option.name, {}).values()):
            raise ValueError(f"Option {option.name} of method {spec.name} has another type than the one there is.")
    _SPECS[spec.name] = spec


def unregister(name: str) -> None:
    """Forget a method that `register` made known."""
    _known().pop(name)


def get(name: str) -> MethodSpec:
    """Return a method. Raises UserError if this version does not have it."""
    if name not in _known():
        raise UserError(f"Unknown method '{name}': this version has {', '.join(names())}.")
    return _SPECS[name]


def specs() -> tuple[MethodSpec, ...]:
    """Return all methods, the one that is preferred first."""
    return tuple(sorted(_known().values(), key=lambda spec: -spec.priority))


def names() -> tuple[str, ...]:
    """Return the names of all methods, the one that is preferred first."""
    return tuple(spec.name for spec in specs())


def default_names() -> tuple[str, ...]:
    """Return the names of the methods that may be taken without being asked for, the one that is preferred first."""
    return tuple(spec.name for spec in specs() if spec.priority > 0)


def default_method(options: MappingOptions, given: Iterable[str] = ()) -> str:
    """Return the name of the method for these options.

    given: names of methods' own options that the user has chosen. Of the methods that support the options, the first is
    taken that has all of these; if none has, the last, which asks for least: `make_method_options` then says what is
    wrong.
    """
    supporting = [spec for spec in specs() if spec.priority > 0 and spec.supports(options)]
    fitting = [spec for spec in supporting if spec.option_names().issuperset(given)]
    return (fitting or supporting[-1:])[0].name


def all_options() -> dict[str, dict[str, Option]]:
    """Return the options of all methods: by name of the option, and then by name of each method that has it."""
    found: dict[str, dict[str, Option]] = {}
    for spec in specs():
        for option in options_of(spec.options):
            found.setdefault(option.name, {})[spec.name] = option
    return found


def make_method_options(method: str, given: Mapping[str, Any]) -> Any:
    """Return a method's options with the given values.

    Raises UserError if one is unknown, another method's or has a value that is not allowed.
    """
    spec, known = get(method), all_options()
    for name in given:
        if name not in known:
            raise UserError(f"No method has an option '{name}': there are {', '.join(known)}.")
        if name not in spec.option_names():
            if name not in known:
                raise UserError(f"No method has an option '{name}': there are {', '.join(sorted(known))}.")
            owners = " or ".join(known[name])
            flag = next(iter(known[name].values())).flag
            raise UserError(f"{flag} is of method {owners}: leave it out, or map with --method {owners}.")
    return make_options(spec.options, given)


def make_mapper(method: str, options: MappingOptions, method_options: Any = None) -> Mapper:
    """Return the mapper of a method. Raises UserError if options are not allowed or its networks are not there.

    method_options: an instance of the spec's `options`; None: the defaults.
    """
    spec = get(method)
    chosen = spec.options() if method_options is None else method_options
    if not isinstance(chosen, spec.options):
        raise TypeError(f"Method {method} takes {spec.options.__name__}, not {type(chosen).__name__}.")
    check_options(chosen)
    for option in options_of(spec.options):
        other = option.conflicts_with
        if other is not None and getattr(chosen, option.name) and getattr(options, other):
            raise UserError(f"{option.name} and {other} cannot be asked for together.")
    return spec.make_mapper(options, chosen)


def make_localizer(scene_map: SceneMap, device: str = "auto", seed: int = 0) -> Localizer:
    """Return the localizer of a map. Raises UserError if its method or networks are not there."""
    return get(scene_map.method).make_localizer(scene_map, device, seed)


def _known() -> dict[str, MethodSpec]:
    if not _SPECS:
        for module in _BUILT_IN:
            spec = import_module(module).SPEC
            _SPECS[spec.name] = spec
        _register_installed()
    return _SPECS


def _register_installed() -> None:
    """Register the methods of other packages. One that fails costs a warning, not the others."""
    for entry_point in entry_points(group=ENTRY_POINTS):
        try:
            register(entry_point.load())
        except Exception as error:               # of any kind: it is somebody else's code
            warnings.warn(f"Method {entry_point.name} ({entry_point.value}) is left out: {error!r}", stacklevel=2)
