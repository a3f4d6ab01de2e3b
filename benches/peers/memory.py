#!/usr/bin/env python3
"""Peak anonymous memory of packing and of streaming, for sets of 10,000 and of 1,000,000 samples.

    python3 benches/peers/memory.py                     # needs 3 GiB under target/, and 10 minutes
    python3 benches/peers/memory.py --sizes 10000 --seconds 5

The samples are small JPEGs (photographs.py) that a list names over and over. `RssAnon` of the process is
read from /proc every 10 ms: pages of the mapped pack are the page cache's and not counted. Streaming is
`pirl data bench` of `imagenet-resnet50-jigsaw` as it stands, with four workers; opening is the whole of
`pirl data inspect`, which also counts the classes.

Pillow comes from PyPI into a virtual environment beside the build (target/peers); set PEERS_PYTHON to
use the interpreter of another. Needs cargo, apt-get and dpkg-deb.
"""
import argparse
import json
import pathlib
import subprocess
import tempfile
import time

from compare import HERE, ROOT, cpu, interpreter

COUNT, WIDTH, CLASSES = 512, 64, 1000


def anonymous(pid):
    """MiB of a process that are no file's; 0 once it is gone."""
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    kib = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(kib[0]) / 1024 if kib else 0.0


def watched(command):
    """What a command prints, its peak of anonymous memory in MiB, and its seconds."""
    start, peak = time.perf_counter(), 0.0
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(0.01)
        seconds = time.perf_counter() - start
        out.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed")
        return json.loads(out.read()), peak, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seconds", type=int, default=20, help="of streaming")
    parser.add_argument("--set", dest="settings", action="append", default=[], help="changes a key of the recipe")
    args = parser.parse_args()
    photographs = [interpreter(), str(HERE / "photographs.py"), "--count", str(COUNT), "--width", str(WIDTH)]
    folder = subprocess.run(photographs, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    build = ["cargo", "build", "--release", "--workspace", "--locked", "--bin", "pirl"]
    subprocess.run(build, cwd=ROOT, check=True)
    pirl = str(ROOT / "target" / "release" / "pirl")
    names = sorted(pathlib.Path(folder).glob("*.jpg"))
    settings = [word for setting in args.settings for word in ("--set", setting)]

    print(f"{cpu()}; {args.workers} workers")
    print("\n| samples | pack, MiB | packing, images/s | packing, anonymous MiB | opening, s | streaming, anonymous MiB |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    for size in args.sizes:
        with tempfile.TemporaryDirectory(dir=ROOT / "target") as scratch:
            scratch = pathlib.Path(scratch)
            lines = (f"{names[i % COUNT]}\t{i % CLASSES}\n" for i in range(size))
            (scratch / "list.txt").write_text("".join(lines))
            pack = str(scratch / "pack")
            source = ["--format", "list", "--input", str(scratch / "list.txt"), "--output", pack, "--json"]
            packed, packing, taken = watched([pirl, "data", "pack", *source])
            assert packed["packed"] == size, packed
            inspected, _, opening = watched([pirl, "data", "inspect", pack, "--json"])
            assert inspected["images"] == size, inspected
            bench = [pirl, "data", "bench", pack, "--workers", str(args.workers), "--json", *settings]
            _, streaming, _ = watched([*bench, "--seconds", str(args.seconds)])
            mebibytes = packed["bytes"] / (1 << 20)
            print(f"| {size:,} | {mebibytes:,.0f} | {size / taken:,.0f} | {packing:.0f} | {opening:.2f} | {streaming:.0f} |",
                  flush=True)


if __name__ == "__main__":
    main()
