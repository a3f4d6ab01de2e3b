#!/usr/bin/env python3
"""Times the PIRL step, feature extraction, the loss, the bank, probes, single convolutions and the ops of
detection against PyTorch's, torchvision's and scikit-learn's, in turn: A B A B.

    python3 benches/peers/compare.py                     # everything, as one Markdown table
    python3 benches/peers/compare.py step loss --pairs 9
    python3 benches/peers/compare.py op --match res4 --precisions f32
    python3 benches/peers/compare.py guard               # what became slower?

Both sides are warm processes of their own that do one run when told to, so that a pair is seconds
apart whatever the machine does meanwhile; a turn begins with a tenth of a second of runs that are not
timed. A ratio is PyTorch's time by ours, of one pair: above 1 we are faster; the table has the median
and, in brackets, the least and the greatest. PyTorch runs in the faster of its two layouts, and in bf16
under autocast. Steps, features and ops in bf16 run in turn with ours in f32 without Winograd's
convolutions too: the last column is that time by ours in bf16. Loss, bank and probes are f32. Features
come from PyTorch under inference_mode, each batch norm folded into the convolution before it.

`guard` takes ten minutes: it measures steps, features, loss, bank and probes in the precisions that the processor has
products of, and compares the ratios, and our memory, with those in guard.json for the same kind of processor.
It ends with an error that lists what is worse by more than 10 %. `guard --record` writes them there.

`--instructions avx2` holds both sides to AVX2 (`PIRL_INSTRUCTIONS`, and what PyTorch, oneDNN and MKL read). The `gemm`
crate, whose products the loss and the linear probe are, does not heed that, so this is for steps, features and ops;
`guard` then measures the first two, on record by themselves.

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
# Ratios and memory on record, by processor and case.
GUARD = HERE / "guard.json"
# Kinds that come in two layouts and two precisions.
NETWORKS = ("step", "features", "op")
# What holds each side to the instructions of older processors.
HELD = {
    "avx2": {
        "PIRL_INSTRUCTIONS": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    },
}
# Seconds of runs that are not timed when a side's turn begins: threads that slept share a processor at first.
WARM = 0.1


def interpreter():
    """A Python that has torch and torchvision."""
    if "PEERS_PYTHON" in os.environ:
        return os.environ["PEERS_PYTHON"]
    folder = ROOT / "target" / "peers"
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    if subprocess.run([python, "-c", "import torch, torchvision, numpy, sklearn"], stderr=subprocess.DEVNULL).returncode:
        print("installing PyTorch into", folder, file=sys.stderr)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "torch", "torchvision", "numpy", "scikit-learn"], check=True)
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
        print(what, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def turn(self, repeat):
        """The mean of so many runs, warm."""
        time.sleep(0.2)  # the other side's threads stop spinning
        warm = time.monotonic() + WARM
        while time.monotonic() < warm:
            self.ask("run")
        return sum(self.ask("run") for _ in range(repeat)) / repeat

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def compare(sides, pairs, repeat):
    """Medians of the sides in seconds, and the times that each of them took in a turn."""
    turns = [[side.turn(repeat) for side in sides] for _ in range(pairs)]
    return [statistics.median(side) for side in zip(*turns)], turns


def measure(args, kinds, precisions):
    """Times the cases of these kinds one after the other: dictionaries with `key`, `title`, the `seconds` of
    ours and of PyTorch, their `ratios` from the least, `memory` in MiB, and ours in f32 without
    Winograd's convolutions by ours (`own`)."""
    python, peer = interpreter(), build()

    def ours(kind, name, precision):
        return Worker(peer, kind, name, precision, RAYON_NUM_THREADS=str(args.threads))

    def theirs(kind, name, precision):
        """PyTorch in its faster layout, warm."""
        layouts = ["contiguous", "channels_last"] if kind in NETWORKS else ["contiguous"]
        command = lambda layout: [python, str(HERE / "pirl_torch.py"), kind, name, layout, precision, str(args.threads)]
        workers = {layout: Worker(*command(layout)) for layout in layouts}
        seconds = {layout: min(worker.turn(1) for _ in range(3)) for layout, worker in workers.items()}
        best = min(seconds, key=seconds.get)
        for layout, worker in workers.items():
            if layout != best:
                worker.close()
        print(f"{kind} {name} {precision}: PyTorch {best}", file=sys.stderr)
        return workers[best]

    for kind in kinds:
        several = kind in NETWORKS and len(precisions) > 1
        for name in (name for name in CASES[kind] if args.match in name):
            for precision in precisions if kind in NETWORKS else ["f32"]:
                b, a = theirs(kind, name, precision), ours(kind, name, precision)
                sides = [a, b] if precision == "f32" else [a, b, ours(kind, name, "direct")]
                repeat = max(1, min(50, int(0.1 / a.turn(1))))
                seconds, turns = compare(sides, args.pairs, repeat)
                memory = [side.ask("peak") for side in (a, b)]
                for side in sides:
                    side.close()
                case = CASES[kind][name]
                title = case.get("title", name) if isinstance(case, dict) else name
                yield {
                    "key": f"{kind} {name} {precision}",
                    "title": f"{title}, {precision}" if several else title,
                    "seconds": seconds[:2],
                    "ratios": sorted(b / a for a, b, *_ in turns),
                    "memory": memory,
                    "own": statistics.median(c / a for a, _, c in turns) if len(sides) == 3 else None,
                }


