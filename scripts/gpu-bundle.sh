#!/usr/bin/env bash
# An archive to take to a machine with an NVIDIA GPU that has no Rust, no network and no packages: `pirl` with
# CUDA and cuDNN, the tests that need a GPU, a few images, the PyTorch peer, and run.sh, which runs everything
# and writes a report in eight minutes.
#
#   scripts/gpu-bundle.sh [ARCHIVE]             (default: target/pirl-gpu.tar.xz)
#
#   tar xf pirl-gpu.tar.xz && pirl-gpu/run.sh   (there)
#
# It is built on a machine without a GPU, by NVIDIA's compiler from PyPI and without NVIDIA's libraries, which
# are looked for when the program needs one (scripts/gpu/stubs.py): the same program runs on a CPU. Candle's
# kernels are PTX for compute capability 8.0, which the driver compiles for the card there is; ours are
# compiled by NVRTC there. Needs Rust, a C and C++ compiler, python3 with pip or venv, and xz.
set -euo pipefail
cd "$(dirname "$0")/.."
archive=${1:-target/pirl-gpu.tar.xz}
. scripts/cuda-env.sh

limit=$((60 << 20))
features=cuda,cudnn,nccl
build=(cargo build --release --locked -p pirl-cli -p pirl-train -p pirl-model --bin pirl --test gpu --features "$features")
step "${build[@]}"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bundle=$work/pirl-gpu
mkdir -p "$bundle/tests" "$bundle/data" "$bundle/benches/peers"

# Every executable, under its package's name.
"${build[@]}" --message-format json 2>/dev/null | python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    kind = message.get("target", {}).get("kind")
    if message.get("executable") and kind in (["bin"], ["test"]):
        package = message["manifest_path"].split("/")[-2]
        print(message["executable"], "pirl" if kind == ["bin"] else "tests/" + package)
' | while read -r built name; do install -m 755 "$built" "$bundle/$name"; done
strip "$bundle/pirl" "$bundle"/tests/*

# 10,000 images of 28 x 28.
"$bundle/pirl" data fetch fashion-mnist --output "$work/fashion-mnist" >&2
"$bundle/pirl" data pack --format mnist --input "$work/fashion-mnist" --split test --output "$bundle/data/images" >&2

install -m 755 scripts/gpu/run.sh "$bundle/run.sh"
cp benches/formula.py "$bundle/benches"
cp benches/peers/{pirl_torch.py,gpu_torch.py,cases.json} "$bundle/benches/peers"
git log -1 --format='%H %cI' >"$bundle/COMMIT"

mkdir -p "$(dirname "$archive")"
tar --sort=name --owner=0 --group=0 --numeric-owner -C "$work" -cf - pirl-gpu | xz -T0 -6 >"$archive"
size=$(stat -c %s "$archive")
printf '\n== %s: %d MiB\n' "$archive" $((size >> 20)) >&2
[ "$size" -le "$limit" ] || { echo "error: $archive has $size bytes, more than $limit" >&2; exit 1; }
