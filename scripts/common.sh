# What the table scripts share; sourced by them, with `out`, the folder of the runs, set.

data=${PIRL_DATA:-$out}
pirl=${CARGO_TARGET_DIR:-target}/release/pirl

say() { printf '\n== %s\n' "$*" >&2; }

# Builds pirl where there is none, and packs Fashion-MNIST into $data.
prepare() {
  local split
  [ -x "$pirl" ] || cargo build --release --locked -p pirl-cli
  mkdir -p "$out" "$data"
  for split in train test; do
    [ -e "$data/$split.safetensors" ] && continue
    say "packing Fashion-MNIST, $split"
    "$pirl" data fetch fashion-mnist --output "$data/fashion-mnist" >&2
    "$pirl" data pack --format mnist --input "$data/fashion-mnist" --split "$split" \
      --output "$data/$split" >&2
  done
}

# pretrain RECIPE RUN [OPTION...]: a finished run of the recipe, begun, resumed or found.
pretrain() {
  local recipe=$1 run=$2 resume=()
  shift 2
  [ -e "$run/done" ] && return
  say "pre-training, recipe $recipe"
  [ ! -d "$run" ] || resume=(--resume)
  "$pirl" pretrain --recipe "$recipe" --data "$data/train" --out "$run" "${resume[@]}" "$@" >&2
  touch "$run/done"
}

# The recipes of a table where none are named.
every_recipe=(fashion-mnist fashion-mnist-npid fashion-mnist-jigsaw-covariant fashion-mnist-rotation
  supervised-fashion-mnist)

# label RECIPE: its row's name.
label() {
  case $1 in
    *jigsaw-covariant) echo "Jigsaw, covariant" ;;
    *rotation-covariant) echo "Rotation, covariant" ;;
    *rotation) echo "PIRL, rotation" ;;
    *npid) echo "NPID" ;;
    supervised-*) echo "Supervised" ;;
    *-long) echo "PIRL, jigsaw, longer" ;;
    *) echo "PIRL, jigsaw" ;;
  esac
}