def table(args):
    """Everything that was asked for, as Markdown."""
    print(f"Threads: {args.threads}; {cpu(args)}; pairs: {args.pairs}\n")
    columns = ["", "ours, ms", "PyTorch, ms", "ratio (least to greatest)", "ours, MiB", "PyTorch, MiB"]
    if "bf16" in args.precisions:
        columns.append("to ours in f32, direct")
    print(row(columns))
    print(row("---" for _ in columns), flush=True)
    for found in measure(args, args.kinds or (NETWORKS if args.instructions else CASES), args.precisions):
        ratios = found["ratios"]
        cells = [
            found["title"],
            *(number(1e3 * seconds) for seconds in found["seconds"]),
            f"{statistics.median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})",
            *(number(memory) for memory in found["memory"]),
            f"{found['own']:.2f}x" if found["own"] else "",
        ]
        print(row(cells[:len(columns)]), flush=True)


def guard(args):
    """Steps, features, loss, bank and probes beside the ratios and the memory on record for such a processor."""
    records = json.loads(GUARD.read_text())
    name = cpu(args)
    before = records.get(name)
    if before is None and not args.record:
        sys.exit(f"{GUARD.name} has nothing of {name}, only of {', '.join(records)}; --record adds it")
    precisions = ["f32", "bf16"] if "bf16" in name and not args.instructions else ["f32"]
    kinds = ["step", "features", *([] if args.instructions else ["loss", "bank", "probe"])]
    now, worse = {}, []
    for found in measure(args, kinds, precisions):
        key, memory = found["key"], found["memory"][0]
        ratio = statistics.median(found["ratios"])
        now[key] = {"ratio": round(ratio, 2), "MiB": round(memory)}
        old = (before or {}).get(key)
        line = f"{key}: {ratio:.2f}x of PyTorch ({found['ratios'][0]:.2f} to {found['ratios'][-1]:.2f}), {memory:,.0f} MiB"
        if old:
            line += f"; on record {old['ratio']:.2f}x, {old['MiB']:,} MiB"
            if ratio < 0.9 * old["ratio"] or memory > 1.1 * old["MiB"]:
                worse.append(line)
        print(line, flush=True)
    if args.record:
        GUARD.write_text(json.dumps(records | {name: now}, indent=2, sort_keys=True) + "\n")
    elif worse:
        sys.exit("\n".join(["", "worse than on record by more than 10 %:", *worse]))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kinds", nargs="*", choices=[*CASES, "guard"], metavar="KIND",
                        help=f"{', '.join(CASES)} (default: all of them), or guard")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--match", default="", help="only cases whose name contains this")
    parser.add_argument("--precisions", nargs="+", default=["f32", "bf16"], choices=["f32", "bf16"],
                        help="of steps, features and ops")
    parser.add_argument("--instructions", choices=HELD, help="hold both sides to these")
    parser.add_argument("--record", action="store_true", help="guard: put what was measured on record")
    args = parser.parse_args()
    if args.instructions and not {*NETWORKS, "guard"}.issuperset(args.kinds):
        parser.error(f"--instructions is for {', '.join(NETWORKS)} and guard")
    os.environ.update(HELD.get(args.instructions, {}))
    if "guard" not in args.kinds:
        return table(args)
    if args.kinds != ["guard"] or args.match:
        parser.error("guard measures what is on record, all of it")
    guard(args)


def row(cells):
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def number(x):
    return f"{x:,.0f}" if x >= 100 else f"{x:.1f}"


def cpu(args):
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    names = {line.split(":")[1].strip() for line in lines if line.startswith("model name")}
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    sets = [s for s in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if s in flags]
    held = f", held to {args.instructions}" if args.instructions else ""
    return f"{', '.join(names) or 'unknown CPU'} ({', '.join(sets)}){held}"


if __name__ == "__main__":
    main()
