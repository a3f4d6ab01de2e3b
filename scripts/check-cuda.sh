#!/usr/bin/env bash
# Type-checks and lints everything with the features for GPUs and MPI, and compiles every kernel, on a machine
# without a GPU and without NVIDIA's toolkit. Nothing is run on a GPU. scripts/gpu-bundle.sh builds what
# can be run on one.
#
#   scripts/check-cuda.sh
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/mpi-env.sh
. scripts/cuda-env.sh

step nvcc --version
for kernel in $(git ls-files --cached --others --exclude-standard '*.cu'); do
  for arch in sm_80 sm_90; do
    for element in F32 BF16 F16; do # the types of activations
      step nvcc -cubin -arch="$arch" -std=c++17 -DPIRL_$element -Werror all-warnings -o /dev/null "$kernel"
    done
  done
done
for features in cuda cuda,cudnn cuda,cudnn,nccl,mpi; do
  step cargo check --release --workspace --locked --features "$features"
done
step cargo clippy --release --workspace --all-targets --locked --features cuda,cudnn,nccl,mpi -- -D warnings
printf '\n== all kernels and all code for GPUs and MPI compile; nothing was run on a GPU\n' >&2
