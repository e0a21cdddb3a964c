# SPDX-License-Identifier: Apache-2.0
"""The header of a map file: all but the tensors. Reading it loads neither these nor torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Protocol, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
from safetensors import SafetensorError, safe_open

from aceg_ros.camera import Camera, median_camera
from aceg_ros.errors import UserError
from aceg_ros.maps.migrate import upgrade_header
from aceg_ros.utils.atomic_file import without_nan

FORMAT_VERSION = 2
# The smallest scale, and that of maps that could not be calibrated. It is above 1 because poses of a later session,
# under other light and with objects moved, have larger errors than those of the mapping session. Chosen on such
# sessions in twelve rendered rooms (docs/benchmarks/2026-11-25-covariance.md).
MIN_COVARIANCE_SCALE = 1.25

Bounds = tuple[list[float], list[float]]
Settings = TypeVar("Settings")
Record = TypeVar("Record")

# What reading a header raises if another program wrote it.
_UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)


class IdentifiedNetwork(Protocol):
    """A network with its source and its identity."""

    @property
    def source(self) -> str: ...

    @property
    def identity(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class NetworkReference:
    """Refers to a network that a map was made with.

    source: name of a shipped network, or path of a file. identity: kind and content hash; the map can only be used with
    a network of this identity.
    """

    source: str
    identity: str

    @classmethod
    def from_network(cls, network: IdentifiedNetwork) -> NetworkReference:
        """Make a reference to a loaded network, such as an `Encoder`."""
        return cls(source=network.source, identity=network.identity)

    def check(self, network: IdentifiedNetwork, *, role: str, restore: str | None = None) -> None:
        """Raise UserError unless a loaded network is the one referred to. role, restore: what it is called in the
        sentence, and what the user may restore, if that has another name."""
        if network.identity != self.identity:
            raise UserError(f"The map was made with {role} {self.identity}, but '{network.source}' is now"
                            f" {network.identity}: map the scene again, or restore that {restore or role}.")


@dataclass(frozen=True, kw_only=True)
class MappingStatistics:
    """Statistics of a mapping run.

    frames: used for mapping. held_out: kept for calibration. skipped: unusable. encoded: images that went through the
    encoder, each augmented version counted. mapping_s, budget_s: wall-clock seconds. patches: landmarks found, or
    patches trained on. reprojection_px: median training error, NaN without training. complete: False if stopped early.
    """

    frames: int = 0
    skipped: int = 0
    encoded: int = 0
    mapping_s: float = 0.0
    budget_s: float = 0.0
    iterations: int = 0
    patches: int = 0
    reprojection_px: float = float("nan")
    seed: int = 0
    device: str = "cpu"
    complete: bool = True
    held_out: int = 0


@dataclass(frozen=True, kw_only=True)
class MapHeader:
    """Everything about a map but its tensors.

    method: name in the registry of methods. networks: by role ("encoder", "regressor", ...). settings: of the method,
    see `settings_as`. cameras: the distinct cameras of the mapping images. covariance_scale: factor for the covariances
    of the solver, calibrated for this map. created: ISO 8601. stored_bounds: bounds stored in the file, None before the
    map is saved.
    """

    method: str
    networks: dict[str, NetworkReference] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    statistics: MappingStatistics = MappingStatistics()
    cameras: tuple[Camera, ...] = ()
    covariance_scale: float = MIN_COVARIANCE_SCALE
    created: str = ""
    stored_bounds: Bounds | None = field(default=None, repr=False)

    def network(self, role: str) -> NetworkReference:
        """Return the network of a role. Raises UserError if the map has none."""
        if role not in self.networks:
            raise UserError(f"The map of method '{self.method}' names no {role}: map the scene again.")
        return self.networks[role]

    def camera_of_size(self, width: int, height: int) -> Camera:
        """Return the camera of the mapping images of this size; if each image has its own and they nearly agree, as
        COLMAP and phones make them, the one in the middle. Raises UserError unless there is such a camera."""
        fitting = [camera for camera in self.cameras if (camera.width, camera.height) == (width, height)]
        camera = median_camera(fitting)
        if camera is not None:
            return camera
        sizes = ", ".join(sorted({f"{camera.width}x{camera.height}" for camera in self.cameras})) or "none"
        found = f"{len(fitting)} cameras, which differ," if fitting else "no camera"
        raise UserError(f"The map knows {found} of {width}x{height} (its images: {sizes}): give the intrinsics with"
                        " --camera FILE (ROS camera_info YAML, JSON with width, height, fx, fy, cx, cy, or a 3x3 matrix"
                        " as text), or as a Camera in Python.")

    def settings_as(self, settings_type: type[Settings]) -> Settings:
        """Return the settings as the frozen dataclass of the method; fields that are not stored have their defaults.

        Raises UserError on unknown and missing keys and on values of the wrong type.
        """
        types, known = get_type_hints(settings_type), fields(settings_type)  # type: ignore[arg-type]
        names = {entry.name for entry in known}
        needed = {entry.name for entry in known if entry.default is MISSING and entry.default_factory is MISSING}
        problems = [f"unknown: {name}" for name in sorted(self.settings.keys() - names)]
        problems += [f"missing: {name}" for name in sorted(needed - self.settings.keys())]
        values = {}
        for name in names & self.settings.keys():
            try:
                values[name] = _converted(self.settings[name], types[name])
            except TypeError:
                problems.append(f"{name} = {self.settings[name]!r} is not of type {types[name]}")
        if problems:
            raise UserError(f"The map's settings do not fit method '{self.method}' of this version"
                            f" ({'; '.join(problems)}): use the release that made it or map the scene again.")
        return settings_type(**values)


@dataclass(frozen=True, kw_only=True)
class MapFile:
    """An open map file, which stays readable if another file replaces it. checksums: by section, of format 2 only.
    metadata: as stored in the file."""

    path: Path
    version: int
    header: MapHeader
    checksums: dict[str, str]
    metadata: dict[str, str]
    handle: Any = field(repr=False)                 # of safe_open, which cannot be used as a type

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of all tensors by their names in the file, without reading them."""
        return {key: tuple(self.handle.get_slice(key).get_shape()) for key in self.handle.keys()}


