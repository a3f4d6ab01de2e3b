"""JPEGs like ImageNet's (500 x 375, about 70 KB), cut from the photographs of a Debian package.

    python photographs.py [--count 512] [--width 500]        (needs Pillow, apt-get and dpkg-deb; no root)

The package `mate-backgrounds` is downloaded and unpacked under target/photographs, where the images
stay; the same count and width give the same files. Prints the folder.
"""
import argparse
import pathlib
import random
import subprocess

from PIL import Image, ImageFilter

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = "mate-backgrounds"
WIDTH, QUALITY = 500, 96
# The photographs are soft; this gives the JPEGs about the size of ImageNet's.
SHARPEN = ImageFilter.UnsharpMask(radius=1, percent=150, threshold=0)


def sources(cache):
    """The photographs of the package."""
    unpacked = cache / PACKAGE
    if not unpacked.exists():
        subprocess.run(["apt-get", "download", "-qq", PACKAGE], cwd=cache, check=True)
        (package,) = cache.glob(f"{PACKAGE}_*.deb")
        subprocess.run(["dpkg-deb", "-x", package, unpacked], check=True)
    return sorted((unpacked / "usr/share/backgrounds/mate/nature").glob("*.jpg"))


def photographs(count, width=WIDTH):
    """A folder with `count` JPEGs: windows of random size and place, shrunk to `width` by 3/4 of it."""
    cache = ROOT / "target" / "photographs"
    name = f"{count}" if width == WIDTH else f"{count}-{width}"
    folder, size = cache / f"jpeg-{name}", (width, width * 3 // 4)
    if folder.exists():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    images = [Image.open(path).convert("RGB") for path in sources(cache)]
    rng = random.Random(0)
    making = cache / f"making-{name}"
    making.mkdir(exist_ok=True)
    for index in range(count):
        image = images[index % len(images)]
        most = min(whole / side for whole, side in zip(image.size, size))
        scale = rng.uniform(most / 2, most)
        wide, high = (int(side * scale) for side in size)
        left, top = rng.randint(0, image.width - wide), rng.randint(0, image.height - high)
        part = image.resize(size, Image.LANCZOS, (left, top, left + wide, top + high))
        part.filter(SHARPEN).save(making / f"{index:05}.jpg", quality=QUALITY)
    making.rename(folder)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=512)
    parser.add_argument("--width", type=int, default=WIDTH)
    args = parser.parse_args()
    print(photographs(args.count, args.width))
