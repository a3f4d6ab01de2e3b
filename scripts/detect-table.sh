#!/usr/bin/env bash
# The detection table: Faster R-CNN on scenes of Fashion-MNIST's items, from pre-trained weights of
# each method and from untrained ones, the same training for all; prints Markdown with the mean and
# the standard deviation over seeds.
#
#   scripts/detect-table.sh [--output FOLDER] [--seeds N] [--scenes N] [--set KEY=VALUE]... [METHOD...]
#
# FOLDER (default: runs) gets the data, the runs and the results; Each method is
# pre-trained once, by the recipe fashion-mnist-resnet18 and seed 0; seeds 0 to N - 1 (default: 3) are the
# detector's (its heads, the order of the images, what it samples) and the
# untrained network's. Training scenes are 2000 unless told otherwise, test scenes 500. Without
# methods: jigsaw, npid, jigsaw-covariant, rotation and supervised, training with labels. `--set`
# reaches the detector alone, whose whole recipe takes 45 minutes a row and seed on two cores: the
# table of docs/detection.md has 400 steps. PIRL_DATA names the folder of the packs where it is not
# FOLDER. Started again it goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."

usage="usage: scripts/detect-table.sh [--output FOLDER] [--seeds N] [--scenes N] [--set KEY=VALUE]... [METHOD...]"
out=runs
seeds=3
scenes=2000
settings=()
methods=()
while [ $# -gt 0 ]; do
  case $1 in
    --output) out=${2:?--output needs a folder}; shift 2 ;;
    --seeds) seeds=${2:?--seeds needs a number}; shift 2 ;;
    --scenes) scenes=${2:?--scenes needs a number}; shift 2 ;;
    --set) settings+=(--set "${2:?--set needs KEY=VALUE}"); shift 2 ;;
    -*) echo "$usage" >&2; exit 2 ;;
    *) methods+=("$1"); shift ;;
  esac
done
. scripts/common.sh
[ ${#methods[@]} -gt 0 ] || methods=(jigsaw npid jigsaw-covariant rotation supervised)
recipe=fashion-mnist-resnet18
detector=fashion-mnist-scenes
prepare $recipe

for split in train test; do
  count=500
  [ "$split" = test ] || count=$scenes
  [ -e "$out/scenes-$split-$count.safetensors" ] && continue
  say "composing $count scenes, $split"
  rm -rf "$out/scenes-$split-$count"
  "$pirl" data compose --input "$data/$split" --split "$split" --scenes "$count" \
    --output "$out/scenes-$split-$count" >&2
  "$pirl" data pack --format voc --input "$out/scenes-$split-$count" --split "$split" \
    --output "$out/scenes-$split-$count" >&2
done

suffix() { [ "$1" = 0 ] || echo "-seed$1"; }

# detect NAME WEIGHTS SEED: trains and tests a detector.
detect() {
  local folder=$out/$1-detect resume=()
  [ -e "$folder/result.json" ] && return
  [ ! -d "$folder" ] || resume=(--resume)
  say "detector on $1"
  "$pirl" eval detect --weights "$2" --recipe "$detector" --seed "$3" "${settings[@]}" \
    --train "$out/scenes-train-$scenes" --test "$out/scenes-test-500" \
    --out "$folder" "${resume[@]}" >&2
}

# change METHOD: the settings in which it differs from PIRL with the jigsaw.
change() {
  case $1 in
    jigsaw) ;;
    npid) echo pretext.kind=none loss.lambda=0 ;;
    jigsaw-covariant) echo loss.kind=covariant pretext.permutations=100 ;;
    rotation) echo pretext.kind=rotation "transform.patch.scale=[0.3,1.0]" ;;
    supervised) echo loss.kind=supervised pretext.kind=none ;;
    *) echo "no method is called $1; there are jigsaw, npid, jigsaw-covariant, rotation, supervised" >&2; exit 2 ;;
  esac
}

for method in "${methods[@]}"; do
  changes=$(change "$method")
  options=()
  for setting in $changes; do options+=(--set "$setting"); done
  pretrain "$recipe" "$out/$recipe-$method-run" "${options[@]}"
done
for ((seed = 0; seed < seeds; seed++)); do
  detect "untrained$(suffix "$seed")" random "$seed"
  for method in "${methods[@]}"; do
    detect "$method$(suffix "$seed")" "$out/$recipe-$method-run" "$seed"
  done
done

row() {
  local cells="" key seed
  for key in ap ap50 ap75; do
    cells+=" $(for ((seed = 0; seed < seeds; seed++)); do
      value "$out/$2$(suffix "$seed")-detect/result.json" "$key"
    done | mean 1) |"
  done
  printf '| %s |%s\n' "$1" "$cells"
}

echo "| Faster R-CNN on scenes, $seeds seeds, % | AP | AP50 | AP75 |"
echo "| --- | --- | --- | --- |"
for method in "${methods[@]}"; do row "$(label "$method") (\`$method\`)" "$method"; done
row "the untrained network" untrained
