# SPDX-License-Identifier: Apache-2.0
import re
from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

package_name = "aceg_ros"
# Read, not imported: building needs nothing of what the package needs.
version, = re.findall(r'^__version__ = "(.+)"$', Path(package_name, "__init__.py").read_text(), re.MULTILINE)

# Extras: what some users want and nobody needs.
viewer = ["rerun-sdk"]
dinov2 = ["transformers"]
colmap = ["pycolmap==4.2.1"]            # for aceg reconstruct, and the benchmark against structure from motion alone
dev = ["hypothesis", "import-linter", "mypy", "nbmake", "pytest<8.4", "pytest-timeout", "pytest-xdist", "ruff"]

setup(
    name=package_name,
    version=version,
    packages=find_packages(include=[package_name, f"{package_name}.*"]),
    package_data={package_name: ["py.typed", "weights/*.safetensors", "weights/*.md", "evaluation/*.html"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{package_name}"]),
        (f"share/{package_name}", ["package.xml"]),
        (f"share/{package_name}/launch", sorted(glob("launch/*.launch.py"))),
        (f"share/{package_name}/config", sorted(glob("config/*"))),
        (f"share/{package_name}/rviz", sorted(glob("rviz/*.rviz"))),
    ],
    # What the core imports. ROS 2 stays outside: it is not on the Python package index, package.xml names it.
    install_requires=[
        "matplotlib", "numba", "numpy", "opencv-python-headless", "pillow", "poselib>=2.0.5", "pyyaml", "rosbags",
        "safetensors>=0.4.3", "scipy", "setuptools", "torch>=2.4", "tqdm",
    ],
    extras_require={"rerun": viewer, "dinov2": dinov2, "colmap": colmap, "ray": ["ray"], "dev": dev,
                    "all": viewer + dinov2 + colmap + dev},
    zip_safe=False,
    maintainer="aceg_ros developers",
    maintainer_email="team@aceg-ros.org",
    description="Visual localization: maps a scene from posed images; then a single image gives the pose of the camera "
                "with its covariance, or a reason why there is none.",
    license="Apache-2.0",
    python_requires=">=3.10",
    entry_points={
        "console_scripts": [
            "aceg = aceg_ros.cli:main",
            "bag_recorder = aceg_ros.ros.bag_recorder:main",
            "evaluation_node = aceg_ros.ros.evaluation_node:main",
            "localizer_node = aceg_ros.ros.localizer_node:main",
            "scene_player = aceg_ros.ros.scene_player:main",
            "sim_camera = aceg_ros.ros.sim_camera:main",
        ],
    },
)
