#!/usr/bin/env bash
# The results table: pre-trains with each recipe at the same budget, probes every run and the
# untrained network, and prints Markdown.
#
#   scripts/table.sh [--output FOLDER] [--seed S] [RECIPE...]
#
# FOLDER (default: runs) gets the data, the runs and the results. Without recipes: PIRL (jigsaw),
# NPID, and the covariant baselines. PIRL_DATA names the folder of the packs where it is not FOLDER.
# Started again it goes on where it stopped: a finished stage is not repeated.
set -euo pipefail
cd "$(dirname "$0")/.."

out=runs
seed=()
recipes=()
while [ $# -gt 0 ]; do
  case $1 in
    --output) out=${2:?--output needs a folder}; shift 2 ;;
    --seed) seed=(--seed "${2:?--seed needs a number}"); shift 2 ;;
    -*) echo "usage: scripts/table.sh [--output FOLDER] [--seed S] [RECIPE...]" >&2; exit 2 ;;
    *) recipes+=("$1"); shift ;;
  esac
done
[ ${#recipes[@]} -gt 0 ] ||
  recipes=(fashion-mnist fashion-mnist-npid fashion-mnist-jigsaw-covariant fashion-mnist-rotation)
data=${PIRL_DATA:-$out}
pirl=${CARGO_TARGET_DIR:-target}/release/pirl
suffix=${seed[1]:+-seed${seed[1]}}

say() { printf '\n== %s\n' "$*" >&2; }

[ -x "$pirl" ] || cargo build --release --locked -p pirl-cli
mkdir -p "$out" "$data"

for split in train test; do
  [ -e "$data/$split.safetensors" ] && continue
  say "packing Fashion-MNIST, $split"
  "$pirl" data fetch fashion-mnist --output "$data/fashion-mnist" >&2
  "$pirl" data pack --format mnist --input "$data/fashion-mnist" --split "$split" \
    --output "$data/$split" >&2
done

# probe NAME WEIGHTS [OPTION...]: both probes; the features are read once and shared.
probe() {
  local name=$1 weights=$2 kind
  shift 2
  for kind in linear knn; do
    [ -e "$out/$name-$kind/result.json" ] && continue
    say "$kind on $name"
    "$pirl" eval "$kind" --weights "$weights" "$@" \
      --train "$data/train" --test "$data/test" \
      --cache "$out/$name-features" --out "$out/$name-$kind" >&2
  done
  rm -rf "$out/$name-features"
}

for recipe in "${recipes[@]}"; do
  run=$out/$recipe$suffix-run
  if [ ! -e "$run/done" ]; then
    say "pre-training, recipe $recipe"
    resume=()
    [ ! -d "$run" ] || resume=(--resume)
    "$pirl" pretrain --recipe "$recipe" --data "$data/train" --out "$run" "${resume[@]}" "${seed[@]}" >&2
    touch "$run/done"
  fi
  probe "$recipe$suffix" "$run"
done
probe "untrained$suffix" random --recipe "${recipes[0]}" "${seed[@]}"

# value FILE KEY: the first number of that key inside "best".
value() {
  tr -d ' \n' <"$1" | sed -E 's/.*"best":\{([^}]*)\}.*/\1/' |
    tr ',' '\n' | sed -nE "s/^\"$2\":\"?([^\"]*)\"?$/\1/p"
}

row() {
  local label=$1 name=$2 cells="" kind file
  for kind in linear knn; do
    file=$out/$name-$kind/result.json
    cells+=" $(printf '%.1f' "$(value "$file" top1)") ($(value "$file" layer)) |"
  done
  printf '| %s |%s\n' "$label" "$cells"
}

label() {
  case $1 in
    *jigsaw-covariant) echo "Jigsaw, covariant" ;;
    *rotation-covariant) echo "Rotation, covariant" ;;
    *rotation) echo "PIRL, rotation" ;;
    *npid) echo "NPID" ;;
    *-long) echo "PIRL, jigsaw, longer" ;;
    *) echo "PIRL, jigsaw" ;;
  esac
}

echo "| Fashion-MNIST, best layer, top-1 in % | linear | k-NN |"
echo "| --- | --- | --- |"
for recipe in "${recipes[@]}"; do row "$(label "$recipe") (\`$recipe\`)" "$recipe$suffix"; done
row "the untrained network" "untrained$suffix"
