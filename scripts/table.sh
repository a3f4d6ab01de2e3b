#!/usr/bin/env bash
# The results tables: pre-trains with each recipe at the same budget, judges every run by linear probes
# and by nearest neighbours (the layer, its pooling, the rate and the number of neighbours chosen on
# held-out training images, and res5 beside them, of several poolings averaged), with raw pixels and the untrained network to compare with,
# and (unless --probes-only) by fine-tuning on 1 % and 10 % of the labels, the same images for all;
# prints Markdown, the mean and the standard deviation where there are several seeds.
#
#   scripts/table.sh [--output FOLDER] [--seeds "S..."] [--probes-only] [--set KEY=VALUE...] [RECIPE...]
#
# FOLDER (default: runs) gets the data, the runs and the results. Seeds (default: 0) are those of
# pre-training and of everything after it. Without recipes: PIRL (jigsaw), NPID, covariant jigsaw, PIRL
# (rotation) and training with labels. PIRL_DATA names the folder of the packs where it is not FOLDER.
# Started again it goes on where it stopped: a finished stage is not repeated.
set -euo pipefail
cd "$(dirname "$0")/.."

out=runs
percents="1 10" # of the labels, for fine-tuning
seeds=(0)
recipes=()
settings=()
while [ $# -gt 0 ]; do
  case $1 in
    --output) out=${2:?--output needs a folder}; shift 2 ;;
    --seeds) read -ra seeds <<<"${2:?--seeds needs numbers, such as \"0 1 2\"}"; shift 2 ;;
    --probes-only) percents=""; shift ;;
    --set) settings+=(--set "${2:?--set needs KEY=VALUE}"); shift 2 ;;
    -*) echo "usage: scripts/table.sh [--output FOLDER] [--seeds \"S...\"] [--probes-only] [--set KEY=VALUE...] [RECIPE...]" >&2; exit 2 ;;
    *) recipes+=("$1"); shift ;;
  esac
done
. scripts/common.sh
[ ${#recipes[@]} -gt 0 ] || recipes=("${every_recipe[@]}")
prepare "${recipes[0]}"

suffix() { [ "$1" = 0 ] || echo "-seed$1"; }

# probe NAME WEIGHTS [OPTION...]: the probes, whose features are read once and shared. Pixels and the
# untrained network are the same for all recipes, so they are probed with the first one alone.
probe() {
  local name=$1 weights=$2 kind
  shift 2
  for kind in linear knn; do
    [ -e "$out/$name-$kind/result.json" ] && continue
    say "$kind on $name"
    "$pirl" eval "$kind" --weights "$weights" "$@" \
      --train "$train" --test "$test" \
      --cache "$out/$name-features" --out "$out/$name-$kind" >&2
  done
  rm -rf "$out/$name-features"
}

# finetune NAME WEIGHTS SUFFIX [OPTION...]: on the labels that the first network of the seed drew.
finetune() {
  local name=$1 weights=$2 suffix=$3 percent labels resume
  shift 3
  for percent in $percents; do
    [ -e "$out/$name-$percent/result.json" ] && continue
    say "fine-tuning $name on $percent % of the labels"
    labels=(--labels "$out/labels-$percent$suffix.txt")
    [ -e "${labels[1]}" ] || labels=(--label-fraction "$(printf '0.%02d' "$percent")")
    resume=()
    [ ! -d "$out/$name-$percent/checkpoints" ] || resume=(--resume)
    "$pirl" eval finetune --weights "$weights" "$@" "${labels[@]}" "${resume[@]}" \
      --train "$train" --test "$test" --out "$out/$name-$percent" >&2
    cp "$out/$name-$percent/labels.txt" "$out/labels-$percent$suffix.txt"
    rm -rf "$out/$name-$percent/checkpoints"
  done
}

for seed in "${seeds[@]}"; do
  suffix=$(suffix "$seed")
  baselines=true
  for recipe in "${recipes[@]}"; do
    run=$out/$recipe$suffix-run
    options=(--recipe "$recipe" --seed "$seed" "${settings[@]}")
    pretrain "$recipe" "$run" --seed "$seed" "${settings[@]}"
    probe "$recipe$suffix" "$run" "${options[@]}" --set eval.baselines=$baselines
    finetune "$recipe$suffix" "$run" "$suffix" "${options[@]}"
    baselines=false
  done
  finetune "untrained$suffix" random "$suffix" --recipe "${recipes[0]}" --seed "$seed" "${settings[@]}"
done

# cell NAME KIND PATH: a value of the results of every seed, "-" if there is none.
cell() {
  local seed mean
  mean=$(for seed in "${seeds[@]}"; do result "$1$(suffix "$seed")" "$2" "$3"; done | mean 1)
  printf ' %s |' "${mean:--}"
}

# result NAME KIND PATH: a value of one result.
result() { [ ! -e "$out/$1-$2/result.json" ] || value "$out/$1-$2/result.json" "$3"; }

# chosen NAME KIND [UNDER]: the accuracy of the choice, and what was chosen, with each seed.
chosen() {
  local seed name choice under=${3:-} choices=()
  for seed in "${seeds[@]}"; do
    name=$1$(suffix "$seed")
    choice=$(result "$name" "$2" "${under}chosen.layer")
    [ "$2" != knn ] || choice+=", k = $(result "$name" "$2" "${under}chosen.k")"
    [[ "; ${choices[*]};" == *"; $choice;"* ]] || choices+=("$choice")
  done
  choice=$(printf '; %s' "${choices[@]#pixels, }")
  choice=${choice#; }
  local cell
  cell=$(cell "$1" "$2" "${under}chosen.top1")
  [ "$choice" = pixels ] && echo "$cell" || echo "${cell% |} ($choice) |"
}

# row LABEL NAME FINE-TUNED [UNDER]: UNDER is where the probes' report lies in the result.
row() {
  local cells="" percent under=${4:-}
  for kind in linear knn; do
    cells+=$(chosen "$2" "$kind" "$under")$(cell "$2" "$kind" "${under}layers.res5.top1")
  done
  for percent in $percents; do cells+=$(cell "$3" "$percent" top1); done
  printf '| %s |%s\n' "$1" "$cells"
}

head="| $title, top-1 in % | linear | res5 | k-NN | res5 |"
rule="| --- | --- | --- | --- | --- |"
for percent in $percents; do
  head+=" $percent % of labels |"
  rule+=" --- |"
done
printf '%s\n' "$head" "$rule"
for recipe in "${recipes[@]}"; do row "$(label "$recipe") (\`$recipe\`)" "$recipe" "$recipe"; done
row "the untrained network" "${recipes[0]}" untrained baselines.untrained.
row "raw pixels" "${recipes[0]}" none baselines.pixels.
