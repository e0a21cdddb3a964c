#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Generates and builds the interface packages bond and tf2_msgs, or those that are named, into the .venv, beside the
# ROS 2 wheels, so that they need no overlay and no search path of their own. About 30 s.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="$PWD/.venv"
python="$venv/bin/python"
[ $# -gt 0 ] || set -- bond tf2_msgs

# The wheels' cmake files name the include folders of the machine that built them: put this interpreter's there.
includes=$("$python" -c 'import sysconfig, numpy; print(sysconfig.get_path("include"), numpy.get_include(), sep=";")')
sed -i -E "s|(INTERFACE_INCLUDE_DIRECTORIES) \"/opt/python/[^\"]*\"|\1 \"$includes\"|" \
    "$venv"/share/*/cmake/export_*__rosidl_generator_pyExport.cmake

# A sourced ROS 2 or another venv must not leak into the build.
unset CMAKE_PREFIX_PATH PYTHONPATH
export PATH="$venv/bin:$PATH" AMENT_PREFIX_PATH="$venv" LD_LIBRARY_PATH="$venv/lib"

for package in "$@"; do
    build="$PWD/.build/$package"
    rm -rf "$build"
    mkdir -p "$build"
    log="$build/build.log"
    if ! { cmake -S "standalone/$package" -B "$build" -DCMAKE_PREFIX_PATH="$venv" -DCMAKE_INSTALL_PREFIX="$venv" \
                 -DPython3_EXECUTABLE="$python" -DBUILD_TESTING=OFF -DCMAKE_BUILD_TYPE=Release \
           && cmake --build "$build" --parallel "$(nproc)" && cmake --install "$build"; } > "$log" 2>&1; then
        tail -n 30 "$log" >&2
        echo "Building $package failed: the whole log is in $log." >&2
        exit 1
    fi
done
