#!/usr/bin/env python3
"""What one training step asks a GPU for: launches, copies and waits of ours beside PyTorch's operators, both
counted without a GPU.

    python3 benches/peers/launches.py                     # one Markdown table
    python3 benches/peers/launches.py --kernels           # and each kernel's launches
    python3 benches/peers/launches.py --precision bf16    # of another precision: PyTorch's autocast

Ours: `pirl doctor --device cuda:0` with a driver without a device (recorder.c), which records every call; so
the counts are those of a real step, and no number is computed. The program is scripts/gpu-bundle.sh's, which
looks for NVIDIA's libraries when it runs. A call of cuDNN counts as one launch, whatever it launches.

PyTorch's: the same step (pirl_torch.py) under torch.profiler on the CPU, with fewer images, on which its count does
not depend. Counted are operators with work to
do on a device, not those that only call them; views and allocations have none. Gradients of input and weight of
a convolution count as two, and a multi-tensor operator of the optimiser as two, since 25 million parameters fill
the arguments of more than one kernel.

PyTorch comes as for compare.py. Needs a C compiler, cargo, and what scripts/gpu-bundle.sh needs.
"""
import argparse
import collections
import json
import os
import pathlib
import re
import subprocess
import tempfile

from compare import HERE, ROOT, interpreter

BATCH, PEERS_BATCH = 16, 2
LIBRARIES = {
    "driver": "libcuda.so.1", "cublas": "libcublas.so.13", "cublaslt": "libcublasLt.so.13",
    "curand": "libcurand.so.10", "nvrtc": "libnvrtc.so.13", "cudnn": "libcudnn.so.9", "nccl": "libnccl.so.2",
}
# Of cuBLAS, cuDNN and cuRAND, what works on the device.
WORK = re.compile(r"cublas\w*[gG]em[mv]\w*|cublasLtMatmul|cudnnConvolution(Forward|BackwardData|BackwardFilter)|curandGenerate\w+")
PROFILE = """
import collections, json, sys, torch
from pirl_torch import CASES, step
autocast = {"bf16": torch.bfloat16, "f16": torch.float16}.get(sys.argv[3])
run = step(CASES["step"]["resnet50-224-64"] | {"batch": int(sys.argv[1])}, "contiguous", autocast, foreach=True)
run()
with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
    run()
def operators(event):
    return [e for child in event.cpu_children for e in ([child] if child.name.startswith("aten::") else operators(child))]
idle, found = set(sys.argv[2].split()), collections.Counter()
def work(event):
    # Counts what an operator does, or the operators that it calls.
    if event.name.startswith("aten::_foreach") or event.name == "aten::convolution_backward":
        count = 2
    else:
        below = sum(work(child) for child in operators(event))
        if below or event.name in idle or not event.name.startswith("aten::"):
            return below
        count = 1
    found[event.name] += count
    return count
for event in profile.events():
    if event.cpu_parent is None:
        work(event)
print(json.dumps(found))
"""
# PyTorch's operators that ask the device for nothing.
IDLE = " ".join(
    f"aten::{name}" for name in
    "view reshape t transpose as_strided as_strided_ empty empty_like empty_strided detach detach_ expand select slice "
    "unsqueeze squeeze permute alias result_type resize_ _unsafe_view set_ is_nonzero item _local_scalar_dense unbind "
    "real expand_as flatten view_as resolve_conj resolve_neg lift_fresh _reshape_alias contiguous narrow to".split()
)


