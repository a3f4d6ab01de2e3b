#!/usr/bin/env bash
# What there is to learn on a machine with a GPU in eight minutes: does everything run there, does it compute
# what the CPU computes, and how fast is it? scripts/gpu-bundle.sh makes the archive that this lies in.
#
#   ./run.sh [--output FOLDER]          (default: results beside it)
#
# Writes FOLDER/report.json and FOLDER/report.md, and what every stage printed to FOLDER/stages. Needs bash,
# GNU coreutils and awk, and NVIDIA's libraries wherever they are: the toolkit's folders, PyTorch's wheels or
# LD_LIBRARY_PATH. A stage that fails or takes too long does not keep the others. Without a GPU the stages of
# the CPU run. The exit status is 1 if a stage failed.
set -uo pipefail
cd "$(dirname "$0")"
here=$PWD
out=$here/results
while [ $# -gt 0 ]; do
  case $1 in
    --output) out=$(realpath -m "${2:?--output needs a folder}"); shift 2 ;;
    *) echo "usage: ./run.sh [--output FOLDER]" >&2; exit 2 ;;
  esac
done
rm -rf "$out/stages" "$out/runs"
mkdir -p "$out/stages" "$out/runs"
pirl=$here/pirl
ends=$((SECONDS + ${PIRL_GPU_SECONDS:-470}))
python="" has_torch=false libraries="" searched=""
# A network and a batch that take no time.
tiny=(--recipe fashion-mnist --set train.batch_size=16 --set model.width=0.25)
names=() rows=() # of the stages, and of the table in the report
unset RUST_LOG RUST_BACKTRACE

say() { printf '== %s\n' "$*" >&2; }

# text FILE|-: as the inside of a JSON string, its last 4,000 characters.
text() { tail -c 4000 "$1" | LC_ALL=C tr -d '\000-\010\013-\037\200-\377' | sed 's/\\/\\\\/g; s/"/\\"/g; s/\t/ /g' | awk '{printf "%s\\n", $0}'; }

