# NVIDIA's compiler, from its wheels on PyPI, in target/cuda, and what Cargo needs to use it; sourced at
# the root of the project by the scripts that build for GPUs. Needs python3 with pip or venv, and a C++
# compiler. Cargo builds in target/cuda-check, so other builds stay as they are.

export CUDA_HOME=$PWD/target/cuda/nvidia/cu13
cuda_version=13.0

step() { printf '\n== %s\n' "$*" >&2; "$@"; }

if [ ! -e "target/cuda/complete-$cuda_version" ]; then
  wheels=()
  for part in nvcc crt runtime cccl; do wheels+=("nvidia-cuda-$part==$cuda_version.*"); done
  wheels+=("nvidia-nvvm==$cuda_version.*")
  python=python3
  if ! python3 -m pip --version >/dev/null 2>&1; then
    step python3 -m venv target/cuda-python
    python=target/cuda-python/bin/python
  fi
  rm -rf target/cuda
  step "$python" -m pip install --quiet --disable-pip-version-check --no-deps --target target/cuda "${wheels[@]}"
  touch "target/cuda/complete-$cuda_version"
fi

# In the place of NVIDIA's libraries.
if [ ! scripts/gpu/stubs.py -ot "$CUDA_HOME/lib/libcuda.a" ] || [ ! Cargo.lock -ot "$CUDA_HOME/lib/libcuda.a" ]; then
  step python3 scripts/gpu/stubs.py "$CUDA_HOME/lib"
fi

# What Candle's kernels and cudarc ask for. Code for 8.0 runs on every later card: the driver compiles it.
export PATH=$CUDA_HOME/bin:$PATH NVCC=$PWD/scripts/gpu/nvcc CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80}
export CARGO_TARGET_DIR=target/cuda-check
