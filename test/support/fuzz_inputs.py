# SPDX-License-Identifier: Apache-2.0
"""Inputs that no honest program writes: strategies of hypothesis for messages, for bytes and for JSON."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from hypothesis import strategies as st

from aceg_ros.datasets.image_decoder import COLOUR_ENCODINGS, DEPTH_ENCODINGS

TOKENS = (b"nan", b"-inf", b"1e999", b"-1", b"0", b"9" * 400, b"9" * 5000, b"\0", b"\xff" * 8, b"\0" * 8, b"\n",
          b"\r\n", b" ", b"\xef\xbb\xbf", b"{", b"]", b'"', b"#", b"/", b"..", b"a" * 300, b"[" * 5000, b"\xc3",
          b"- &a *a\n")
WORST = (0, -1, 1, 2, 48, 64, 2**31 - 1, 2**32 - 1, 2**63, 10**400, 0.0, -0.0, 0.5, 1e308, -1e308, 5e-324, float("nan"),
         float("inf"), -float("inf"))
UINT32 = st.sampled_from([0, 1, 2, 7, 47, 48, 64, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1)
DOUBLES = st.floats() | st.sampled_from([float(number) for number in WORST if abs(number) < 2**70 or number != number])
NUMBERS = st.sampled_from(WORST) | st.integers() | st.floats()
WORDS = st.text(max_size=20) | st.sampled_from(["", "\0", "/", "..", "9" * 5000, "a" * 300, "nan", "[" * 10])
MODELS = st.sampled_from(["plumb_bob", "rational_polynomial", "equidistant", "fisheye", "", "pinhole"]) | WORDS
ENCODINGS = st.sampled_from([*COLOUR_ENCODINGS, *DEPTH_ENCODINGS, "RGB8", " mono8", "8UC2", "jpeg"]) | WORDS
FORMATS = st.sampled_from(["jpeg", "png", "", "rgb8; jpeg compressed bgr8", "mono16; png compressed ", "h264",
                           "bayer_rggb8; png compressed", "16UC1; compressedDepth png", "bgr8;tiff"]) | WORDS
HEADER = SimpleNamespace(stamp=SimpleNamespace(sec=1, nanosec=0), frame_id="cam")


@st.composite
def camera_infos(draw: st.DrawFn) -> SimpleNamespace:
    """A CameraInfo of an image of 64x48 pixels, with numbers of any kind in some of its fields."""
    good = [60.0, 0.0, 31.5, 0.0, 60.0, 23.5, 0.0, 0.0, 1.0]

    def one_in_two(honest: Any, strange: st.SearchStrategy[Any]) -> Any:
        return draw(strange) if draw(st.booleans()) else honest

    width, height = one_in_two((64, 48), st.tuples(UINT32, UINT32))
    x, y, columns, rows = one_in_two((0, 0, 0, 0), st.tuples(UINT32, UINT32, UINT32, UINT32))
    return SimpleNamespace(
        header=HEADER, width=width, height=height, distortion_model=one_in_two("plumb_bob", MODELS),
        k=one_in_two(good, st.lists(DOUBLES, min_size=9, max_size=9)),
        d=one_in_two([0.1, 0.0, 0.0, 0.0, 0.0], st.lists(DOUBLES, max_size=15)), r=[0.0] * 9,
        p=one_in_two([60.0, 0.0, 31.5, 0.0] * 3, st.lists(DOUBLES, min_size=12, max_size=12)),
        binning_x=one_in_two(0, UINT32), binning_y=one_in_two(0, UINT32),
        roi=SimpleNamespace(x_offset=x, y_offset=y, width=columns, height=rows, do_rectify=draw(st.booleans())))


@st.composite
def images(draw: st.DrawFn) -> SimpleNamespace:
    """An Image whose fields may contradict each other."""
    encoding = draw(ENCODINGS)
    small = st.integers(0, 9)
    width, height = draw(small | UINT32), draw(small | UINT32)
    step = draw(st.sampled_from([1, 2, 3, 4, 6, 8, 12]).map(lambda size: size * width) | UINT32) % 2**32
    length = draw(st.just(step * height) | st.just(step * height * 3 // 2) | st.integers(0, 2000))
    seed = draw(st.integers(0, 255))
    data = np.resize(np.random.default_rng(seed).integers(0, 256, 97, np.uint8), min(length, 10_000))
    return SimpleNamespace(header=HEADER, height=height, width=width, encoding=encoding, step=step,
                           is_bigendian=draw(st.integers(0, 255)), data=data)


def encoded_images() -> list[bytes]:
    """Small images in every format that a camera or a simulator may send."""
    rgb = np.random.default_rng(0).integers(0, 256, (12, 16, 3), np.uint8)
    found = [cv2.imencode(suffix, image)[1].tobytes() for suffix in (".jpg", ".png", ".bmp", ".webp", ".tiff")
             for image in (rgb, rgb[..., 0])]
    return [*found, cv2.imencode(".png", rgb.astype(np.uint16) * 257)[1].tobytes(), b"\0\0\0\1\x67\x42", b""]


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes of a file with a few changes: bits flipped, parts lost, doubled or exchanged."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(content)))
        length = draw(st.integers(1, 8) | st.integers(1, max(1, len(content) // 2)))
        change = draw(st.sampled_from(["flip", "cut", "drop", "insert", "replace", "repeat"]))
        if change == "flip" and at < len(content):
            content = content[:at] + bytes([content[at] ^ (1 << draw(st.integers(0, 7)))]) + content[at + 1:]
        elif change == "cut":
            content = content[:at]
        elif change == "drop":
            content = content[:at] + content[at + length:]
        elif change == "repeat":
            content = content[:at + length] + content[at:]
        else:
            token = draw(st.sampled_from(TOKENS) | st.binary(max_size=16))
            content = content[:at] + token + content[at + (len(token) if change == "replace" else 0):]
    return content


def json_values() -> st.SearchStrategy[Any]:
    return st.recursive(st.none() | st.booleans() | NUMBERS | WORDS,
                        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=3),
                        max_leaves=6)


@st.composite
def changed_json(draw: st.DrawFn, content: Any) -> Any:
    """What a JSON file holds, with a few values replaced, lost or doubled."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        parents = [parent for parent in _containers(content) if parent]
        if not parents:
            break
        parent = draw(st.sampled_from(range(len(parents))).map(parents.__getitem__))
        keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
        key = draw(st.sampled_from(keys))
        change = draw(st.sampled_from(["replace", "replace", "lose", "double"]))
        if change == "lose":
            del parent[key]
        elif change == "replace":
            parent[key] = draw(json_values())
        elif isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        else:
            parent[draw(WORDS)] = copy.deepcopy(parent[key])
    return content


def _containers(value: Any) -> list[Any]:
    """All lists and dictionaries in a value of JSON, itself included."""
    if not isinstance(value, list | dict):
        return []
    inner = value.values() if isinstance(value, dict) else value
    return [value, *(found for entry in inner for found in _containers(entry))]
