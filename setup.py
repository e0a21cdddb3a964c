from glob import glob

from setuptools import find_packages, setup

package_name = "aceg_ros"

setup(
    name=package_name,
    version="0.1.0",
    packages=find_packages(include=[package_name, f"{package_name}.*"]),
    package_data={package_name: ["weights/*.safetensors", "weights/*.md", "evaluation/*.html"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{package_name}"]),
        (f"share/{package_name}", ["package.xml"]),
        (f"share/{package_name}/launch", sorted(glob("launch/*.launch.py"))),
        (f"share/{package_name}/config", sorted(glob("config/*"))),
        (f"share/{package_name}/rviz", sorted(glob("rviz/*.rviz"))),
    ],
    install_requires=["setuptools"],
    zip_safe=True,
    maintainer="aceg_ros developers",
    maintainer_email="team@aceg-ros.org",
    description="Visual localization by scene coordinate regression: maps a place from posed images, then answers "
                "where a new image was taken.",
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
