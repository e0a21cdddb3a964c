# SPDX-License-Identifier: Apache-2.0
"""Bookkeeping of CUDA graphs, with pretended ones: what is captured, and that results are the caller's own."""

from dataclasses import replace

import torch

from aceg_ros.encoders.base import load_encoder
from aceg_ros.encoders.cuda_graphs import MAX_SIZES, CapturedRun, CudaGraphs


def recorded(captured):
    """A capture that computes again into the same tensors when it is replayed."""
    def capture(extract, images):
        kept, output = images.clone(), extract(images)

        def replay():
            for old, new in zip(output, extract(kept), strict=True):
                if old is not None:
                    old.copy_(new)

        captured.append(tuple(images.shape))
        return CapturedRun(images=kept, output=output, replay=replay)
    return capture


def test_each_size_is_captured_once_and_gives_what_the_network_computes():
    captured = []
    encoder = load_encoder("compact2")
    graphed = replace(encoder, graphs=CudaGraphs(recorded(captured)))
    images = [torch.rand(1, 3, 64, 96), torch.rand(1, 3, 64, 96), torch.rand(1, 3, 96, 64)]
    found = [graphed.detect(image) for image in images]
    for image, one in zip(images, found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, encoder.detect(image), strict=True))
    assert captured == [(1, 3, 64, 96), (1, 3, 96, 64)]
    assert torch.equal(graphed.extract(images[0]).features, encoder.extract(images[0]).features)
    assert len(captured) == 3, "features at the centres of cells are another graph"
    graphed.detect(torch.rand(2, 3, 64, 96))
    assert len(captured) == 3, "batches are computed without"


def test_images_of_many_sizes_are_computed_without_graphs():
    captured = []
    graphed = replace(load_encoder("compact"), graphs=CudaGraphs(recorded(captured)))
    for step in range(MAX_SIZES + 3):
        assert graphed.detect(torch.rand(1, 3, 64, 64 + 8 * step)).features.shape[3] == 8 + step
    assert len(captured) == MAX_SIZES


def test_where_capturing_fails_images_are_computed_without_graphs_and_the_user_is_told_once(caplog):
    tried = []

    def fail(extract, images):
        tried.append(images.shape)
        raise RuntimeError("operation not permitted when stream is capturing")

    encoder = load_encoder("compact2")
    graphed = replace(encoder, graphs=CudaGraphs(fail))
    image = torch.rand(1, 3, 64, 96)
    for _ in range(2):
        assert torch.equal(graphed.detect(image).features, encoder.detect(image).features)
    assert len(tried) == 1
    assert [record.message for record in caplog.records] == [
        "no CUDA graph of the encoder, which makes it slower: operation not permitted when stream is capturing"]
