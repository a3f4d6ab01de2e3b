#!/usr/bin/env bash
# Type-checks and lints everything with the CUDA features, and compiles every kernel, on a machine
# without a GPU and without NVIDIA's toolkit. Nothing is run on a GPU. The first time takes long,
# nearly all of it for Candle's own kernels.
#
#   scripts/check-cuda.sh
#
# The compiler comes from NVIDIA's wheels on PyPI and goes to target/cuda; it needs python3 with pip
# or venv, and a C++ compiler. Cargo builds in target/cuda-check, so other builds stay as they are.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD/target/cuda
export CUDA_HOME=$root/nvidia/cu13
version=13.0

step() { printf '\n== %s\n' "$*" >&2; "$@"; }

if [ ! -e "$root/complete-$version" ]; then
  wheels=()
  for part in nvcc crt runtime cccl; do wheels+=("nvidia-cuda-$part==$version.*"); done
  wheels+=("nvidia-nvvm==$version.*")
  python=python3
  if ! python3 -m pip --version >/dev/null 2>&1; then
    step python3 -m venv target/cuda-python
    python=target/cuda-python/bin/python
  fi
  rm -rf "$root"
  step "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target "$root" "${wheels[@]}"
  touch "$root/complete-$version"
fi

# What Candle's kernels and cudarc ask for.
export PATH=$CUDA_HOME/bin:$PATH NVCC=$CUDA_HOME/bin/nvcc CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80}
export CARGO_TARGET_DIR=target/cuda-check

step nvcc --version
for kernel in $(git ls-files --cached --others --exclude-standard '*.cu'); do
  for arch in sm_80 sm_90; do
    for element in F32 BF16 F16; do # the types of activations
      step nvcc -cubin -arch="$arch" -std=c++17 -DPIRL_$element -Werror all-warnings -o /dev/null "$kernel"
    done
  done
done
for features in cuda cuda,cudnn; do
  step cargo check --release --workspace --locked --features "$features"
done
step cargo clippy --release --workspace --all-targets --locked --features cuda,cudnn -- -D warnings
printf '\n== all kernels and all code with CUDA compile; nothing was run on a GPU\n' >&2
