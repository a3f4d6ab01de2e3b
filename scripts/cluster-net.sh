#!/usr/bin/env bash
# Times two ranks that a slow network joins: two network namespaces of this machine, and between them a
# link of so many Mbit/s with so many ms of delay. Needs root, iproute2, Open MPI, a `pirl` with `mpi`, and a
# kernel with sch_netem; without it the link has sch_tbf's rate and no delay, which is said.
#
#   scripts/cluster-net.sh PACK [STEPS] [MBIT] [MS] [--set key=value ...]
#
# Prints milliseconds a step of one rank alone, and of two ranks on a fast link and on the slow one; how much of
# the sums the backward pass hides; and what the model of docs/CLUSTER.md predicts from the fast link's step.
# The network is ResNet-50 at 224 pixels.
set -euo pipefail
cd "$(dirname "$0")/.."
pack=$(realpath "${1:?PACK}"); steps=${2:-6} mbit=${3:-1000} ms=${4:-1}
shift $(($# < 4 ? $# : 4))
delay=$ms
pirl=$PWD/${CARGO_TARGET_DIR:-target}/release/pirl
work=$(mktemp -d)
a=pirl-a-$$ b=pirl-b-$$
cleanup() { ip netns del $a 2>/dev/null || true; ip netns del $b 2>/dev/null || true; rm -rf "$work"; }
trap cleanup EXIT

ip netns add $a; ip netns add $b
ip link add pirl-a type veth peer name pirl-b
ip link set pirl-a netns $a; ip link set pirl-b netns $b
for end in "$a pirl-a 1" "$b pirl-b 2"; do
  read -r ns device host <<<"$end"
  ip -n "$ns" addr add "10.77.0.$host/24" dev "$device"
  ip -n "$ns" link set "$device" up
  ip -n "$ns" link set lo up
done

# link fast|slow: unlimited, or as asked for, in both directions.
link() {
  local end ns device
  for end in "$a pirl-a" "$b pirl-b"; do
    read -r ns device <<<"$end"
    ip netns exec "$ns" tc qdisc del dev "$device" root 2>/dev/null || true
    [ "$1" = slow ] || continue
    if ! ip netns exec "$ns" tc qdisc add dev "$device" root netem delay "${ms}ms" rate "${mbit}mbit" 2>/dev/null; then
      ip netns exec "$ns" tc qdisc add dev "$device" root tbf rate "${mbit}mbit" burst 256kb latency 100ms
      delay=0
    fi
  done
}

# What starts a rank in the other namespace, in place of ssh: HOST COMMAND...
cat >"$work/agent" <<AGENT
#!/bin/sh
shift
exec ip netns exec $b sh -c "\$*"
AGENT
chmod +x "$work/agent"

recipe() {
  printf '%s\n' pretrain --data "$pack" --set loss.kind=paper --set train.steps="$steps" \
    --set checkpoint.every=0 --set log.every=1 --set eval.precise_batch_norm=0 --set bank.init=random \
    --set loss.negatives=1024 "${settings[@]}"
}
batch=32
settings=(--recipe imagenet-resnet50-jigsaw --set train.batch_size=$batch --set train.micro_batch=16
  --set loader.workers=1 "$@")

# Milliseconds of the median step of all runs of a name, the first two of each left out.
step() {
  python3 -c '
import json, sys
times = [int(sys.argv[1]) / row["images_per_second"] for file in sys.argv[2:] for row in list(map(json.loads, open(file)))[2:]]
print(round(1000 * sorted(times)[len(times) // 2]))' "$batch" "$work/$1"-*/metrics.jsonl
}

two() {
  mapfile -t arguments < <(recipe)
  ip netns exec $a mpirun --allow-run-as-root --host 10.77.0.1,10.77.0.2 -n 2 --bind-to none \
    --mca plm_rsh_agent "$work/agent" --mca btl tcp,self --mca btl_tcp_if_include 10.77.0.0/24 \
    --mca oob_tcp_if_include 10.77.0.0/24 -x RAYON_NUM_THREADS=1 \
    "$pirl" "${arguments[@]}" --out "$work/$1" >&2
}

mapfile -t arguments < <(recipe)
for round in 1 2 3; do # in turn, for processors are faster at times
  RAYON_NUM_THREADS=1 "$pirl" "${arguments[@]}" --out "$work/one-$round" >&2
  for kind in fast slow; do
    link $kind
    two "$kind-$round"
  done
done
[ "$delay" = "$ms" ] || echo "this kernel has no netem: the link has $mbit Mbit/s and no added delay"
one=$(step one) fast=$(step fast) slow=$(step slow)
echo "one rank of one thread      $one ms a step"
echo "two ranks, fast link        $fast ms"
echo "two ranks, $mbit Mbit/s    $slow ms"
# The last backward pass is that of the patches: two thirds of a pass over 9 x 64 x 64 of all pixels.
python3 - "$fast" "$slow" "$mbit" "$delay" <<'END'
import importlib.util, sys
spec = importlib.util.spec_from_file_location("model", "scripts/cluster-model.py")
model = importlib.util.module_from_spec(spec)
spec.loader.exec_module(model)
fast, slow, mbit, delay = (float(word) for word in sys.argv[1:])
last_backward = fast / 1e3 * 2 / 3 * 9 * 64**2 / (224**2 + 9 * 64**2)
total, ring, exposed = model.step(2, fast / 1e3, last_backward, 94e6, mbit * 1e6 / 8, delay / 1e3)
print(f"sums take {1e3 * ring:.0f} ms on this link, of which the step hides {100 * (1 - (slow - fast) / 1e3 / ring):.0f} %")
print(f"the model predicts {1e3 * total:.0f} ms: {100 * (total / slow * 1e3 - 1):+.0f} %")
END
