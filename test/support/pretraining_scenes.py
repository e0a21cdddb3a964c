"""Small scenes and options for the pre-trainings of ace_g, shared by tests and by what torchrun starts."""

from pathlib import Path

import numpy as np
import torch

from aceg_ros.networks.map_code_transformer import TransformerHeadConfig
from aceg_ros.pretraining.ace_g.code_steps import MapCodeTraining
from aceg_ros.pretraining.ace_g.scenes import SceneSplit, TrainingScene, TrainingSceneData

SMALL_HEAD = TransformerHeadConfig(dim_in=128, num_blocks=2, num_attention_heads=2, dim_emb=32, mlp_ratio=1.0,
                                   final_mlp_ratio=1.0, unit_features=True)


def made_up_scene(seed: int) -> TrainingScene:
    """Landmarks whose features tell their positions, and one image of patches at some of them."""
    rng = np.random.default_rng(seed)
    points = rng.uniform((-2, -2, 3), (2, 2, 6), (900, 3))
    features = np.sin(points @ np.random.default_rng(1).normal(0, 2, (3, 128)))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    seen = rng.permutation(900)[:300]
    pixels = points[seen, :2] / points[seen, 2:] * 300 + (240, 180)
    inside = (pixels > 0).all(1) & (pixels < (480, 360)).all(1)
    seen, pixels = seen[inside], pixels[inside]
    arrays = {"keys": features.astype(np.float16), "points": points.astype(np.float32),
              "source": rng.integers(0, 9, 900), "features": features[seen].astype(np.float16),
              "pixels": pixels.astype(np.float32), "image_index": np.zeros(len(seen), np.int64),
              "depth": points[seen, 2].astype(np.float32), "camera_from_map": np.eye(4, dtype=np.float32)[None, :3],
              "intrinsics": np.array([[300.0, 300.0, 240.0, 180.0]], np.float32)}
    return TrainingScene(**{name: torch.from_numpy(array) for name, array in arrays.items()})


def made_up_split(training: int = 2, held_out: int = 1) -> SceneSplit:
    scenes = [made_up_scene(seed) for seed in range(training + held_out)]
    return SceneSplit(training=scenes[:training], held_out=scenes[training:])


def map_code_options(run: Path, **changes) -> MapCodeTraining:
    return MapCodeTraining(run=run, data=TrainingSceneData(), **{
        "iterations": 60, "size": SMALL_HEAD, "codes": 16, "active": 3, "lifetime": 15, "batch": 64,
        "checkpoint_every": 30} | changes)


class InterruptedAt:
    """A should_stop that is interrupted, as by Ctrl-C, when it is asked for the nth time."""

    def __init__(self, question: int):
        self._left = question

    def __call__(self) -> bool:
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt
        return False


class StopAt:
    """A should_stop that says so when it is asked for the nth time."""

    def __init__(self, question: int):
        self._left = question

    def __call__(self) -> bool:
        self._left -= 1
        return self._left <= 0
