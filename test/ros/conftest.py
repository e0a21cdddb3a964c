# SPDX-License-Identifier: Apache-2.0
"""What the tests of the localizer node share: a map of the fake localizer, and the node around it."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def map_file(tmp_path) -> Path:
    from node_bench import write_map

    return write_map(tmp_path / "fake.map")


@pytest.fixture
def start_bench(graph):
    """start_bench(*remappings, wait=True, **parameters): a bench and the process of the node around the fake localizer.

    Waits until the node listens, or with wait=False until it has said anything.
    """
    from node_bench import FAKE_NODE, Bench
    from ros_graph import output

    def start(*remappings: str, wait: bool = True, **parameters):
        process = graph.start(FAKE_NODE, *remappings, **parameters)
        bench = Bench(graph)
        assert graph.spin_until(lambda: (bench.connected() if wait else bool(bench.node_statuses))
                                or process.poll() is not None) and process.poll() is None, output(process)
        return bench, process

    return start
