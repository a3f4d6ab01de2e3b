"""Images of other numbers of channels and of more than 8 bits, as NumPy reads them, for tests/channels.rs.

Writes channels/NAME (a file) and channels/cases.json: what a file becomes with so many channels and by a rule
for the depth, as hexadecimal bytes: row, then column, then channel. `null`: it cannot. Needs NumPy, Pillow and
tifffile:

    python3 pirl-data/tests/golden/make_channels.py
"""

import json
import pathlib

import numpy as np
import tifffile
from PIL import Image

HERE = pathlib.Path(__file__).parent
OUT = HERE / "channels"
W, H = 11, 7
cases = []


def numbers(channels, most, seed):
    """Any numbers, of every size up to `most`."""
    place = np.arange(H * W * channels, dtype=np.uint64) + seed
    scattered = place * 2654435761 % 2**32 / 2**32
    return (scattered * most).reshape(H, W, channels)


def scaled(values, least, most):
    found = (values.astype(np.float64) - least) * (255 / (most - least))
    return np.nan_to_num(np.clip(np.floor(found + 0.5), 0, 255)).astype(np.uint8)


def case(name, channels, rule, expected):
    if expected is not None:
        height, width, depth = expected.shape
        assert depth == channels and expected.dtype == np.uint8
        expected = {"width": width, "height": height, "pixels": expected.tobytes().hex()}
    cases.append({"file": name, "channels": channels, "range": rule, "expected": expected})


def tiff(name, values, **options):
    options = {"photometric": "minisblack", "metadata": None, **options}
    tifffile.imwrite(OUT / name, values, **options)


def each_image(values):
    spread = [scaled(c, np.nanmin(c), np.nanmax(c)) for c in np.moveaxis(values, -1, 0)]
    return np.stack(spread, -1)


OUT.mkdir(exist_ok=True)
five = numbers(5, 256, 1).astype(np.uint8)
tiff("bands-5.tif", five, planarconfig="contig")
tiff("bands-5-apart.tif", np.moveaxis(five, -1, 0), planarconfig="separate", compression="zlib")
tiff("bands-5-tiles.tif", np.moveaxis(five, -1, 0), planarconfig="separate", tile=(16, 16))
tiff("bands-5-turned.tif", five, planarconfig="contig", extratags=[(274, "H", 1, 6, True)])
for name in ["bands-5.tif", "bands-5-apart.tif", "bands-5-tiles.tif"]:
    case(name, 5, "upper", five)

# More tiles than one, cut at the right and below, of a GeoTIFF's usual interleaving.
y, x = np.mgrid[0:35, 0:40]
large = np.stack([100 * x + y, 3000 - 50 * y, x * y], -1).astype(np.uint16)
tiff("tiles-16.tif", np.moveaxis(large, -1, 0), planarconfig="separate", tile=(16, 16), compression="zlib")
case("tiles-16.tif", 3, "0..4000", scaled(large, 0, 4000))
case("bands-5-turned.tif", 5, "upper", np.rot90(five, -1))
case("bands-5.tif", 4, "upper", None)
case("bands-5.tif", 3, "image", None)

# Sentinel's: 16 bits, of which reflectances fill few.
deep = numbers(4, 12_000, 2).astype(np.uint16)
tiff("bands-4-16.tif", deep, planarconfig="contig", byteorder=">")
case("bands-4-16.tif", 4, "upper", (deep >> 8).astype(np.uint8))
case("bands-4-16.tif", 4, "0..10000", scaled(deep, 0, 10_000))
case("bands-4-16.tif", 4, "image", each_image(deep))

# A microscope's: channels are pages.
pages = numbers(4, 4096, 3).astype(np.uint16)
tifffile.imwrite(OUT / "pages-4.tif", np.moveaxis(pages, -1, 0), photometric="minisblack", metadata=None)
case("pages-4.tif", 4, "0..4095", scaled(pages, 0, 4095))
case("pages-4.tif", 1, "0..4095", scaled(pages[..., :1], 0, 4095))
case("pages-4.tif", 5, "upper", None)
case("pages-4.tif", 2, "upper", None)

signed = (numbers(1, 2000, 4) - 300).astype(np.int16)
tiff("signed.tif", signed[..., 0])
case("signed.tif", 1, "-100..1500", scaled(signed, -100, 1500))
case("signed.tif", 1, "upper", None)
case("signed.tif", 3, "-100..1500", np.repeat(scaled(signed, -100, 1500), 3, -1))

real = numbers(2, 1.2, 5).astype(np.float32)
real[3, 4, 1] = np.nan
tiff("real.tif", real, planarconfig="contig")
case("real.tif", 2, "0..1", scaled(real, 0, 1))
case("real.tif", 2, "image", each_image(real))
case("real.tif", 2, "upper", None)

wide = numbers(1, 2**32, 6).astype(np.uint32)
tiff("wide.tif", wide[..., 0])
case("wide.tif", 1, "upper", (wide >> 24).astype(np.uint8))

flat = np.full((H, W, 2), 700, np.uint16)
tiff("flat.tif", flat, planarconfig="contig")
case("flat.tif", 2, "image", np.zeros((H, W, 2), np.uint8))

# The PNG files of make_decode.py, by Pillow.
for name, mode in [("grey", "L"), ("grey-alpha", "LA"), ("rgb", "RGB"), ("rgba", "RGBA")]:
    image = Image.open(HERE / "decode" / f"{name}.png")
    assert image.mode == mode
    own = np.asarray(image).reshape(image.height, image.width, -1)
    case(f"../decode/{name}.png", len(mode), "upper", own)
    grey = image.convert("RGB").convert("L") if mode in ("RGB", "RGBA") else own[..., 0]
    case(f"../decode/{name}.png", 1, "upper", np.asarray(grey).reshape(image.height, image.width, 1))
case("../decode/rgb.png", 4, "upper", None)
case("../decode/grey.png", 2, "upper", None)
sixteen = np.asarray(Image.open(HERE / "decode" / "grey-16.png")).astype(np.uint16)[..., None]
case("../decode/grey-16.png", 1, "upper", (sixteen >> 8).astype(np.uint8))
case("../decode/grey-16.png", 1, "1000..50000", scaled(sixteen, 1000, 50_000))
case("../decode/grey-16.png", 3, "1000..50000", np.repeat(scaled(sixteen, 1000, 50_000), 3, -1))

(OUT / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")
