#!/usr/bin/env bash
# Builds with MPI and tests pre-training and evaluations by several ranks.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/mpi-env.sh
cargo clippy --release --locked -p pirl-cli --features mpi --all-targets -- -D warnings
cargo test --release --locked -p pirl-cli --features mpi --test ranks -- --test-threads 1
