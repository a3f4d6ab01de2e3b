"""JPEG XL files of libjxl, and what libjxl makes of them, for tests/jxl.rs.

Writes jxl/NAME (the file) and jxl/NAME.rgb as make_decode.py does. Needs imagecodecs, NumPy and Pillow:

    python3 pirl-data/tests/golden/make_jxl.py
"""

import io
import pathlib
import struct

import imagecodecs
import numpy as np
from PIL import Image

OUT = pathlib.Path(__file__).parent / "jxl"
W, H = 53, 37


def picture():
    y, x = np.mgrid[0:H, 0:W]
    wave = (40 * np.sin(x / 5) + 40 * np.cos(y / 7)).astype(int)
    channels = [255 * x // W, np.clip(128 + wave, 0, 255), 255 * (x + y) // (W + H)]
    return np.stack(channels, -1).astype(np.uint8)


def jpeg(pixels, orientation=None):
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=90, exif=exif)
    return out.getvalue()


def files(rgb):
    encode = imagecodecs.jpegxl_encode
    grey = rgb[..., 1].copy()
    alpha = np.concatenate([rgb, grey[..., None]], -1)
    deep = rgb.astype(np.uint16) * 257 + 91
    yield "lossless.jxl", encode(rgb, lossless=True, usecontainer=False)
    yield "container.jxl", encode(rgb, lossless=True, usecontainer=True)
    yield "lossy.jxl", encode(rgb, distance=1.0, usecontainer=False)
    yield "lossy-slow.jxl", encode(rgb, distance=2.0, effort=9, usecontainer=True)
    yield "grey.jxl", encode(grey, lossless=True)
    yield "grey-alpha.jxl", encode(alpha[..., 2:], lossless=True)
    yield "alpha.jxl", encode(alpha, lossless=True)
    yield "deep.jxl", encode(deep, lossless=True)
    yield "deep-grey.jxl", encode(deep[..., 0].copy(), lossless=True)
    yield "animated.jxl", encode(np.stack([rgb, rgb[::-1], rgb[:, ::-1]]), lossless=True)
    yield "of-a-jpeg.jxl", imagecodecs.jpegxl_encode_jpeg(jpeg(rgb))
    for orientation in (3, 6, 8):
        turned = imagecodecs.jpegxl_encode_jpeg(jpeg(rgb, orientation))
        yield f"of-a-jpeg-turned-{orientation}.jxl", turned
    # Larger than a group of 256 pixels a side.
    tall = np.tile(rgb, (9, 2, 1))
    yield "groups.jxl", encode(tall, lossless=True)


def expected(data):
    pixels = imagecodecs.jpegxl_decode(data)
    if pixels.ndim == 4:
        pixels = pixels[0]
    if pixels.dtype == np.uint16:
        pixels = (pixels >> 8).astype(np.uint8)
    if pixels.ndim == 2 or pixels.shape[-1] == 2:
        grey = pixels if pixels.ndim == 2 else pixels[..., 0]
        pixels = np.repeat(grey[..., None], 3, -1)
    return np.ascontiguousarray(pixels[..., :3])


OUT.mkdir(exist_ok=True)
for name, data in files(picture()):
    pixels = expected(data)
    (OUT / name).write_bytes(data)
    height, width = pixels.shape[:2]
    (OUT / f"{name}.rgb").write_bytes(struct.pack("<HH", width, height) + pixels.tobytes())
    print(name, len(data), pixels.shape)
