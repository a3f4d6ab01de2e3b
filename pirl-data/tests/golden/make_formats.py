"""Odd images, and what Pillow makes of them, for tests/decode_golden.rs.

Other formats than JPEG and PNG, and JPEG and PNG files that break a rule that libjpeg and libpng do not
insist on. Writes formats/NAME (the file) and formats/NAME.rgb as make_decode.py does; what Pillow decodes
otherwise than it should is said where the file is made. Needs Pillow (with its QOI writer, 11.3 or later)
and NumPy:

    python3 pirl-data/tests/golden/make_formats.py
"""

import io
import pathlib
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

OUT = pathlib.Path(__file__).parent / "formats"
W, H = 21, 13


def picture():
    y, x = np.mgrid[0:H, 0:W]
    channels = [255 * x // W, 255 * y // H, 255 * (x + y) // (W + H)]
    return Image.fromarray(np.stack(channels, -1).astype(np.uint8))


def noisy(width, height):
    """All colours, some of them far apart."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:height, 0:width]
    waves = [127 + 127 * np.sin(x / 5.0), 255 * (x // 13 + y // 9) % 256, 127 + 127 * np.cos(y / 4.0 + x / 20.0)]
    values = np.stack(waves, -1) + rng.normal(0, 12, (height, width, 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def save(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def exif(orientation):
    return b"II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)


def xmp(orientation, element=False):
    inside = (
        f"<rdf:Description><tiff:Orientation>{orientation}</tiff:Orientation></rdf:Description>"
        if element
        else f'<rdf:Description tiff:Orientation="{orientation}"/>'
    )
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/">{inside}</x:xmpmeta>'.encode()


def segments(jpeg):
    """The header's segments as (marker, body), and all from the first scan on."""
    at, found = 2, []
    while jpeg[at + 1] != 0xDA:
        length = int.from_bytes(jpeg[at + 2 : at + 4], "big")
        found.append((jpeg[at + 1], jpeg[at + 4 : at + 2 + length]))
        at += 2 + length
    return found, jpeg[at:]


def joined(header, rest, between=b""):
    parts = [b"\xff" + bytes([m]) + struct.pack(">H", len(body) + 2) + body for m, body in header]
    return b"\xff\xd8" + between.join(parts) + rest


def chunk(kind, data):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def jpegs(rgb):
    plain = save(rgb, "JPEG", quality=92, subsampling=0)
    header, rest = segments(plain)
    adobe = (0xEE, b"Adobe\0\x64\0\0\0\0")
    jfif, tables = header[0], header[1:]
    yield "jfif-and-adobe-0.jpg", joined([jfif, (0xEE, adobe[1] + b"\0"), *tables], rest)
    yield "jfif-and-adobe-2.jpg", joined([jfif, (0xEE, adobe[1] + b"\2"), *tables], rest)
    yield "adobe-0-alone.jpg", joined([(0xEE, adobe[1] + b"\0"), *tables], rest)
    yield "adobe-1-alone.jpg", joined([(0xEE, adobe[1] + b"\1"), *tables], rest)
    yield "no-application-segment.jpg", joined(tables, rest)

    # The components are called R, G and B: no YCbCr, if there is no JFIF segment.
    def lettered(marker, body):
        if marker != 0xC0:
            return marker, body
        return marker, body[:6] + b"".join(bytes([i]) + body[7 + 3 * n : 9 + 3 * n] for n, i in enumerate(b"RGB"))

    scan = rest[:5] + b"".join(bytes([i]) + rest[6 + 2 * n : 7 + 2 * n] for n, i in enumerate(b"RGB")) + rest[11:]
    named = [lettered(*segment) for segment in tables]
    yield "letters-rgb.jpg", joined(named, scan)
    without = [(marker, body) for marker, body in header if marker != 0xC4]
    yield "motion-jpeg.jpg", joined(without, rest)
    yield "junk-between.jpg", joined(header, rest, between=b"\x00junk\x12")
    yield "fill-bytes.jpg", joined(header, rest, between=b"\xff\xff\xff")
    yield "trailing-junk.jpg", plain + b"\xff\xd8\xff trailing" * 9
    for element in (False, True):
        body = b"http://ns.adobe.com/xap/1.0/\0" + xmp(6, element)
        yield f"xmp-6{'-element' if element else ''}.jpg", joined([header[0], (0xE1, body), *tables], rest)
    both = save(rgb, "JPEG", quality=92, subsampling=0, exif=b"Exif\0\0" + exif(3), xmp=xmp(6))
    yield "exif-3-xmp-6.jpg", both
    yield "restarts-odd.jpg", save(rgb, "JPEG", quality=92, subsampling=2, restart_marker_blocks=1)


def pngs(rgb):
    plain = save(rgb, "PNG")
    end = plain.index(b"IDAT") - 4
    yield "late-exif.png", plain[:-12] + chunk(b"eXIf", exif(8)) + plain[-12:]
    text = b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(6)
    yield "xmp-6.png", plain[:end] + chunk(b"iTXt", text) + plain[end:]
    yield "late-xmp-8.png", plain[:-12] + chunk(b"iTXt", text.replace(b'"6"', b'"8"')) + plain[-12:]
    yield "trailing.png", plain + b"more"
    yield "suggested-palette.png", plain[:end] + chunk(b"zzZz", b"private") + plain[end:]


def others(rgb):
    grey, alpha = rgb.convert("L"), rgb.copy()
    alpha.putalpha(grey)
    palette = rgb.quantize(200)
    yield "lossless.webp", save(rgb, "WEBP", lossless=True)
    yield "lossy.webp", save(rgb, "WEBP", quality=90)
    for kind, options in (("lossless", {"lossless": True}), ("lossy", {"quality": 90})):
        yield f"{kind}-one-pixel.webp", save(rgb.crop((9, 5, 10, 6)), "WEBP", **options)
        yield f"{kind}-widest.webp", save(rgb.resize((16383, 1)), "WEBP", **options)
    wide = noisy(150, 37)
    yield "lossy-wide.webp", save(wide, "WEBP", quality=60)
    yield "lossy-even.webp", save(wide.crop((9, 1, 73, 35)), "WEBP", quality=95)
    yield "lossy-exif.webp", save(rgb, "WEBP", quality=80, exif=b"Exif\0\0" + exif(6))
    yield "lossy-alpha.webp", save(alpha, "WEBP", quality=90)
    yield "alpha.webp", save(alpha, "WEBP", lossless=True, exact=True)
    yield "orientation.webp", save(rgb, "WEBP", lossless=True, exif=b"Exif\0\0" + exif(6))
    yield "xmp.webp", save(rgb, "WEBP", lossless=True, xmp=xmp(8))
    flipped = ImageOps.flip(rgb)
    yield "animated.webp", save(rgb, "WEBP", lossless=True, save_all=True, append_images=[flipped])
    yield "webp-as.jpg", save(rgb, "WEBP", lossless=True)
    yield "png-as.jpg", save(rgb, "PNG")

    yield "rgb.bmp", save(rgb, "BMP")
    yield "grey.bmp", save(grey, "BMP")
    yield "palette.bmp", save(palette, "BMP")
    yield "one-bit.bmp", save(grey.convert("1"), "BMP")
    yield "alpha.bmp", save(alpha, "BMP")
    down = save(rgb, "BMP")
    stride = (3 * W + 3) // 4 * 4
    rows = [down[54 + stride * row : 54 + stride * (row + 1)] for row in range(H)]
    yield "top-down.bmp", down[:22] + struct.pack("<i", -H) + down[26:54] + b"".join(rows[::-1])
    # OS/2's header of 12 bytes.
    core = struct.pack("<IHHHH", 12, W, H, 1, 24)
    yield "os2.bmp", b"BM" + struct.pack("<IHHI", 26 + stride * H, 0, 0, 26) + core + b"".join(rows)

    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"):
        yield f"{compression}.tif", save(rgb, "TIFF", compression=compression)
    yield "grey.tif", save(grey, "TIFF")
    yield "one-bit.tif", save(grey.convert("1"), "TIFF")
    yield "alpha.tif", save(alpha, "TIFF")
    yield "cmyk.tif", save(rgb.convert("CMYK"), "TIFF")
    yield "orientation.tif", save(rgb, "TIFF", tiffinfo={274: 6})
    yield "pages.tif", save(rgb, "TIFF", save_all=True, append_images=[flipped])
    deep = np.random.default_rng(0).integers(0, 65536, (H, W)).astype(np.uint16)
    yield "grey-16.tif", save(Image.fromarray(deep), "TIFF")
    data = deep.astype(">u2").tobytes()
    entries = [(256, 4, W), (257, 4, H), (258, 3, 16 << 16), (259, 3, 1 << 16), (262, 3, 1 << 16), (273, 4, 8 + 2 + 108 + 4), (277, 3, 1 << 16), (278, 4, H), (279, 4, len(data))]
    table = struct.pack(">H", 9) + b"".join(struct.pack(">HHII", t, k, 1, v) for t, k, v in entries) + b"\0" * 4
    yield "big-endian-16.tif", b"MM\0*\0\0\0\x08" + table + data

    yield "palette.gif", save(palette, "GIF")
    yield "interlaced.gif", save(palette, "GIF", interlace=1)
    yield "grey.gif", save(grey, "GIF")
    yield "animated.gif", save(palette, "GIF", save_all=True, append_images=[flipped.quantize(200)])
    yield "gif87.gif", save(palette, "GIF").replace(b"GIF89a", b"GIF87a", 1)

    yield "binary.ppm", save(rgb, "PPM")
    yield "binary.pgm", save(grey, "PPM")
    yield "bits.pbm", save(grey.convert("1"), "PPM")
    values = np.asarray(rgb).reshape(-1)
    text = " ".join(str(value) for value in values)
    yield "plain.ppm", f"P3\n# a comment\n{W} {H}\n255\n{text}\n".encode()
    bits = (np.asarray(grey.convert("1")) == 0).astype(int)
    yield "plain.pbm", ("P1\n%d %d\n" % (W, H) + "\n".join("".join(map(str, row)) for row in bits)).encode()
    yield "grey-16.pgm", b"P5 %d %d 65535\n" % (W, H) + deep.astype(">u2").tobytes()
    small = (np.asarray(grey) // 17).astype(np.uint8)
    yield "maximum-15.pgm", b"P5 %d %d 15\n" % (W, H) + small.tobytes()
    yield "rgb.pam", (
        b"P7\nWIDTH %d\nHEIGHT %d\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n" % (W, H) + rgb.tobytes()
    )
    yield "rgb.qoi", save(rgb, "QOI")
    yield "alpha.qoi", save(alpha, "QOI")


def expected(name, data):
    if name.endswith(".pam"):
        return picture()  # which Pillow does not read
    image = Image.open(io.BytesIO(data))
    image.load()
    if name.endswith((".tif", ".pgm")) and image.mode in ("I;16", "I;16B", "I"):
        # Pillow clips 16-bit grey at 255: of all kinds we take the upper byte.
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    return ImageOps.exif_transpose(image).convert("RGB")


OUT.mkdir(exist_ok=True)
for make in (jpegs, pngs, others):
    for name, data in make(picture()):
        image = expected(name, data)
        (OUT / name).write_bytes(data)
        size = struct.pack("<HH", *image.size)
        (OUT / f"{name}.rgb").write_bytes(size + image.tobytes())
        print(name, image.size)
