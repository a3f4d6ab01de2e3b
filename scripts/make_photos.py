#!/usr/bin/env python3
"""Makes a folder of JPEG files in sub-folders of their classes, to try the own-images commands on.

    pirl data fetch cifar10 --output raw
    python3 scripts/make_photos.py raw 500 photos                 # needs Pillow
    python3 scripts/make_photos.py raw 2000 test_images --skip 1000

They are CIFAR-10's training images, made larger; `--side 32` keeps their size.
"""
import argparse
import pathlib

from PIL import Image

ROW, SIDE = 3073, 32  # a label, then a byte for each pixel of red, green and blue


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("raw", type=pathlib.Path, help="folder of CIFAR-10's binary files")
    options.add_argument("count", type=int)
    options.add_argument("output", type=pathlib.Path)
    options.add_argument("--skip", type=int, default=0, help="images left out before the first")
    options.add_argument("--side", type=int, default=400, help="width in pixels; the height is three quarters of it")
    options = options.parse_args()
    raw = b"".join((options.raw / f"data_batch_{part}.bin").read_bytes() for part in range(1, 6))
    names = (options.raw / "batches.meta.txt").read_text().split()
    for number in range(options.skip, options.skip + options.count):
        row = raw[number * ROW : (number + 1) * ROW]
        if len(row) < ROW:
            raise SystemExit(f"there are only {len(raw) // ROW} images, and number {number} was asked for")
        planes = [row[1 + SIDE * SIDE * c : 1 + SIDE * SIDE * (c + 1)] for c in range(3)]
        image = Image.merge("RGB", [Image.frombytes("L", (SIDE, SIDE), plane) for plane in planes])
        if options.side > SIDE:
            image = image.resize((options.side, options.side * 3 // 4), Image.Resampling.BICUBIC)
        folder = options.output / names[row[0]]
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{number:05}.jpg", quality=90)


if __name__ == "__main__":
    main()