# stage NAME LIMIT COMMAND...: runs it for at most so many seconds. What it prints is its result if that is
# a JSON object.
stage() {
  local name=$1 limit=$2 left=$((ends - SECONDS)) begin end status=passed why="" code=0
  shift 2
  local files=$out/stages/$name
  names+=("$name")
  : >"$files.out"; : >"$files.err"
  [ "$limit" -le "$left" ] || limit=$left
  begin=$(date +%s.%N)
  if [ "$limit" -lt 5 ]; then
    status=skipped why="no time left"
  else
    say "$name (at most $limit s)"
    if declare -F "$1" >/dev/null; then # a function of this script, in a shell that can be timed
      timeout -k 5 "$limit" bash -c "$(declare -f; declare -p out pirl here python has_torch libraries searched tiny); $*" >"$files.out" 2>"$files.err" || code=$?
    else
      timeout -k 5 "$limit" "$@" >"$files.out" 2>"$files.err" || code=$?
    fi
    case $code in
      0) ;;
      124 | 137) status="timed out" why="after $limit s" ;;
      *) status=failed why=$(grep -E 'error|panicked|FAIL|differ' "$files.err" "$files.out" -h | head -1)
         [ -n "$why" ] || why=$(tail -1 "$files.err") ;;
    esac
  fi
  end=$(date +%s.%N)
  {
    printf '{"name": "%s", "status": "%s", "seconds": %s, "exit_code": %d' "$name" "$status" \
      "$(awk "BEGIN { printf \"%.1f\", $end - $begin }")" "$code"
    [ -z "$why" ] || printf ', "why": "%s"' "$(printf '%s' "$why" | text - | sed 's/\\n$//')"
    if [ "$(head -c 1 "$files.out")" = "{" ]; then printf ', "result": '; cat "$files.out"; else printf ', "printed": "%s"' "$(text "$files.out")"; fi
    [ ! -s "$files.err" ] || printf ', "said": "%s"' "$(text "$files.err")"
    printf '}\n'
  } >"$files.json"
  rows+=("| $name | $status | $(awk "BEGIN { printf \"%.1f\", $end - $begin }") | ${why//|/\\|} |")
  say "$name: $status${why:+, $why}"
  [ "$status" = passed ]
}

# --- What is here ---

for candidate in "${PYTHON:-}" python3 python; do
  [ -n "$candidate" ] && command -v "$candidate" >/dev/null && { python=$candidate; break; }
done
[ -n "$python" ] && timeout 60 "$python" -c 'import torch' 2>/dev/null && has_torch=true

# Folders where NVIDIA's libraries may be, a line each.
folders() {
  tr ':' '\n' <<<"${LD_LIBRARY_PATH:-}"
  for root in "${CUDA_HOME:-}" "${CUDA_PATH:-}" /usr/local/cuda /usr/local/cuda-13* /opt/cuda /usr/lib/x86_64-linux-gnu; do
    [ -z "$root" ] || printf '%s\n' "$root/lib64" "$root/lib" "$root/targets/x86_64-linux/lib" "$root"
  done
  if [ -n "$python" ]; then
    "$python" - <<'PYTHON' 2>/dev/null
import glob, site, sys
roots = sys.path + site.getsitepackages() + [site.getusersitepackages()]
for root in dict.fromkeys(roots):
    for folder in sorted(glob.glob(f"{root}/nvidia/*/lib")) + [f"{root}/torch/lib"]:
        print(folder)
PYTHON
  fi
}

# Library, what brings it.
wanted="libcuda.so.1|NVIDIA's driver
libcublas.so.13|CUDA 13 or pip install nvidia-cublas
libcublasLt.so.13|CUDA 13 or pip install nvidia-cublas
libcurand.so.10|CUDA 13 or pip install nvidia-curand
libnvrtc.so.13|CUDA 13 or pip install nvidia-cuda-nvrtc
libcudnn.so.9|cuDNN 9 for CUDA 13 or pip install nvidia-cudnn-cu13
libnccl.so.2|NCCL 2 or pip install nvidia-nccl-cu13"

# Puts the folders of the libraries that are found into LD_LIBRARY_PATH, and says what is missing.
find_libraries() {
  local library brings folder found path=${LD_LIBRARY_PATH:-} list
  list=$(folders | awk 'NF && !seen[$0]++' | while read -r folder; do [ ! -d "$folder" ] || printf '%s\n' "$folder"; done)
  libraries=""
  missing=()
  while IFS='|' read -r library brings; do
    found=""
    while read -r folder; do
      if [ -e "$folder/$library" ]; then found=$folder; break; fi
    done <<<"$list"
    if [ -z "$found" ]; then
      found=$(PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null | awk -v library="$library" '$1 == library { sub(/\/[^\/]*$/, "", $NF); print $NF; exit }')
    elif [[ ":$path:" != *":$found:"* ]]; then
      path=${path:+$path:}$found
    fi
    if [ -n "$found" ]; then
      libraries+="${libraries:+, }\"$library\": \"$(realpath "$found/$library")\""
    else
      libraries+="${libraries:+, }\"$library\": null"
      missing+=("$library, which comes with $brings")
    fi
  done <<<"$wanted"
  export LD_LIBRARY_PATH=$path
  searched=$(paste -sd ' ' <<<"$list")
}

machine() {
  printf '{"kernel": "%s", "glibc": "%s", "cpu": "%s", "cores": %d, "memory_gib": %d' "$(uname -r)" \
    "$(getconf GNU_LIBC_VERSION)" "$(awk -F': ' '/model name/ { print $2; exit }' /proc/cpuinfo)" "$(nproc)" \
    "$(awk '/MemTotal/ { print $2 / 1048576 }' /proc/meminfo)"
  printf ', "nvidia_smi": "%s"' "$(nvidia-smi --query-gpu=name,driver_version,memory.total,memory.used,clocks.max.sm,power.limit,mig.mode.current --format=csv,noheader 2>&1 | text -)"
  printf ', "python": "%s"' "$([ -z "$python" ] || "$python" --version 2>&1 | text -)"
  [ "$has_torch" = false ] || printf ', "torch": "%s"' "$("$python" -c 'import torch; print(torch.__version__, torch.version.cuda, torch.backends.cudnn.version())' | text -)"
  printf ', "libraries": {%s}, "searched": "%s", "LD_LIBRARY_PATH": "%s"}\n' "$libraries" "$searched" "$LD_LIBRARY_PATH"
}

# --- What is compared ---

# compare A B FROM TO FIRST LAST: the losses of two runs in steps FROM to TO. The first three may differ by
# the fraction FIRST, the mean of the last twenty by LAST.
compare() {
  awk -v a="$1" -v b="$2" -v from="$3" -v to="$4" -v first="$5" -v last="$6" '
    function field(key) { return match($0, "\"" key "\": ?[-+0-9.eE]+") ? substr($0, RSTART + length(key) + 3, RLENGTH - length(key) - 3) + 0 : "" }
    function read(file, into,   step) {
      while ((getline < file) > 0) { step = field("step"); if (step != "" && /"loss":/) into[step] = field("loss") }
    }
    BEGIN {
      read(a, x); read(b, y)
      for (step = from; step <= to; step++) {
        if (!(step in x) || !(step in y)) continue
        n++
        difference = (x[step] - y[step]) / x[step]; if (difference < 0) difference = -difference
        if (difference > largest) largest = difference
        if (step < from + 3 && difference > early) early = difference
        if (step > to - 20) { m++; sx += x[step]; sy += y[step] }
      }
      if (!n || !m) { print "error: no steps in common" > "/dev/stderr"; exit 1 }
      late = sx / sy - 1; if (late < 0) late = -late
      printf "{\"steps\": %d, \"first_three\": %.3g, \"largest\": %.3g, \"last_twenty\": %.3g, \"losses\": [%.6g, %.6g]}\n", n, early, largest, late, sx / m, sy / m
      if (early > first || late > last) { print "error: losses differ" > "/dev/stderr"; exit 1 }
    }'
}

# train RUN STEPS DEVICE [OPTION...]
train() {
  local run=$1 steps=$2 device=$3 resume=()
  shift 3
  [ ! -d "$out/runs/$run" ] || resume=(--resume)
  "$pirl" pretrain --recipe fashion-mnist --data "$here/data/images" --out "$out/runs/$run" --device "$device" --seed 1 \
    --set train.batch_size=64 --set train.steps="$steps" --set loss.negatives=1024 --set log.every=1 --set bank.init=random \
    --set checkpoint.every=0 "${resume[@]}" "$@" >&2
}

losses() { printf %s "$out/runs/$1/metrics.jsonl"; }

# The CPU's run, and one that was interrupted half way: the same to the bit.
cpu_run() { train cpu 100 cpu && cp -r "$out/runs/cpu" "$out/runs/cpu-half" && train cpu 200 cpu; }
cpu_resumes() { train cpu-whole 120 cpu && compare "$(losses cpu-whole)" "$(losses cpu)" 1 120 0 0; }
gpu_run() { train gpu 100 cuda:0 && cp -r "$out/runs/gpu" "$out/runs/gpu-half" && train gpu 200 cuda:0; }
gpu_like_cpu() { compare "$(losses cpu)" "$(losses gpu)" 1 200 1e-3 0.05; }
cpu_from_gpu() { cp -r "$out/runs/gpu-half" "$out/runs/gpu-to-cpu" && train gpu-to-cpu 120 cpu && compare "$(losses gpu)" "$(losses gpu-to-cpu)" 101 120 1e-3 0.05; }
gpu_from_cpu() { cp -r "$out/runs/cpu-half" "$out/runs/cpu-to-gpu" && train cpu-to-gpu 120 cuda:0 && compare "$(losses cpu)" "$(losses cpu-to-gpu)" 101 120 1e-3 0.05; }
two_copies() {
  train one 20 cuda:0 --set train.micro_batch=32 && train two 20 cuda:0,cuda:0 --set train.micro_batch=32 &&
    compare "$(losses one)" "$(losses two)" 1 20 1e-3 0.01
}
sanitizer() { compute-sanitizer --error-exitcode 9 --log-file "$out/stages/sanitizer.log" "$pirl" doctor --device cuda:0 "${tiny[@]}" --batch-sizes 2 --seconds 1 --json; }

# --- The stages ---

find_libraries
stage machine 60 machine
# A library that the driver lacks is named by pirl itself.
if stage gpu 60 "$pirl" doctor --device cuda:0 --skip-checks "${tiny[@]}" --batch-sizes 2 --seconds 1 --json ||
  ! grep -q 'no GPU answers\|finds no GPU' "$out/stages/gpu.err"; then
  gpu=true
else
  gpu=false
fi

tests() { # every test prints that it is skipped where there is no GPU
  for test in "$here"/tests/*; do
    stage "test-$(basename "$test")" 60 "$test" --nocapture --test-threads 1
  done
}

if [ "$gpu" = true ]; then
  stage doctor 120 "$pirl" doctor --device cuda:0 --batch-sizes 32 --json
  stage train-gpu 60 gpu_run
  stage train-cpu 90 cpu_run
  stage losses-gpu-and-cpu 10 gpu_like_cpu
  stage resume-of-gpu-on-cpu 40 cpu_from_gpu
  stage resume-of-cpu-on-gpu 40 gpu_from_cpu
  for precision in bf16 f32 tf32 f16; do
    stage "speed-$precision" 60 "$pirl" doctor --device cuda:0 --skip-checks --set train.precision=$precision --batch-sizes 32,64,128,256 --seconds 1 --json
    [ "$has_torch" = false ] || stage "torch-$precision" 60 "$python" benches/peers/gpu_torch.py $precision 32,64,128,256
  done
  tests
  stage two-copies 40 two_copies
  stage loader 20 "$pirl" data bench data/images --recipe fashion-mnist --seconds 5 --json
  if command -v compute-sanitizer >/dev/null; then stage sanitizer 90 sanitizer; fi
else
  stage doctor 200 "$pirl" doctor --batch-sizes 2 --json
  stage train-cpu 160 cpu_run
  stage resume-on-cpu 90 cpu_resumes
  tests
  stage loader 30 "$pirl" data bench data/images --recipe fashion-mnist --seconds 5 --json
fi

# --- The reports ---

{
  printf '{"gpu": %s, "seconds": %d, "version": "%s", "stages": [\n' "$gpu" "$SECONDS" "$("$pirl" --version)"
  separator=""
  for name in "${names[@]}"; do printf '%s' "$separator"; cat "$out/stages/$name.json"; separator=","; done
  printf ']}\n'
} >"$out/report.json"

# number KEY FILE: every number that follows the key in a file of JSON, a line each.
number() { grep -o "\"$1\": *[-+0-9.eEnul]*" "$2" | sed 's/.*: *//'; }

{
  echo "# pirl on this machine"
  echo
  if [ "$gpu" = true ]; then echo "With a GPU:$(sed -n 's/^ *"model": "\(.*\)",/ \1/p' "$out/stages/gpu.out"), driver $(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -1)."
  else echo "There is no GPU here: $(head -1 "$out/stages/gpu.err"). What follows is of the CPU."; fi
  if [ ${#missing[@]} -gt 0 ]; then
    printf '\nMissing:\n\n'
    printf -- '- %s\n' "${missing[@]}"
    printf '\nLooked in %s and where ldconfig looks.\n' "${searched:-LD_LIBRARY_PATH}"
  fi
  echo
  echo "| stage | outcome | seconds | |"
  echo "| --- | --- | --- | --- |"
  printf '%s\n' "${rows[@]}"
  for name in losses-gpu-and-cpu resume-of-gpu-on-cpu resume-of-cpu-on-gpu resume-on-cpu two-copies; do
    file=$out/stages/$name.out
    [ -s "$file" ] || continue
    echo
    echo "$name: $(tr -d '{}"' <"$file")"
  done
  if [ -s "$out/stages/doctor.out" ]; then
    echo; echo "Doctor: $(sed -n 's/^ *"verdict": "\(.*\)".*/\1/p' "$out/stages/doctor.out")"
    grep -B8 '"passed": false' "$out/stages/doctor.out" | sed -n 's/^ *"name": "\(.*\)",/- differs: \1/p'
  fi
  if [ "$gpu" = true ]; then
    echo
    echo "ResNet-50, 224-pixel images and nine 64-pixel patches, whole steps; loader: $(number images_per_second "$out/stages/doctor.out" | tail -1) images/s"
    echo
    echo "| precision | batch | images/s | MiB | PyTorch, images/s | PyTorch, MiB | ratio |"
    echo "| --- | --- | --- | --- | --- | --- | --- |"
    for precision in f32 tf32 bf16 f16; do
      ours=$out/stages/speed-$precision.out theirs=$out/stages/torch-$precision.out
      [ -s "$ours" ] || continue
      [ -e "$theirs" ] || theirs=/dev/null
      paste -d ' ' <(number batch_size "$ours") <(number images_per_second "$ours" | head -n "$(number batch_size "$ours" | wc -l)") <(number memory_mib "$ours" | tail -n "$(number batch_size "$ours" | wc -l)") \
        <(number images_per_second "$theirs") <(number memory_mib "$theirs") |
        awk -v precision=$precision '
          function rate(x) { return x == "" ? "" : x == "null" ? "failed" : sprintf("%.0f", x) }
          { printf("| %s | %s | %s | %s | %s | %s | %s |\n", precision, $1, rate($2), $3, rate($4), $5, ($2 > 0 && $4 > 0 ? sprintf("%.2f", $2 / $4) : "")) }'
    done
  fi
} >"$out/report.md"

cat "$out/report.md"
! grep -qE '"status": "(failed|timed out)"' <(for name in "${names[@]}"; do [ "$name" = gpu ] && [ "$gpu" = false ] || head -1 "$out/stages/$name.json"; done)
