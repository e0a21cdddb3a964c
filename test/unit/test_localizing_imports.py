# SPDX-License-Identifier: Apache-2.0
"""Localizing loads neither mapping nor training code: a robot that only localizes starts fast and stays small."""

import subprocess
import sys

import pytest

LOCALIZE = """
import sys
from aceg_ros.camera import Frame
from aceg_ros.datasets import load_image
from aceg_ros.maps.scene_map import SceneMap
from aceg_ros.methods.registry import make_localizer

scene_map = SceneMap.load(sys.argv[1])
image = load_image(sys.argv[2])
estimate = make_localizer(scene_map, "cpu").localize(Frame(image=image, camera=scene_map.cameras[0]))
print(estimate.status.value)
loaded = [name for name in sys.modules if name.startswith(("aceg_ros.mapping", "aceg_ros.pretraining"))]
sys.exit(" ".join(loaded) or None)
"""


@pytest.mark.slow
def test_localizing_loads_no_mapping_code(rendered_map, rendered_scene):
    image = min((rendered_scene / "mapping" / "rgb").iterdir())
    process = subprocess.run([sys.executable, "-c", LOCALIZE, str(rendered_map), str(image)], capture_output=True,
                             text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    assert process.stdout.strip() == "accepted"
