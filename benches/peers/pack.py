#!/usr/bin/env python3
"""Times `pirl data pack` against a straightforward Pillow script (pack_pillow.py), in turn: A B A B.

    python3 benches/peers/pack.py

The same photographs (photographs.py), twice: with the shorter side shrunk to 256 pixels and encoded
again with quality 95, and with the JPEGs kept as they are once they are known to decode. Pillow runs as
one process, as such scripts do, and as a pool of as many as there are cores. A ratio is Pillow's time by
ours, of one pair; beside it the processor time of an image, which other programs disturb less. Ours, the start of the process included, also computes the fingerprint and brings the
pack to the disk; Pillow's is warm and leaves the writing to the system. Files come from the page cache.

Pillow comes from PyPI into a virtual environment beside the build (target/peers); set PEERS_PYTHON to
use the interpreter of another. Needs cargo, apt-get and dpkg-deb.
"""
import argparse
import os
import pathlib
import resource
import statistics
import subprocess
import tempfile
import time

from compare import HERE, ROOT, Worker, cpu, interpreter

COUNT = 512


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    args = parser.parse_args()
    python = interpreter()
    command = [python, str(HERE / "photographs.py"), "--count", str(COUNT)]
    folder = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    build = ["cargo", "build", "--release", "--workspace", "--locked", "--bin", "pirl"]
    subprocess.run(build, cwd=ROOT, check=True)
    pirl = str(ROOT / "target" / "release" / "pirl")
    cores = len(os.sched_getaffinity(0))

    with tempfile.TemporaryDirectory(dir=ROOT / "target") as scratch:
        output = str(pathlib.Path(scratch) / "pack")

        def ours(flags):
            pack = [pirl, "data", "pack", "--format", "image-folder", "--input", folder, "--output", output]
            start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(pack + flags, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
            return seconds, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime

        print(f"{cpu()}; {cores} cores; {COUNT} JPEGs of 500 x 375; pairs: {args.pairs}")
        print("\n| | ours, images/s | Pillow, images/s | ratio (least to greatest) | ours, CPU ms | Pillow, CPU ms |")
        print("| --- | --- | --- | --- | --- | --- |", flush=True)
        works = [("shorter side 256, quality 95", "resize", ["--resize-shorter", "256", "--quality", "95"]),
                 ("kept as they are", "keep", [])]
        for title, work, flags in works:
            for processes in sorted({1, cores}):
                peer = Worker(python, str(HERE / "pack_pillow.py"), folder, f"{output}-pillow", work, str(processes))
                ours(flags)
                pairs = [(*ours(flags), peer.ask("run"), peer.ask("cpu")) for _ in range(args.pairs)]
                peer.close()
                ratios = sorted(b / a for a, _, b, _ in pairs)
                a, cpu_a, b, cpu_b = (statistics.median(side) / COUNT for side in zip(*pairs))
                ratio = f"{statistics.median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})"
                name = "one process" if processes == 1 else f"{processes} processes"
                theirs = f"{1e3 * cpu_b:.2f}" if processes == 1 else ""  # the pool's own is not seen
                print(f"| {title}; Pillow in {name} | {1 / a:.0f} | {1 / b:.0f} | {ratio} | {1e3 * cpu_a:.2f} | {theirs} |",
                      flush=True)


if __name__ == "__main__":
    main()