def open_map(path: Path | str, framework: str = "numpy") -> MapFile:
    """Open a map and read its header. framework: in which safetensors returns tensors ("numpy" or "pt").

    Raises UserError if the file is missing, damaged, not a map or of a newer format.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder, not a map file: 'aceg map' makes a map of a folder of images.")
    if not path.is_file():
        raise UserError(f"There is no map file {path}: make one with 'aceg map SCENE -o {path}'.")
    try:
        handle: Any = safe_open(str(path), framework=framework)
        metadata = handle.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"Map {path} is damaged or not a map ({error}): map the scene again or restore the file"
                        " from a backup.") from None
    if "aceg_ros" not in metadata:
        raise UserError(f"{path} is a safetensors file, but not a map of aceg_ros: give the file that 'aceg map'"
                        " or 'aceg import' wrote.")
    try:
        content = json.loads(metadata["aceg_ros"])
        version = content["version"]
        if version not in (1, FORMAT_VERSION):
            raise UserError(f"Map {path} has format version {version}, this aceg_ros reads versions 1 to"
                            f" {FORMAT_VERSION}: use the release that made it or map the scene again.")
        if version == 1:                            # its checksum is over everything: see migrate.sections_of_format_1
            content = upgrade_header(content)
        elif metadata.get("checksum") != hashlib.sha256(metadata["aceg_ros"].encode()).hexdigest():
            raise UserError(f"The header of map {path} is damaged (its checksum does not match): map the scene again or"
                            " restore the file from a backup.")
        header = _header_from_json(content)
    except _UNREADABLE as error:
        raise UserError(f"Map {path} has an unreadable header ({error!r}): map the scene again.") from None
    return MapFile(path=path, version=version, header=header, checksums=content["sections"], metadata=metadata,
                   handle=handle)


def header_metadata(header: MapHeader, checksums: Mapping[str, str]) -> dict[str, str]:
    """Return a map's metadata for its safetensors file: the header as JSON, and the checksum of this text."""
    content = {"version": FORMAT_VERSION, "method": header.method,
               "networks": {role: asdict(reference) for role, reference in header.networks.items()},
               "settings": header.settings, "statistics": without_nan(asdict(header.statistics)),
               "cameras": [asdict(camera) for camera in header.cameras], "bounds": header.stored_bounds,
               "covariance_scale": header.covariance_scale, "created": header.created, "sections": dict(checksums)}
    text = json.dumps(content, sort_keys=True, allow_nan=False)
    return {"aceg_ros": text, "checksum": hashlib.sha256(text.encode()).hexdigest()}


def _header_from_json(content: dict[str, Any]) -> MapHeader:
    """Raises one of _UNREADABLE unless everything is there, of its type and possible."""
    statistics = {name: math.nan if value is None else value for name, value in content["statistics"].items()}
    low, high = (list(_converted(corner, tuple[float, ...])) for corner in content["bounds"])
    scale = _converted(content["covariance_scale"], float)
    if len(low) != 3 or len(high) != 3 or not np.isfinite([*low, *high, scale]).all() or scale <= 0:
        raise ValueError(f"bounds {content['bounds']}, covariance scale {scale}")
    if not isinstance(content["settings"], dict) or not isinstance(content["sections"], dict):
        raise TypeError("settings or sections are no JSON objects")
    try:
        cameras = tuple(_record(Camera, camera) for camera in content["cameras"])
    except UserError as error:
        raise ValueError(str(error)) from None
    return MapHeader(method=_converted(content["method"], str), settings=content["settings"],
                     networks={role: _record(NetworkReference, entry) for role, entry in content["networks"].items()},
                     statistics=_record(MappingStatistics, statistics), cameras=cameras, stored_bounds=(low, high),
                     covariance_scale=scale, created=_converted(content["created"], str))


def _record(kind: type[Record], values: Mapping[str, Any]) -> Record:
    """Make a dataclass of JSON values. Raises KeyError or TypeError unless they are its fields and of their types."""
    types = get_type_hints(kind)
    return kind(**{name: _converted(value, types[name]) for name, value in values.items()})


def _converted(value: Any, wanted: Any) -> Any:
    """Convert a JSON value to a type: bool, int, float, str, tuple[X, ...] or a union of these. Raises TypeError."""
    if get_origin(wanted) is UnionType:
        for option in get_args(wanted):
            try:
                return _converted(value, option)
            except TypeError:
                continue
        raise TypeError
    if get_origin(wanted) is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError
        return tuple(_converted(entry, get_args(wanted)[0]) for entry in value)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not (NoneType if wanted is None else wanted):
        raise TypeError
    return value
