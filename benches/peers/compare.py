#!/usr/bin/env python3
"""Times the PIRL step, the loss, the bank, single convolutions and the ops of detection against
PyTorch's and torchvision's, in turn: A B A B.

    python3 benches/peers/compare.py                     # everything, as Markdown tables
    python3 benches/peers/compare.py step loss --pairs 9
    python3 benches/peers/compare.py op --match res4

Both sides are warm processes of their own that do one run when told to, so that a pair is seconds
apart whatever the machine does meanwhile. A ratio is PyTorch's time by ours, of one pair: above 1 we
are faster; the table has the median and, in brackets, the least and the greatest. Both compute in
f32, PyTorch in the faster of its two layouts.

PyTorch comes from PyPI into a virtual environment beside the build (target/peers); set PEERS_PYTHON to
use the interpreter of another. Needs cargo and python3 with venv.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CASES = json.loads((HERE / "cases.json").read_text())


def interpreter():
    """A Python that has torch and torchvision."""
    if "PEERS_PYTHON" in os.environ:
        return os.environ["PEERS_PYTHON"]
    folder = ROOT / "target" / "peers"
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    if subprocess.run([python, "-c", "import torch, torchvision, numpy"], stderr=subprocess.DEVNULL).returncode:
        print("installing PyTorch into", folder, file=sys.stderr)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "torch", "torchvision", "numpy"], check=True)
    return str(python)


def build():
    """The executable of benches/benches/peer.rs."""
    command = ["cargo", "bench", "-p", "benches", "--bench", "peer", "--locked", "--no-run"]
    out = subprocess.run(command + ["--message-format=json"], cwd=ROOT, check=True, stdout=subprocess.PIPE)
    messages = (json.loads(line) for line in out.stdout.splitlines())
    found = [m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "peer"]
    return found[0]


class Worker:
    def __init__(self, *command, **environment):
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | environment
        )
        if self.process.stdout.readline().strip() != "ready":
            sys.exit(f"{' '.join(command)} did not start")

    def ask(self, what):
        time.sleep(0.2)  # the other side's threads stop spinning
        print(what, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def compare(ours, theirs, pairs, repeat):
    """Medians of both sides in seconds, the ratios of the pairs, and both peaks in MiB."""
    times = []
    for _ in range(pairs):
        pair = []
        for side in (ours, theirs):
            pair.append(sum(side.ask("run") for _ in range(repeat)) / repeat)
        times.append(pair)
    ratios = sorted(b / a for a, b in times)
    seconds = [statistics.median(side) for side in zip(*times)]
    return seconds, ratios, [side.ask("peak") for side in (ours, theirs)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=list(CASES), choices=list(CASES), metavar="KIND",
                        help=", ".join(CASES))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--match", default="", help="only cases whose name contains this")
    args = parser.parse_args()
    python, peer = interpreter(), build()

    def theirs(kind, name):
        """PyTorch in its faster layout, warm."""
        layouts = ["contiguous", "channels_last"] if kind in ("step", "op") else ["contiguous"]
        script = str(HERE / "pirl_torch.py")
        workers = {layout: Worker(python, script, kind, name, layout, str(args.threads)) for layout in layouts}
        seconds = {layout: min(w.ask("run") for _ in range(2)) for layout, w in workers.items()}
        best = min(seconds, key=seconds.get)
        for layout, worker in workers.items():
            if layout != best:
                worker.close()
        return workers[best], best

    print(f"Threads: {args.threads}; {cpu()}; pairs: {args.pairs}")
    for kind in args.kinds:
        print(f"\n| {kind} | ours, ms | PyTorch, ms | ratio | ours, MiB | PyTorch, MiB |")
        print("| --- | --- | --- | --- | --- | --- |", flush=True)
        for name in (name for name in CASES[kind] if args.match in name):
            b, layout = theirs(kind, name)
            a = Worker(peer, kind, name, RAYON_NUM_THREADS=str(args.threads))
            repeat = max(1, min(50, int(0.1 / a.ask("run"))))
            seconds, ratios, peaks = compare(a, b, args.pairs, repeat)
            a.close(), b.close()
            ratio = f"{statistics.median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            times = " | ".join(f"{1e3 * s:.1f}" for s in seconds)
            memory = " | ".join(f"{p:.0f}" for p in peaks)
            print(f"| {name} ({layout}) | {times} | {ratio} | {memory} |", flush=True)


def cpu():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    names = {line.split(":")[1].strip() for line in lines if line.startswith("model name")}
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    sets = [s for s in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if s in flags]
    return f"{', '.join(names) or 'unknown CPU'} ({', '.join(sets)})"


if __name__ == "__main__":
    main()
