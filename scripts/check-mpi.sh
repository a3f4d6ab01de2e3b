#!/usr/bin/env bash
# Builds with MPI and tests pre-training and evaluations by several ranks. Installs Debian's Open MPI where there is no
# mpicc and this is root; elsewhere it must be there.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v mpicc >/dev/null; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "no mpicc: install an MPI and libclang, as docs/CLUSTER.md says" >&2
    exit 1
  fi
  apt-get update -q
  apt-get install -qy --no-install-recommends libopenmpi-dev openmpi-bin libclang-dev
fi
cargo clippy --release --locked -p pirl-cli --features mpi --all-targets -- -D warnings
cargo test --release --locked -p pirl-cli --features mpi --test ranks -- --test-threads 1