def recorder(folder):
    """Builds the driver without a device into `folder`."""
    out = subprocess.run(["cargo", "metadata", "--locked", "--all-features", "--format-version", "1"], cwd=ROOT,
                         check=True, stdout=subprocess.PIPE)
    packages = {p["name"]: pathlib.Path(p["manifest_path"]).parent for p in json.loads(out.stdout)["packages"]}
    code = (HERE / "recorder.c").read_text()
    lines, have = [code], set(re.findall(r"(?:DEFINE|MAKES|CHOOSES|SIZES)\((\w+)|size_t (\w+)\(", code))
    have = {name for pair in have for name in pair if name}
    for module in LIBRARIES:
        text = (packages["cudarc"] / "src" / module / "sys" / "mod.rs").read_text()
        for name in sorted(set(re.findall(r'load::<_F>\("(\w+)"\)', text)) - have):
            lines.append(f'int {name}(void) {{ record("call", "{name}", 0); return 0; }}')
    source = folder / "recorder.c"
    source.write_text("\n".join(lines))
    library = folder / "librecorder.so"
    subprocess.run(["cc", "-O1", "-w", "-shared", "-fPIC", source, "-o", library], check=True)
    for name in LIBRARIES.values():
        (folder / name).symlink_to(library)


def ours(pirl, precision):
    """The calls of one step, in order."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        recorder(folder)
        calls = folder / "calls"
        command = [pirl, "doctor", "--device", "cuda:0", "--skip-checks", "--batch-sizes", str(BATCH), "--seconds", "1",
                   "--set", "train.micro_batch=0", "--set", f"train.precision={precision}"]
        environment = os.environ | {"LD_LIBRARY_PATH": str(folder), "PIRL_RECORD": str(calls)}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        events = [line.split() for line in calls.read_text().splitlines() if line.count(" ") == 2]
    # A step begins when its patches are sent.
    patches = str(BATCH * 9 * 3 * 64 * 64)
    begins = [i for i, event in enumerate(events) if event[0] == "write" and event[2] == patches]
    return events[begins[2]:begins[3]]


def theirs(precision):
    command = [interpreter(), "-c", PROFILE, str(PEERS_BATCH), IDLE, precision]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(HERE)})
    found = json.loads(out.stdout)
    found["aten::convolution_backward"] -= 2  # images and patches have no gradient
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pirl", default=str(ROOT / "target" / "cuda-check" / "release" / "pirl"))
    parser.add_argument("--kernels", action="store_true", help="each kernel's launches")
    parser.add_argument("--precision", default="f32", choices=["f32", "tf32", "bf16", "f16"])
    args = parser.parse_args()
    step = ours(args.pirl, args.precision)
    counts = collections.Counter()
    kernels = collections.Counter()
    for kind, name, _ in step:
        if kind == "call" and WORK.fullmatch(name):
            kind = "launch"
        counts[kind] += 1
        if kind in ("launch", "copy", "fill"):
            kernels[name] += 1
    reads = [i for i, (kind, _, _) in enumerate(step) if kind == "read"]
    losses = next((i for i in reads if step[i][2] == "8"), len(step))  # a loss is read as f64
    before = sum(kind == "wait" or kind == "read" for kind, *_ in step[:losses])
    peers = theirs(args.precision)
    work = counts["launch"] + counts["copy"] + counts["fill"]
    print(f"A step of ResNet-50, {BATCH} images of 224 pixels and nine patches of 64 each, in {args.precision}:\n")
    print("| | ours | PyTorch |\n| --- | --- | --- |")
    print(f"| work for the device | {work} | {sum(peers.values())} |")
    print(f"| - kernels | {counts['launch']} | |\n| - copies within the device | {counts['copy']} | |\n| - fills | {counts['fill']} | |")
    print(f"| copies from the host | {counts['write']} | |\n| copies to the host | {counts['read']} | |")
    print(f"| - before the loss is read | {before} | 0 |\n| allocations | {counts['alloc']} | |")
    print(f"\nRatio: {work / sum(peers.values()):.2f}")
    if args.kernels:
        for title, found in (("ours", kernels), ("PyTorch", collections.Counter(peers))):
            print(f"\n{title}:")
            for name, count in found.most_common():
                print(f"{count:6} {name}")


if __name__ == "__main__":
    main()
