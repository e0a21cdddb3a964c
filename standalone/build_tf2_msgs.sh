#!/bin/bash
# Generates and builds tf2_msgs into the .venv, beside the ROS 2 wheels, so that it needs no overlay and no search path
# of its own. About 20 s.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="$PWD/.venv"
build="$PWD/.build/tf2_msgs"
python="$venv/bin/python"

# The wheels' cmake files name the include folders of the machine that built them: put this interpreter's there.
includes=$("$python" -c 'import sysconfig, numpy; print(sysconfig.get_path("include"), numpy.get_include(), sep=";")')
sed -i -E "s|(INTERFACE_INCLUDE_DIRECTORIES) \"/opt/python/[^\"]*\"|\1 \"$includes\"|" \
    "$venv"/share/*/cmake/export_*__rosidl_generator_pyExport.cmake

# A sourced ROS 2 or another venv must not leak into the build.
unset CMAKE_PREFIX_PATH PYTHONPATH
export PATH="$venv/bin:$PATH" AMENT_PREFIX_PATH="$venv" LD_LIBRARY_PATH="$venv/lib"

rm -rf "$build"
mkdir -p "$build"
log="$build/build.log"
if ! { cmake -S standalone/tf2_msgs -B "$build" -DCMAKE_PREFIX_PATH="$venv" -DCMAKE_INSTALL_PREFIX="$venv" \
             -DPython3_EXECUTABLE="$python" -DBUILD_TESTING=OFF -DCMAKE_BUILD_TYPE=Release \
       && cmake --build "$build" --parallel "$(nproc)" && cmake --install "$build"; } > "$log" 2>&1; then
    tail -n 30 "$log" >&2
    echo "Building tf2_msgs failed: the whole log is in $log." >&2
    exit 1
fi
