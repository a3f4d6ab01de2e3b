# What the table scripts share; sourced by them, with `out`, the folder of the runs, set.

data=${PIRL_DATA:-$out}
pirl=${CARGO_TARGET_DIR:-target}/release/pirl

say() { printf '\n== %s\n' "$*" >&2; }

# prepare RECIPE: builds pirl where there is none, and packs the recipe's data set into $data:
# CIFAR-10 where its name says so, else Fashion-MNIST. $train and $test are the packs, $title its name.
prepare() {
  local set=fashion-mnist format=mnist prefix="" split
  title=Fashion-MNIST
  case $1 in *cifar10*) set=cifar10 format=cifar10 prefix=cifar10- title=CIFAR-10 ;; esac
  train=$data/${prefix}train test=$data/${prefix}test
  [ -x "$pirl" ] || cargo build --release --locked -p pirl-cli
  mkdir -p "$out" "$data"
  for split in train test; do
    [ -e "$data/$prefix$split.safetensors" ] && continue
    say "packing $set, $split"
    [ -d "$data/$set" ] || "$pirl" data fetch "$set" --output "$data/$set" >&2
    "$pirl" data pack --format "$format" --input "$data/$set" --split "$split" \
      --output "$data/$prefix$split" >&2
  done
}

# pretrain RECIPE RUN [OPTION...]: a finished run of the recipe, begun, resumed or found.
pretrain() {
  local recipe=$1 run=$2 resume=()
  shift 2
  [ -e "$run/done" ] && return
  say "pre-training, recipe $recipe"
  [ ! -d "$run" ] || resume=(--resume)
  "$pirl" pretrain --recipe "$recipe" --data "$train" --out "$run" "${resume[@]}" "$@" >&2
  touch "$run/done"
}

# value FILE PATH: what a result has at that path of keys, such as chosen.top1; nothing where it has none.
# The file must be laid out as pirl writes it, a key a line.
value() {
  awk -v wanted="$2" '
    { sub(/^ +/, ""); sub(/,$/, "") }
    /^[]}]/ { depth--; next }
    {
      key = ""
      if (match($0, /^"[^"]*": /)) {
        key = substr($0, 2, RLENGTH - 4)
        $0 = substr($0, RLENGTH + 1)
      }
      path = depth > 1 ? place[depth - 1] "." key : key
      if (/^[[{]$/) { place[depth] = path; depth++; next }
      if (path == wanted) { gsub(/"/, ""); print; exit }
    }' "$1"
}

# mean NUMBER...: the mean of the numbers on standard input with that many digits after the point and,
# of two or more, their sample standard deviation; nothing without any.
mean() {
  awk -v digits="${1:-1}" '
    NF { x[n++] = $1; s += $1 }
    END {
      if (!n) exit
      m = s / n
      printf "%.*f", digits, m
      for (i in x) q += (x[i] - m) ^ 2
      if (n > 1) printf " ± %.*f", digits, sqrt(q / (n - 1))
    }'
}

# The recipes of a table where none are named.
every_recipe=(fashion-mnist fashion-mnist-npid fashion-mnist-jigsaw-covariant fashion-mnist-rotation
  supervised-fashion-mnist)

# label RECIPE: its row's name.
label() {
  case $1 in
    *jigsaw-covariant) echo "Jigsaw, covariant" ;;
    *rotation-covariant) echo "Rotation, covariant" ;;
    *jigsaw-rotation) echo "PIRL, jigsaw of a rotated image" ;;
    *rotation) echo "PIRL, rotation" ;;
    *npid) echo "NPID" ;;
    supervised*) echo "Supervised" ;;
    *-long) echo "PIRL, jigsaw, longer" ;;
    *) echo "PIRL, jigsaw" ;;
  esac
}
