#!/usr/bin/env bash
# What is handed out: a wheel that brings the `pirl` command, and an archive of the same program with its
# manual pages, shell completions and the licences of all that is in it; checksums beside them.
#
#   scripts/release.sh [--output FOLDER]         (default: target/release-files)
#
# Linux on x86-64, any processor since 2003 (faster code is chosen when it runs), glibc 2.28 and later
# (Debian 10, Ubuntu 20.04, RHEL 8). Needs Rust, Python and PyPI, which brings maturin and Zig, whose
# linker knows older glibcs. scripts/check-release.sh tries the result where neither is installed.
set -euo pipefail
cd "$(dirname "$0")/.."

out=target/release-files
while [ $# -gt 0 ]; do
  case $1 in
    --output) out=${2:?--output needs a folder}; shift 2 ;;
    *) echo "usage: scripts/release.sh [--output FOLDER]" >&2; exit 2 ;;
  esac
done
mkdir -p "$out"
rm -f "$out"/*.whl "$out"/*.tar.gz "$out"/SHA256SUMS

target=x86_64-unknown-linux-gnu
glibc=2.28
tools=target/release-tools
[ -x "$tools/bin/maturin" ] || { python3 -m venv "$tools" && "$tools/bin/pip" install -q "maturin>=1.9,<2" ziglang; }
rustup target list --installed 2>/dev/null | grep -q "$target" || rustup target add "$target"
command -v cargo-about >/dev/null || cargo install --locked --features cli cargo-about

# A folder of its own: other builds need not wait for this one.
PATH=$PWD/$tools/bin:$PATH CARGO_TARGET_DIR=target/release-build "$tools/bin/maturin" build --release --locked \
  --features jxl,parquet --zig --target "$target" \
  --compatibility "manylinux_${glibc/./_}" --out "$out"

wheel=$(ls "$out"/*.whl)
version=$(basename "$wheel" | cut -d- -f2)
name=pirl-$version-linux-x86_64
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/$name/doc"
python3 -m zipfile -e "$wheel" "$work/wheel"
install -m 755 "$work"/wheel/pirl-*.data/scripts/pirl "$work/$name/pirl"
cp README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE "$work/$name"
cp docs/*.md "$work/$name/doc"
cargo about generate --locked scripts/licences.hbs --config scripts/about.toml --manifest-path pirl-cli/Cargo.toml \
  >"$work/$name/LICENCES.md"
mkdir -p "$work/$name/complete" "$work/$name/man"
for shell in bash zsh fish; do "$work/$name/pirl" completions "$shell" >"$work/$name/complete/pirl.$shell"; done
"$work/$name/pirl" man "$work/$name/man"
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$(git log -1 --format=%ct)" \
  -C "$work" -czf "$out/$name.tar.gz" "$name"
(cd "$out" && sha256sum -- *.whl *.tar.gz >SHA256SUMS)
ls -l "$out"
