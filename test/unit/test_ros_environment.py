# SPDX-License-Identifier: Apache-2.0
"""The transport profile that nodes get unless the user has chosen one."""

import pytest

from aceg_ros.utils.ros_environment import ros_environment


@pytest.fixture
def nothing_chosen(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"):
        monkeypatch.delenv(name, raising=False)


def test_a_node_gets_the_packages_profile(nothing_chosen, repository):
    assert ros_environment() == {
        "FASTDDS_DEFAULT_PROFILES_FILE": str(repository / "config" / "fastdds_profile.xml")}


@pytest.mark.parametrize("name", ["FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE"])
def test_a_profile_in_the_environment_wins(nothing_chosen, monkeypatch, name):
    monkeypatch.setenv(name, "/my/profile.xml")
    assert ros_environment() == {}


def test_a_profile_that_fast_dds_finds_by_itself_wins(nothing_chosen, tmp_path):
    (tmp_path / "DEFAULT_FASTDDS_PROFILES.xml").write_text("<dds/>")
    assert ros_environment() == {}
