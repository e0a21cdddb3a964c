"""`SceneMap`: all that a mapping run leaves behind, in one safetensors file.

The header (a JSON text under "aceg_ros" in the file's metadata) names format version, method, encoder, cameras, bounds
and the figures of the run, and carries a checksum over everything. Never pickle.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from aceg_ros.camera import Camera
from aceg_ros.errors import UserError
from aceg_ros.utils.atomic_file import write_bytes

FORMAT_VERSION = 1
MAX_CLOUD_POINTS = 50_000


@dataclass(frozen=True)
class MappingFigures:
    """What the mapping run did.

    frames: taken; held_out: kept for calibration; skipped: unusable ones; encoded: pictures that went through the
    encoder, augmented ones each time; mapping_s: wall-clock; reprojection_px: median training error (NaN if imported).
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


@dataclass(frozen=True)
class SceneMap:
    """A map of one place.

    method: name in the registry. encoder: identity of the only encoder it works with; encoder_source: where that was
    found at mapping time. tensors: the method's own. settings: the method's own numbers. cameras: the distinct ones of
    the mapping pictures. cloud_xyz (N, 3) float32 metres, cloud_rgb (N, 3) uint8.
    trajectory (F, 4, 4) float32: map_from_camera of the mapping frames.
    """

    method: str
    encoder: str
    encoder_source: str
    tensors: dict[str, Tensor] = field(repr=False)
    settings: dict[str, Any] = field(default_factory=dict)
    figures: MappingFigures = MappingFigures()
    cameras: tuple[Camera, ...] = ()
    cloud_xyz: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.float32), repr=False)
    cloud_rgb: np.ndarray = field(default_factory=lambda: np.zeros((0, 3), np.uint8), repr=False)
    trajectory: np.ndarray = field(default_factory=lambda: np.zeros((0, 4, 4), np.float32), repr=False)
    created: str = ""

    @property
    def bounds(self) -> tuple[list[float], list[float]]:
        """Lower and upper corner (x, y, z) of trajectory and cloud, without the outermost 1 % of the points."""
        points = np.concatenate([self.trajectory[:, :3, 3], self.cloud_xyz]) if len(self.cloud_xyz) else \
            self.trajectory[:, :3, 3]
        if len(points) == 0:
            return [0.0] * 3, [0.0] * 3
        low, high = np.percentile(points, 1, axis=0), np.percentile(points, 99, axis=0)
        return low.tolist(), high.tolist()

    def save(self, path: Path | str) -> int:
        """Write the map; an existing file is replaced only by a complete one. Returns its size in bytes.

        Raises UserError where the place cannot be written.
        """
        path = Path(path)
        tensors = {f"method.{key}": value.detach().cpu().contiguous() for key, value in self.tensors.items()}
        tensors["cloud.xyz"] = torch.from_numpy(np.ascontiguousarray(self.cloud_xyz, np.float32))
        tensors["cloud.rgb"] = torch.from_numpy(np.ascontiguousarray(self.cloud_rgb, np.uint8))
        tensors["trajectory"] = torch.from_numpy(np.ascontiguousarray(self.trajectory, np.float32))
        header = {"version": FORMAT_VERSION, "method": self.method, "encoder": self.encoder,
                  "encoder_source": self.encoder_source, "settings": self.settings, "figures": asdict(self.figures),
                  "cameras": [asdict(camera) for camera in self.cameras], "bounds": self.bounds,
                  "created": self.created or datetime.now(timezone.utc).isoformat(timespec="seconds")}
        text = json.dumps(header, sort_keys=True)
        content = save(tensors, {"aceg_ros": text, "checksum": _checksum(text, tensors)})
        try:
            write_bytes(path, content)
        except OSError as error:
            raise UserError(f"The map cannot be written to {path}: {error.strerror or error}.") from None
        return len(content)

    @classmethod
    def load(cls, path: Path | str) -> SceneMap:
        """Read and verify a map. Raises UserError on a missing, damaged, foreign or newer file."""
        path = Path(path)
        if not path.is_file():
            raise UserError(f"There is no map file {path}: make one with 'aceg map SCENE -o {path}'.")
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"Map {path} is damaged or not a map ({error}): map the place again or restore the file"
                            " from a backup.") from None
        if "aceg_ros" not in metadata:
            raise UserError(f"{path} is a safetensors file, but not a map of aceg_ros: give the file that 'aceg map'"
                            " or 'aceg import' wrote.")
        text = metadata["aceg_ros"]
        try:
            header = json.loads(text)
            version = header["version"]
            if version != FORMAT_VERSION:
                raise UserError(f"Map {path} has format version {version}, this aceg_ros reads version"
                                f" {FORMAT_VERSION}: use the release that made it or map the place again.")
            if metadata.get("checksum") != _checksum(text, tensors):
                raise UserError(f"Map {path} is damaged (its checksum does not match): map the place again or restore"
                                " the file from a backup.")
            return cls(header["method"], header["encoder"], header["encoder_source"],
                       {key.removeprefix("method."): value for key, value in tensors.items()
                        if key.startswith("method.")},
                       header["settings"], MappingFigures(**header["figures"]),
                       tuple(Camera(**camera) for camera in header["cameras"]), tensors["cloud.xyz"].numpy(),
                       tensors["cloud.rgb"].numpy(), tensors["trajectory"].numpy(), header["created"])
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise UserError(f"Map {path} has an unreadable header ({error!r}): map the place again.") from None


def check_writable(path: Path | str) -> None:
    """Raise UserError where a file cannot be written: before the work, not after it."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tempfile.NamedTemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}.") from None
    if path.is_dir():
        raise UserError(f"{path} is a folder: give a file name, such as {path / 'place.map'}.")


def _checksum(text: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for key in sorted(tensors):
        digest.update(f"{key} {tensors[key].dtype} {tuple(tensors[key].shape)}".encode())
        digest.update(tensors[key].numpy().tobytes())
    return digest.hexdigest()
