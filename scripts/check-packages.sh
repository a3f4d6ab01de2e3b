#!/usr/bin/env bash
# Packages every crate as `cargo publish` does, and type-checks the packages from their own files alone:
# a file that is left out, a path that leaves its crate, and a dependency without a version show here.
#
#   scripts/check-packages.sh [OPTION...]        # options of `cargo package`, such as --allow-dirty
#
# Cargo's own verification builds everything once more, in the profile `dev`; this takes the profile
# and the dependencies that clippy has checked already. It needs a clean checkout, and no network but for
# dependencies that are not here yet.
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-target}
packages=$CARGO_TARGET_DIR/package
unpacked=$packages/unpacked

cargo fetch --locked --quiet
rm -rf "$unpacked" "$packages"/*.crate
cargo package --workspace --no-verify --locked --offline --quiet "$@"
mkdir -p "$unpacked/crates"
# Extracted files are new (`m`): in packages all have one old time, by which cargo takes them for unchanged.
for package in "$packages"/pirl-*.crate; do tar xmf "$package" -C "$unpacked/crates"; done

# A workspace of the packages, in which each finds the others instead of a registry's. Its own files are a
# folder higher than the repository's, where a path out of a crate would find them.
{
  printf '[workspace]\nresolver = "3"\nmembers = ["crates/*"]\n\n[patch.crates-io]\n'
  for folder in "$unpacked"/crates/*; do
    name=$(basename "$folder")
    printf '%s = { path = "crates/%s" }\n' "${name%-*}" "$name"
  done
  sed -n '/^\[profile/,$p' Cargo.toml
} >"$unpacked/Cargo.toml"
cp Cargo.lock "$unpacked"
cargo check --release --offline --manifest-path "$unpacked/Cargo.toml" --workspace \
  --examples --bins --lib
