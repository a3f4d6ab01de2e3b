#!/usr/bin/env python3
"""Times `pirl data pack` of WebP, TIFF and tar against Pillow's own decoding, in turn: A B A B.

    python3 benches/peers/pack_formats.py

The photographs of photographs.py as lossy WebP (quality 90), as TIFF (LZW, and as it stands), and as JPEGs in a
tar archive. Pillow only decodes them to RGB, in a pool of as many processes as there are cores, warm, files in
the page cache; ours, the start of the process included, decodes, encodes again what is packed in another
format (TIFF, and WebP with `--reencode`), and brings the pack to the disk. A ratio is Pillow's time by
ours, of one pair: above 0.8 packing keeps up.

Then the three packs of the WebP files are loaded in turn by one worker (`pirl data bench`: two crops, nine patches,
colours).

Pillow as in pack.py; set PEERS_PYTHON to an interpreter that has it.
"""
import argparse
import io
import json
import multiprocessing
import os
import pathlib
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time

from compare import HERE, ROOT, Worker, cpu, interpreter

COUNT = 512
# How the images are packed, and with which options.
WEBP = [("WebP, as it is", []), ("PNG", ["--reencode", "png"]), ("JPEG", ["--reencode", "jpeg"])]
TIFF = [("PNG", []), ("JPEG", ["--reencode", "jpeg"])]
TAR = [("JPEG, as it is", [])]


def decode(data):
    from PIL import Image

    with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as file:
        file.convert("RGB").load()


def peer(source):
    """Decodes all of a folder or an archive for each line `run`; prints the seconds."""
    source = pathlib.Path(source)
    pool = multiprocessing.Pool(len(os.sched_getaffinity(0)))

    def images():
        if source.is_dir():
            yield from sorted(source.iterdir())
            return
        with tarfile.open(source) as archive:
            for member in archive:
                yield archive.extractfile(member).read()

    def run():
        start = time.perf_counter()
        for _ in pool.imap_unordered(decode, images(), chunksize=8):
            pass
        return time.perf_counter() - start

    run()  # the files come into the page cache, the pool starts
    print("ready", flush=True)
    for _ in sys.stdin:
        print(run(), flush=True)
    pool.terminate()


def convert(photographs, folder, copies):
    """Writes the photographs in each format, so many times."""
    from PIL import Image

    formats = {"webp": {"quality": 90}, "lzw.tif": {"compression": "tiff_lzw"}, "tif": {}}
    for name in formats:
        (folder / name).mkdir()
    with tarfile.open(folder / "jpeg.tar", "w") as archive:
        for path in sorted(pathlib.Path(photographs).glob("*.jpg")):
            image = Image.open(path).convert("RGB")
            for name, options in formats.items():
                saved = folder / name / f"{path.stem}.{name}"
                image.save(saved, **options)
                for copy in range(1, copies):
                    os.link(saved, folder / name / f"{path.stem}-{copy}.{name}")
            for copy in range(copies):
                archive.add(path, f"{path.stem}-{copy}.jpg")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--copies", type=int, default=1, help="of each photograph: more outweigh the start of a process")
    parser.add_argument("--seconds", type=int, default=5, help="of one run of the loader")
    parser.add_argument("--peer", metavar="FOLDER|TAR", help="be the other side")
    parser.add_argument("--convert", nargs=2, metavar="FOLDER", help="only write the formats")
    args = parser.parse_args()
    if args.peer:
        return peer(args.peer)
    if args.convert:
        return convert(args.convert[0], pathlib.Path(args.convert[1]), args.copies)
    python = interpreter()
    command = [python, str(HERE / "photographs.py"), "--count", str(COUNT)]
    photographs = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    build = ["cargo", "build", "--release", "--workspace", "--locked", "--bin", "pirl"]
    subprocess.run(build, cwd=ROOT, check=True)
    pirl = str(ROOT / "target" / "release" / "pirl")
    cores = len(os.sched_getaffinity(0))

    with tempfile.TemporaryDirectory(dir=ROOT / "target") as scratch:
        scratch = pathlib.Path(scratch)
        writing = [python, __file__, "--convert", photographs, str(scratch), "--copies", str(args.copies)]
        subprocess.run(writing, check=True)
        sources = [("WebP, quality 90", scratch / "webp", "image-folder", WEBP),
                   ("TIFF, LZW", scratch / "lzw.tif", "image-folder", TIFF),
                   ("TIFF", scratch / "tif", "image-folder", TIFF),
                   ("tar of JPEG", scratch / "jpeg.tar", "webdataset", TAR)]

        def ours(source, reader, flags, output=scratch / "pack"):
            pack = [pirl, "data", "pack", "--format", reader, "--input", str(source), "--output", str(output)]
            start = time.perf_counter()
            subprocess.run(pack + flags, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            return time.perf_counter() - start

        count = COUNT * args.copies
        print(f"{cpu()}; {cores} cores; {count} photographs of 500 x 375; pairs: {args.pairs}")
        print("\n| | packed as | ours, images/s | Pillow decodes, images/s | ratio (least to greatest) |")
        print("| --- | --- | --- | --- | --- |", flush=True)
        for title, source, reader, works in sources:
            other = Worker(python, __file__, "--peer", str(source))
            for packed, flags in works:
                ours(source, reader, flags)
                pairs = [(ours(source, reader, flags), other.ask("run")) for _ in range(args.pairs)]
                ratios = sorted(b / a for a, b in pairs)
                a, b = (statistics.median(side) / count for side in zip(*pairs))
                ratio = f"{statistics.median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})"
                print(f"| {title} | {packed} | {1 / a:.0f} | {1 / b:.0f} | {ratio} |", flush=True)
            other.close()

        def load(pack):
            bench = [pirl, "data", "bench", str(pack), "--json", "--workers", "1", "--seconds", str(args.seconds)]
            bench += ["--set", "train.batch_size=32"]
            return json.loads(subprocess.run(bench, check=True, stdout=subprocess.PIPE, text=True).stdout)

        for packed, flags in WEBP:
            ours(scratch / "webp", "image-folder", flags, scratch / packed)
        loaded = {packed: [] for packed, _ in WEBP}
        for _ in range(args.pairs):
            for packed, found in loaded.items():
                found.append(load(scratch / packed))
        print("\n| loaded | MB | images/s (least to greatest) | decoding, ms an image |")
        print("| --- | --- | --- | --- |")
        for packed, found in loaded.items():
            rates = sorted(run["images_per_second"] for run in found)
            decoding = statistics.median(1000 * run["stages"]["decode"] / run["images_per_second"] for run in found)
            size = (scratch / f"{packed}.safetensors").stat().st_size / 1e6
            rate = f"{statistics.median(rates):.0f} ({rates[0]:.0f} to {rates[-1]:.0f})"
            print(f"| {packed} | {size:.0f} | {rate} | {decoding:.2f} |")


if __name__ == "__main__":
    main()
