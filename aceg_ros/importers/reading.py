# SPDX-License-Identifier: Apache-2.0
"""Reads published weight files safely: only tensors and plain values are unpickled, no code is run."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from aceg_ros.errors import UserError


def read_state(path: Path) -> dict[str, Tensor]:
    """Return the state dict that a file holds. Raises UserError if it holds something else."""
    return plain_state(read_pickle(path), path)


def read_pickle(path: Path) -> object:
    """Return what torch.save wrote. Raises UserError on anything but tensors and plain values."""
    if not path.is_file():
        raise UserError(f"There is no file {path}.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, zipfile.BadZipFile, ValueError, OSError, struct.error):
        # Not torch's message, which advises unsafe loading.
        raise UserError(f"{path} is not a weight file of tensors as torch.save writes it, or is damaged.") from None


def plain_state(state: object, path: Path) -> dict[str, Tensor]:
    """Check that an object is a state dict of names and tensors, and return it. Raises UserError if it is not."""
    if not isinstance(state, dict) or not all(isinstance(key, str) and isinstance(value, Tensor)
                                              for key, value in state.items()):
        raise UserError(f"{path} does not hold a plain state dict (names and tensors).")
    return state


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its type if it has none."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
