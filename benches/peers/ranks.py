#!/usr/bin/env python3
"""Times ranks beside threads on one machine, in turn: A B A B.

    . scripts/mpi-env.sh && cargo build --release --locked -p pirl-cli --features mpi
    python3 benches/peers/ranks.py --pack PACK

A is one process on all cores, B `mpirun` of as many ranks of one thread each, bound to a core of their own: ResNet-50 at
224 pixels and 64-pixel patches, a batch of 32 in micro-batches of 8, and the recipes `cifar10` and `fashion-mnist`. Both
have one loader worker a core. PACK is any pack; its images are resized to what a recipe wants. A ratio is the images
a second of B by those of A, of one pair; of each run the median step counts, the first two left out.

Needs Open MPI's mpirun.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]

# name, steps, settings
CASES = {
    "resnet50": (6, ["--recipe", "imagenet-resnet50-jigsaw", "--set", "loss.kind=paper", "--set", "train.batch_size=32",
                     "--set", "train.micro_batch=8", "--set", "loss.negatives=1024"]),
    "cifar10": (60, ["--recipe", "cifar10", "--set", "loss.negatives=1024"]),
    "fashion-mnist": (60, ["--recipe", "fashion-mnist", "--set", "loss.negatives=1024"]),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", required=True)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--case", choices=CASES, action="append")
    parser.add_argument("--pirl", default=str(ROOT / "target" / "release" / "pirl"), help="built with the feature mpi")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))

    def rate(case, ranks):
        steps, settings = CASES[case]
        command = [args.pirl, "pretrain", "--data", args.pack, "--set", f"train.steps={steps}", "--set", "checkpoint.every=0",
                   "--set", "log.every=1", "--set", "eval.precise_batch_norm=0", "--set", "bank.init=random",
                   "--set", f"loader.workers={cores // ranks}"] + settings
        environment = dict(os.environ, RAYON_NUM_THREADS=str(cores // ranks))
        if ranks > 1:
            command = ["mpirun", "--allow-run-as-root", "--bind-to", "core", "-n", str(ranks)] + command
        with tempfile.TemporaryDirectory(dir=ROOT / "target") as folder:
            run = pathlib.Path(folder) / "run"
            done = subprocess.run(command + ["--out", str(run)], env=environment, capture_output=True, text=True)
            if done.returncode != 0:
                raise SystemExit(done.stderr)
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return statistics.median(row["images_per_second"] for row in rows[2:] if "images_per_second" in row)

    for case in args.case or CASES:
        pairs = []
        for _ in range(args.pairs):
            one, ranks = rate(case, 1), rate(case, cores)
            pairs.append((one, ranks))
            print(f"{case}: one process {one:.2f} images/s, {cores} ranks {ranks:.2f}, ratio {ranks / one:.2f}", flush=True)
        ratios = sorted(ranks / one for one, ranks in pairs)
        one, ranks = (statistics.median(column) for column in zip(*pairs))
        print(f"{case}: {one:.2f} and {ranks:.2f} images/s, {statistics.median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
