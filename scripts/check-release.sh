#!/usr/bin/env bash
# Tries what scripts/release.sh made where there is no compiler and nothing else of ours: in a fresh Debian
# root, the archive's program and the wheel's each go from Fashion-MNIST to a table, as docs/first-run.md
# says, with a short training.
#
#   sudo scripts/check-release.sh FOLDER [SUITE]      (SUITE: a Debian release; default bookworm)
#
# Needs root, debootstrap and a Debian mirror (DEBIAN_MIRROR: another one than deb.debian.org).
set -euo pipefail

folder=$(realpath "${1:?usage: scripts/check-release.sh FOLDER [SUITE]}")
suite=${2:-bookworm}
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
(cd "$folder" && sha256sum --quiet -c SHA256SUMS)

root=$(mktemp -d /var/tmp/pirl-root.XXXXXX)
trap 'umount "$root/proc" 2>/dev/null || true; rm -rf "$root"' EXIT
debootstrap --variant=minbase --include=ca-certificates,python3-venv,python3-pip "$suite" "$root" "$mirror" >"$root.log" ||
  { tail "$root.log"; exit 1; }
rm -f "$root.log"
mount -t proc proc "$root/proc"
cp /etc/resolv.conf "$root/etc/resolv.conf"
if [ -e /etc/apt/apt.conf.d ]; then cp -r /etc/apt/apt.conf.d/. "$root/etc/apt/apt.conf.d/"; fi
cp -r "$folder" "$root/files"
cp /usr/local/share/ca-certificates/*.crt "$root/usr/local/share/ca-certificates/" 2>/dev/null || true

cat >"$root/try.sh" <<'END'
set -euo pipefail
export HOME=/root PIP_ROOT_USER_ACTION=ignore
update-ca-certificates >/dev/null 2>&1
apt-get update -q >/dev/null
apt-get install -qy --no-install-recommends dataset-fashion-mnist >/dev/null
if command -v gcc cargo; then echo "this root has a compiler" >&2; exit 1; fi

first_run() { # PROGRAM FOLDER: docs/first-run.md with a short training
  mkdir "$2" && cd "$2"
  "$1" --version
  "$1" data fetch fashion-mnist --output raw
  "$1" data pack --format mnist --input raw --split train --output train
  "$1" data pack --format mnist --input raw --split test --output test
  "$1" pretrain --recipe fashion-mnist --data train --out runs/first --set train.steps=20
  "$1" eval knn --weights runs/first --train train --test test --out runs/first-knn \
    --set eval.layers='["res5"]' --set eval.baselines=false
  cd /
}

echo "== the archive"
tar -xzf /files/*.tar.gz -C /opt
first_run "$(ls -d /opt/pirl-*)/pirl" /archive
test -s "$(ls -d /opt/pirl-*)/LICENCES.md"
echo "== the wheel"
python3 -m venv /venv
/venv/bin/pip install -q /files/*.whl
first_run /venv/bin/pirl /wheel
END
chroot "$root" bash /try.sh >"$root/log" 2>&1 || { tr '\r' '\n' <"$root/log" | tail -n 40; exit 1; }
grep -a -A12 "^==" "$root/log" | tr '\r' '\n' | grep -av " left" || true
echo "the archive and the wheel of $(basename "$folder") work on Debian $suite"
