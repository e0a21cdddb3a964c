#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Creates .venv, after a look at whether all is there that the set-up needs; says, or as root installs, what is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-python3}"

if ! command -v "$python" > /dev/null; then
    echo "There is no '$python': run 'sudo apt install python3', or name one, as in 'make setup PYTHON=python3.12'." >&2
    exit 1
fi
if ! "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))'; then
    echo "aceg_ros needs Python 3.10 to 3.13, not $("$python" -V 2>&1): name one, as in 'make setup PYTHON=python3.12'." >&2
    exit 1
fi

missing=()
"$python" -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
[ -e "$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] || missing+=(python3-dev)
for tool in gcc g++ cmake git; do
    command -v "$tool" > /dev/null || missing+=("$tool")
done

if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" -eq 0 ] && command -v apt-get > /dev/null; then
        echo "Installing ${missing[*]} ..."
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}" > /dev/null
    else
        echo "Missing for the set-up: run 'sudo apt install ${missing[*]}' and try again." >&2
        exit 1
    fi
fi

[ -x .venv/bin/python ] || "$python" -m venv .venv
