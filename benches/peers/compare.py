#!/usr/bin/env python3
"""Times the PIRL step, feature extraction, the loss, the bank, single convolutions and the ops of
detection against PyTorch's and torchvision's, in turn: A B A B.

    python3 benches/peers/compare.py                     # everything, as one Markdown table
    python3 benches/peers/compare.py step loss --pairs 9
    python3 benches/peers/compare.py op --match res4 --precisions f32

Both sides are warm processes of their own that do one run when told to, so that a pair is seconds
apart whatever the machine does meanwhile. A ratio is PyTorch's time by ours, of one pair: above 1 we
are faster; the table has the median and, in brackets, the least and the greatest. PyTorch runs in the
faster of its two layouts, and in bf16 under autocast. Steps, features and ops in bf16 run in turn with
ours in f32 too: the last column is that time by ours in bf16. Loss and bank are f32. Features come from
PyTorch under inference_mode, each batch norm folded into the convolution before it.

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
# Kinds that come in two layouts and two precisions.
NETWORKS = ("step", "features", "op")


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
    command = ["cargo", "bench", "--workspace", "--bench", "peer", "--locked", "--no-run"]
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


def compare(sides, pairs, repeat):
    """Medians of the sides in seconds, and the times that each of them took in a turn."""
    turns = [[sum(side.ask("run") for _ in range(repeat)) / repeat for side in sides] for _ in range(pairs)]
    return [statistics.median(side) for side in zip(*turns)], turns


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", default=list(CASES), choices=list(CASES), metavar="KIND",
                        help=", ".join(CASES))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--match", default="", help="only cases whose name contains this")
    parser.add_argument("--precisions", nargs="+", default=["f32", "bf16"], choices=["f32", "bf16"],
                        help="of steps, features and ops")
    args = parser.parse_args()
    python, peer = interpreter(), build()

    def ours(kind, name, precision):
        return Worker(peer, kind, name, precision, RAYON_NUM_THREADS=str(args.threads))

    def theirs(kind, name, precision):
        """PyTorch in its faster layout, warm."""
        layouts = ["contiguous", "channels_last"] if kind in NETWORKS else ["contiguous"]
        command = lambda layout: [python, str(HERE / "pirl_torch.py"), kind, name, layout, precision, str(args.threads)]
        workers = {layout: Worker(*command(layout)) for layout in layouts}
        seconds = {layout: worker.ask("run") for layout, worker in workers.items()}
        best = min(seconds, key=seconds.get)
        for layout, worker in workers.items():
            if layout != best:
                worker.close()
        print(f"{kind} {name} {precision}: PyTorch {best}", file=sys.stderr)
        return workers[best]

    print(f"Threads: {args.threads}; {cpu()}; pairs: {args.pairs}\n")
    columns = ["", "ours, ms", "PyTorch, ms", "ratio (least to greatest)", "ours, MiB", "PyTorch, MiB"]
    if "bf16" in args.precisions:
        columns.append("to ours in f32")
    print(row(columns))
    print(row("---" for _ in columns), flush=True)
    for kind in args.kinds:
        precisions = args.precisions if kind in NETWORKS else ["f32"]
        for name in (name for name in CASES[kind] if args.match in name):
            for precision in precisions:
                b, a = theirs(kind, name, precision), ours(kind, name, precision)
                sides = [a, b] if precision == "f32" else [a, b, ours(kind, name, "f32")]
                repeat = max(1, min(50, int(0.1 / a.ask("run"))))
                seconds, turns = compare(sides, args.pairs, repeat)
                ratios = sorted(b / a for a, b, *_ in turns)
                ratio = f"{statistics.median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})"
                own = f"{statistics.median(c / a for a, _, c in turns):.2f}x" if len(sides) == 3 else ""
                times = [number(1e3 * s) for s in seconds[:2]]
                memory = [number(side.ask("peak")) for side in (a, b)]
                for side in sides:
                    side.close()
                case = CASES[kind][name]
                title = case.get("title", name) if isinstance(case, dict) else name
                label = f"{title}, {precision}" if len(precisions) > 1 else title
                print(row([label, *times, ratio, *memory, own][:len(columns)]), flush=True)


def row(cells):
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def number(x):
    return f"{x:,.0f}" if x >= 100 else f"{x:.1f}"


def cpu():
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    names = {line.split(":")[1].strip() for line in lines if line.startswith("model name")}
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    sets = [s for s in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if s in flags]
    return f"{', '.join(names) or 'unknown CPU'} ({', '.join(sets)})"


if __name__ == "__main__":
    main()
