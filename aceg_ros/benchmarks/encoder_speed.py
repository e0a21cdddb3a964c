# SPDX-License-Identifier: Apache-2.0
"""Measures the time of an encoder per image, for several precisions, memory layouts, thread counts and kinds of graph.

    python -m aceg_ros.benchmarks.encoder_speed -o DIR --encoder compact

All settings are timed alternately, so that their ratios are valid even if the speed of the machine varies.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from aceg_ros.encoders.base import load_encoder
from aceg_ros.errors import UserError
from aceg_ros.utils.atomic_file import write_text
from aceg_ros.utils.device import half_precision, pick_device
from aceg_ros.utils.malloc import configure_malloc

WIDTH, HEIGHT = 640, 480


@dataclass(frozen=True, kw_only=True)
class SpeedSetting:
    """A way to run a network. half: in 16 bits. form: eager, traced or compiled. threads: number, 0 for all."""

    half: bool = True
    channels_last: bool = True
    form: str = "eager"
    threads: int = 0

    @property
    def name(self) -> str:
        return ", ".join([self.form, "16 bits" if self.half else "fp32",
                          "channels last" if self.channels_last else "channels first",
                          f"{self.threads} thread" if self.threads else "all threads"])


SETTINGS = (SpeedSetting(), SpeedSetting(threads=1), SpeedSetting(half=False), SpeedSetting(half=False, threads=1),
            SpeedSetting(channels_last=False), SpeedSetting(half=False, channels_last=False),
            SpeedSetting(form="traced"), SpeedSetting(form="traced", half=False), SpeedSetting(form="compiled"),
            SpeedSetting(form="compiled", half=False))


class _Features(nn.Module):
    """Wraps a network for the tracer, which does not support None: without reliability, returns the features twice."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, reliability, _ = self.net(images)
        return features, features if reliability is None else reliability


def prepare(net: nn.Module, setting: SpeedSetting, device: str) -> Callable[[], object]:
    """Return a function that runs the network on one image. Raises UserError if the setting is not supported here."""
    layout = torch.channels_last if setting.channels_last else torch.contiguous_format
    images = torch.rand(1, 3, HEIGHT, WIDTH, device=device).to(memory_format=layout)
    # A copy: the layout of the weights is part of the setting.
    module: nn.Module = _Features(deepcopy(net)).eval().to(memory_format=layout)  # type: ignore[call-overload]
    precision = half_precision(device) if setting.half else torch.autocast(device, enabled=False)
    try:
        with torch.inference_mode(setting.form == "eager"), torch.no_grad(), precision, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if setting.form == "traced":
                module = torch.jit.freeze(torch.jit.trace(module, images, check_trace=False))
            elif setting.form == "compiled":
                module = torch.compile(module)  # type: ignore[assignment]
            for _ in range(4):
                module(images)
    except (RuntimeError, ImportError) as error:
        raise UserError(str(error).splitlines()[0]) from None

    def once() -> object:
        with torch.inference_mode(), precision:
            output = module(images)
            if device == "cuda":
                torch.cuda.synchronize()
            return output

    return once


def time_alternately(settings: list[SpeedSetting], functions: list[Callable[[], object]], repeats: int) -> np.ndarray:
    """Time all settings in turn, `repeats` times. Returns seconds (repeats, settings)."""
    all_threads = torch.get_num_threads()
    seconds = np.empty((repeats, len(settings)))
    for row in range(repeats):
        for column, (setting, function) in enumerate(zip(settings, functions, strict=True)):
            torch.set_num_threads(setting.threads or all_threads)
            function()
            started = time.perf_counter()
            function()
            seconds[row, column] = time.perf_counter() - started
    torch.set_num_threads(all_threads)
    return seconds


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for encoder_speed.md")
    parser.add_argument("--encoder", default="compact")
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(arguments)
    configure_malloc()
    device = pick_device(options.device)
    net = load_encoder(options.encoder, device).net
    settings, functions = [], []
    for setting in SETTINGS:
        try:
            functions.append(prepare(net, setting, device))
            settings.append(setting)
        except UserError as error:
            print(f"{setting.name}: {error}", file=sys.stderr)
    milliseconds = 1e3 * time_alternately(settings, functions, options.repeats)
    lines = [f"| {options.encoder}, {WIDTH}x{HEIGHT}, {device} | ms p50 | ms p99 | ratio to the first |",
             "|---|---|---|---|"]
    ratios = np.median(milliseconds / milliseconds[:, :1], axis=0)
    for setting, times, ratio in zip(settings, milliseconds.T, ratios, strict=True):
        p50, p99 = np.percentile(times, (50, 99))
        lines.append(f"| {setting.name} | {p50:.1f} | {p99:.1f} | {ratio:.2f} |")
    options.output.mkdir(parents=True, exist_ok=True)
    write_text(options.output / "encoder_speed.md", "\n".join(lines) + "\n")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
