#!/usr/bin/env bash
# From a fresh machine with Rust to a table: Fashion-MNIST, a PIRL pre-training run, and probes of
# what it learned beside the untrained network. About 20 minutes on two cores, the build included.
#
#   scripts/quickstart.sh [FOLDER]      # FOLDER: where data and runs go (default: runs)
#
# Started again it goes on where it stopped: a finished stage is not repeated.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-runs}
started=$SECONDS

say() { printf '\n== %s\n' "$*" >&2; }

command -v cargo >/dev/null || {
  echo "quickstart: cargo is not on the PATH; install Rust from https://rustup.rs and run this again" >&2
  exit 1
}

if [ ! -e /usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz ] &&
  [ ! -e "$out/fashion-mnist/train-images-idx3-ubyte.gz" ]; then
  sudo=()
  [ "$(id -u)" = 0 ] || sudo=(sudo)
  if command -v apt-get >/dev/null; then
    say "installing Fashion-MNIST (Debian package dataset-fashion-mnist)"
    { "${sudo[@]}" apt-get update -qq && "${sudo[@]}" apt-get install -y -qq dataset-fashion-mnist; } >&2 ||
      say "apt-get failed; pirl will download it"
  fi
fi

say "building pirl"
cargo build --release --locked -p pirl-cli

PIRL_DATA=$out scripts/table.sh --output "$out" --probes-only fashion-mnist

say "the page of the run"
"${CARGO_TARGET_DIR:-target}/release/pirl" report "$out/fashion-mnist-run" --data "$out/test" \
  --results "$out/fashion-mnist-linear/result.json" --results "$out/fashion-mnist-knn/result.json" >&2
say "done in $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s; open $out/fashion-mnist-run/report.html"
