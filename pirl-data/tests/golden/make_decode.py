"""Images of every kind, and what Pillow makes of them, for tests/decode_golden.rs.

Writes decode/NAME (the file) and decode/NAME.rgb (`ImageOps.exif_transpose(image).convert("RGB")`,
width and height as little-endian u16 before the pixels). Needs Pillow and NumPy:

    python3 pirl-data/tests/golden/make_decode.py
"""

import io
import pathlib
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

OUT = pathlib.Path(__file__).parent / "decode"
W, H = 21, 13


def picture():
    """Smooth, different in every channel, and odd in size."""
    y, x = np.mgrid[0:H, 0:W]
    channels = [255 * x // W, 255 * y // H, 255 * (x + y) // (W + H)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def jpeg(image, **options):
    out = io.BytesIO()
    image.save(out, "JPEG", quality=92, **options)
    return out.getvalue()


def png(image, **options):
    out = io.BytesIO()
    image.save(out, "PNG", **options)
    return out.getvalue()


def exif(orientation, order):
    """The Exif of one tag, in either byte order."""
    header = b"II*\0\x08\0\0\0" if order == "<" else b"MM\0*\0\0\0\x08"
    entry = struct.pack(order + "HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)
    return b"Exif\0\0" + header + entry


def chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def raw_png(samples, depth, colour, interlaced=False, extra=b""):
    """A PNG of `samples` (rows, columns, channels) whose depth Pillow cannot write."""
    def rows(part):
        kind = ">u2" if depth == 16 else "u1"
        return b"".join(b"\0" + row.astype(kind).tobytes() for row in part)

    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [samples[t::h, l::w] for t, l, h, w in passes] if interlaced else [samples]
    data = b"".join(rows(part) for part in parts if part.size)
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra
        + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    )


def files():
    rgb = picture()
    grey = rgb.convert("L")
    cmyk = jpeg(rgb.convert("CMYK"))
    yield "rgb-444.jpg", jpeg(rgb, subsampling=0)
    yield "rgb-422.jpg", jpeg(rgb, subsampling=1)
    yield "rgb-420.jpg", jpeg(rgb, subsampling=2)
    yield "progressive.jpg", jpeg(rgb, progressive=True, subsampling=0)
    yield "restarts.jpg", jpeg(rgb, subsampling=0, restart_marker_blocks=1)
    yield "grey.jpg", jpeg(grey)
    yield "grey-progressive.jpg", jpeg(grey, progressive=True)
    yield "cmyk.jpg", cmyk
    # Adobe's marker ends with the transform: 0 for CMYK, 2 for YCCK.
    at = cmyk.index(b"Adobe") + 11
    yield "ycck.jpg", cmyk[:at] + b"\x02" + cmyk[at + 1 :]
    for orientation in range(1, 9):
        order = "<>"[orientation % 2]
        yield f"exif-{orientation}.jpg", jpeg(rgb, exif=exif(orientation, order), subsampling=0)
    yield "exif-9.jpg", jpeg(rgb, exif=exif(9, "<"), subsampling=0)

    yield "rgb.png", png(rgb)
    yield "rgba.png", png(Image.merge("RGBA", [*rgb.split(), grey]))
    yield "grey.png", png(grey)
    yield "grey-alpha.png", png(Image.merge("LA", [grey, grey]))
    yield "grey-1.png", png(grey.convert("1"))
    palette = rgb.quantize(200)
    yield "palette.png", png(palette)
    yield "palette-transparent.png", png(palette, transparency=bytes(range(200)))
    yield "palette-4.png", png(rgb.quantize(16), bits=4)
    yield "palette-1.png", png(rgb.quantize(2), bits=1)
    deep = np.random.default_rng(0).integers(0, 65536, (H, W, 4))
    yield "grey-16.png", raw_png(deep[..., :1], 16, 0)
    yield "grey-alpha-16.png", raw_png(deep[..., :2], 16, 4)
    yield "rgb-16.png", raw_png(deep[..., :3], 16, 2)
    yield "rgba-16.png", raw_png(deep, 16, 6)
    shallow = np.asarray(rgb)
    yield "interlaced.png", raw_png(shallow, 8, 2, interlaced=True)
    yield "exif-6.png", raw_png(shallow, 8, 2, extra=chunk(b"eXIf", exif(6, ">")[6:]))


OUT.mkdir(exist_ok=True)
for name, data in files():
    image = Image.open(io.BytesIO(data))
    image.load()
    mode = image.mode
    if mode == "I;16":
        # Pillow clips 16-bit grey at 255, and keeps the upper byte of every other kind: so do we of all.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = ImageOps.exif_transpose(image).convert("RGB")
    (OUT / name).write_bytes(data)
    size = struct.pack("<HH", *image.size)
    (OUT / f"{name}.rgb").write_bytes(size + image.tobytes())
    print(name, mode, image.size)
