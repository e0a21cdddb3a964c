# SPDX-License-Identifier: Apache-2.0
"""Files of the marepo release: the pose transformer. And its maps, made from maps with scene coordinates."""

from __future__ import annotations

from pathlib import Path

from aceg_ros.errors import UserError
from aceg_ros.importers.reading import first_line, plain_state, read_pickle
from aceg_ros.maps.scene_map import SceneMap, check_writable
from aceg_ros.methods.marepo import SPEC, as_marepo_map
from aceg_ros.networks.pose_regressor import load_pose_regressor, save_pose_regressor
from aceg_ros.networks.pose_transformer import transformer_from_release

PREFIXES = ("module.", "transformer_head.")        # of keys, in files that hold more than the transformer


def import_regressor(source: Path, target: Path) -> str:
    """Import the pose transformer: its state dict, or one of the whole system that contains it."""
    content = read_pickle(source)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    state = plain_state(content, source)
    for prefix in PREFIXES:
        inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        state = inner or state
    try:
        net = transformer_from_release(state)
    except (KeyError, RuntimeError, ValueError, IndexError) as error:
        raise UserError(f"{source} is not a pose transformer of the marepo release ({first_line(error)}).") from None
    check_writable(target)
    save_pose_regressor(net, target, half=False)
    size = net.config
    return (f"{target}: marepo pose transformer, {size.layers} layers of {size.width}, rotation {size.rotation}; use it"
            f" with 'aceg map SCENE --method {SPEC.name} --regressor {target} --encoder ENCODER -o MAP', or with a map"
            " that there is: 'aceg import marepo-map'.")


def import_map(source: Path, target: Path, *, regressor: str | None) -> str:
    """Make a map of this method from one with scene coordinates. regressor: the pose transformer; None for the shipped
    one."""
    loaded = load_pose_regressor(regressor) if regressor is not None else None
    found = as_marepo_map(SceneMap.load(source), loaded)
    check_writable(target)
    size = found.save(target)
    return f"{target}: marepo map, {size / 1e6:.1f} MB, with the scene coordinates of {source}."
