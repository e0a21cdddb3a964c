"""How long an encoder takes for one picture, by how it is computed: precision, layout, threads, traced, compiled.

    python -m aceg_ros.benchmarks.encoder_speed -o DIR --encoder compact

All ways are timed in turns, so that their ratios bear a machine that is not equally fast at all times.
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


@dataclass(frozen=True)
class Way:
    """One way to compute a network. half: in the device's 16-bit type; form: eager, traced or compiled; threads: 0 for
    all."""

    half: bool = True
    channels_last: bool = True
    form: str = "eager"
    threads: int = 0

    @property
    def name(self) -> str:
        return ", ".join([self.form, "16 bits" if self.half else "fp32",
                          "channels last" if self.channels_last else "channels first",
                          f"{self.threads} thread" if self.threads else "all threads"])


WAYS = (Way(), Way(threads=1), Way(half=False), Way(half=False, threads=1), Way(channels_last=False),
        Way(half=False, channels_last=False), Way(form="traced"), Way(form="traced", half=False),
        Way(form="compiled"), Way(form="compiled", half=False))


class _Features(nn.Module):
    """What a tracer can follow: tensors in, tensors out."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features, reliability = self.net(images)
        return features, features if reliability is None else reliability


def prepared(net: nn.Module, way: Way, device: str) -> Callable[[], object]:
    """A function that computes the network for one picture in this way. Raises UserError where that cannot be done."""
    layout = torch.channels_last if way.channels_last else torch.contiguous_format
    images = torch.rand(1, 3, HEIGHT, WIDTH, device=device).to(memory_format=layout)
    # A copy: the layout of the weights is one of the ways.
    module: nn.Module = _Features(deepcopy(net)).eval().to(memory_format=layout)  # type: ignore[call-overload]
    precision = half_precision(device) if way.half else torch.autocast(device, enabled=False)
    try:
        with torch.inference_mode(way.form == "eager"), torch.no_grad(), precision, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if way.form == "traced":
                module = torch.jit.freeze(torch.jit.trace(module, images, check_trace=False))
            elif way.form == "compiled":
                module = torch.compile(module)  # type: ignore[assignment]
            for _ in range(4):
                module(images)
    except (RuntimeError, ImportError) as error:
        raise UserError(str(error).splitlines()[0]) from None

    def once() -> object:
        with torch.inference_mode(), precision:
            found = module(images)
            if device == "cuda":
                torch.cuda.synchronize()
            return found

    return once


def time_in_turns(ways: list[Way], functions: list[Callable[[], object]], repeats: int) -> np.ndarray:
    """Seconds (repeats, ways): every way once, then all of them again."""
    most = torch.get_num_threads()
    took = np.empty((repeats, len(ways)))
    for row in range(repeats):
        for column, (way, function) in enumerate(zip(ways, functions, strict=True)):
            torch.set_num_threads(way.threads or most)
            function()
            started = time.perf_counter()
            function()
            took[row, column] = time.perf_counter() - started
    torch.set_num_threads(most)
    return took


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
    ways, functions = [], []
    for way in WAYS:
        try:
            functions.append(prepared(net, way, device))
            ways.append(way)
        except UserError as error:
            print(f"{way.name}: {error}", file=sys.stderr)
    took = 1e3 * time_in_turns(ways, functions, options.repeats)
    lines = [f"| {options.encoder}, {WIDTH}x{HEIGHT}, {device} | ms p50 | ms p99 | of the first |", "|---|---|---|---|"]
    for column, way in enumerate(ways):
        p50, p99 = np.percentile(took[:, column], (50, 99))
        lines.append(f"| {way.name} | {p50:.1f} | {p99:.1f} | {np.median(took[:, column] / took[:, 0]):.2f} |")
    options.output.mkdir(parents=True, exist_ok=True)
    write_text(options.output / "encoder_speed.md", "\n".join(lines) + "\n")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
