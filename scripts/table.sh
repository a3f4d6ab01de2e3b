#!/usr/bin/env bash
# The results tables: pre-trains with each recipe at the same budget, judges every run and the
# untrained network by linear probes of each layer, by nearest neighbours, and (unless --probes-only)
# by fine-tuning on 1 % and 10 % of the labels, the same images for all; prints Markdown.
#
#   scripts/table.sh [--output FOLDER] [--seed S] [--probes-only] [RECIPE...]
#
# FOLDER (default: runs) gets the data, the runs and the results. Without recipes: PIRL (jigsaw),
# NPID, covariant jigsaw, PIRL (rotation) and training with labels. PIRL_DATA names the folder of the
# packs where it is not FOLDER. Started again it goes on where it stopped: a finished stage is not
# repeated.
set -euo pipefail
cd "$(dirname "$0")/.."

out=runs
percents="1 10" # of the labels, for fine-tuning
seed=()
recipes=()
while [ $# -gt 0 ]; do
  case $1 in
    --output) out=${2:?--output needs a folder}; shift 2 ;;
    --seed) seed=(--seed "${2:?--seed needs a number}"); shift 2 ;;
    --probes-only) percents=""; shift ;;
    -*) echo "usage: scripts/table.sh [--output FOLDER] [--seed S] [--probes-only] [RECIPE...]" >&2; exit 2 ;;
    *) recipes+=("$1"); shift ;;
  esac
done
suffix=${seed[1]:+-seed${seed[1]}}
. scripts/common.sh
[ ${#recipes[@]} -gt 0 ] || recipes=("${every_recipe[@]}")
prepare

# evaluate NAME WEIGHTS RECIPE [OPTION...]: the probes, whose features are read once and shared, and
# fine-tuning, for which every network gets the labels that the first one drew.
evaluate() {
  local name=$1 weights=$2 recipe=$3 kind percent labels resume
  shift 3
  set -- --recipe "$recipe" "$@"
  for kind in linear knn; do
    [ -e "$out/$name-$kind/result.json" ] && continue
    say "$kind on $name"
    "$pirl" eval "$kind" --weights "$weights" "$@" \
      --train "$data/train" --test "$data/test" \
      --cache "$out/$name-features" --out "$out/$name-$kind" >&2
  done
  rm -rf "$out/$name-features"
  for percent in $percents; do
    [ -e "$out/$name-$percent/result.json" ] && continue
    say "fine-tuning $name on $percent % of the labels"
    labels=(--labels "$out/labels-$percent.txt")
    [ -e "${labels[1]}" ] || labels=(--label-fraction "$(printf '0.%02d' "$percent")")
    resume=()
    [ ! -d "$out/$name-$percent/checkpoints" ] || resume=(--resume)
    "$pirl" eval finetune --weights "$weights" "$@" "${labels[@]}" "${resume[@]}" \
      --train "$data/train" --test "$data/test" --out "$out/$name-$percent" >&2
    cp "$out/$name-$percent/labels.txt" "$out/labels-$percent.txt"
    rm -rf "$out/$name-$percent/checkpoints"
  done
}

for recipe in "${recipes[@]}"; do
  run=$out/$recipe$suffix-run
  pretrain "$recipe" "$run" "${seed[@]}"
  evaluate "$recipe$suffix" "$run" "$recipe" "${seed[@]}"
done
evaluate "untrained$suffix" random "${recipes[0]}" "${seed[@]}"

# value FILE KEY [OBJECT]: that key, of the object of that name where one is given. Probes list what
# each learning rate reached, which is left out.
value() {
  tr -d ' \n' <"$1" | sed -E 's/"rates":\[[^]]*\],?//g' |
    if [ $# -gt 2 ]; then sed -E "s/.*\"$3\":\{([^}]*)\}.*/\1/"; else cat; fi |
    tr ',{}' '\n' | sed -nE "s/^\"$2\":\"?([^\"]*)\"?$/\1/p" | head -n 1
}

# number ...: a value to one decimal.
number() { printf '%.1f' "$(value "$@")"; }

row() {
  local label=$1 name=$2 cells="" layer
  for layer in res2 res3 res4 res5; do
    cells+=" $(number "$out/$name-linear/result.json" top1 "$layer") |"
  done
  cells+=" $(number "$out/$name-knn/result.json" top1 best)"
  cells+=" ($(value "$out/$name-knn/result.json" layer best)) |"
  for percent in $percents; do
    cells+=" $(number "$out/$name-$percent/result.json" top1) |"
  done
  printf '| %s |%s\n' "$label" "$cells"
}

head="| Fashion-MNIST, top-1 in % | linear: res2 | res3 | res4 | res5 | k-NN |"
rule="| --- | --- | --- | --- | --- | --- |"
for percent in $percents; do
  head+=" $percent % of labels |"
  rule+=" --- |"
done
printf '%s\n' "$head" "$rule"
for recipe in "${recipes[@]}"; do row "$(label "$recipe") (\`$recipe\`)" "$recipe$suffix"; done
row "the untrained network" "untrained$suffix"
