"""Writes transform.json: what Pillow and torchvision make of images that a formula gives.

Run from the root of the repository: python pirl-data/tests/golden/make_transform.py
"""
import json
import pathlib
import sys

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as F

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parents[2] / "benches"))
from formula import fill  # noqa: E402


def image(seed, width, height, low=0, high=256):
    """Noise within low..high, around a slope so that neighbours are related."""
    noise = fill(seed, height, width, 3) * 0.5 + 0.5
    slope = np.arange(width, dtype=np.float32)[None, :, None] / np.float32(width)
    value = noise * np.float32(0.5) + slope * np.float32(0.5)
    return Image.fromarray((low + value * np.float32(high - low)).astype(np.uint8))


cases = []


def case(op, values, result, seed, width, height, low=0, high=256):
    cases.append(
        dict(op=op, values=values, seed=seed, width=width, height=height, low=low, high=high,
             out_width=result.width, out_height=result.height, pixels=result.tobytes().hex()))


def each(op, function, values, seed, width=13, height=11, low=0, high=256):
    for value in values:
        case(op, [value], function(image(seed, width, height, low, high), value), seed, width, height, low, high)


each("brightness", F.adjust_brightness, [0.0, 0.6, 1.0, 1.37, 1.9], 1)
each("contrast", F.adjust_contrast, [0.0, 0.6, 1.37, 1.9], 2)
each("saturation", F.adjust_saturation, [0.0, 0.6, 1.37, 1.9], 3)
each("hue", F.adjust_hue, [-0.5, -0.2, -0.013, 0.0, 0.1, 0.2, 0.5], 4, 24, 20)
each("grayscale", lambda im, _: F.to_grayscale(im, 3), [0], 5)
each("posterize", ImageOps.posterize, [4, 5, 6, 7, 8], 6)
each("solarize", ImageOps.solarize, [0, 100, 255, 256], 7)
each("sharpness", lambda im, v: ImageEnhance.Sharpness(im).enhance(v), [0.1, 0.9, 1.0, 1.9], 8)
each("sharpness", lambda im, v: ImageEnhance.Sharpness(im).enhance(v), [1.9], 8, 2, 5)
each("autocontrast", lambda im, _: ImageOps.autocontrast(im), [0], 9, low=30, high=200)
each("autocontrast", lambda im, _: ImageOps.autocontrast(im), [0], 9, 1, 1)
blur = lambda im, v: im.filter(ImageFilter.GaussianBlur(v))  # noqa: E731
each("blur", blur, [0.1, 0.5, 1.0, 1.7, 2.0, 9.0], 10)
each("blur", blur, [1.2], 10, 1, 1)
each("blur", blur, [1.2], 10, 7, 1)
each("blur", blur, [1.2], 10, 1, 6)

for (width, height), (left, top, w, h), (out_width, out_height) in [
    ((23, 17), (0, 0, 23, 17), (32, 30)),
    ((23, 17), (3, 2, 11, 9), (8, 7)),
    ((61, 47), (0, 0, 61, 47), (16, 16)),
    ((61, 47), (7, 5, 50, 13), (20, 20)),
    ((28, 28), (2, 3, 21, 25), (36, 36)),
    ((1, 1), (0, 0, 1, 1), (4, 3)),
    ((1, 9), (0, 1, 1, 7), (3, 3)),
    ((12, 12), (1, 2, 5, 5), (5, 5)),
]:
    result = F.resized_crop(image(11, width, height), top, left, h, w, [out_height, out_width])
    case("resize", [left, top, w, h, out_width, out_height], result, 11, width, height)

# Resize(resize), CenterCrop(crop), Normalize.
views = []
for width, height, resize, crop in [(23, 17, 20, 16), (17, 23, 15, 15), (9, 14, 0, 12), (8, 8, 0, 8), (20, 11, 0, 9), (5, 40, 7, 16)]:
    view = image(12, width, height)
    if resize:
        view = F.resize(view, resize)
    view = F.center_crop(view, crop)
    tensor = F.normalize(F.to_tensor(view), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    views.append(dict(seed=12, width=width, height=height, resize=resize, crop=crop,
                      numbers=[round(float(x), 4) for x in tensor.flatten()]))

# Moments of torchvision's crops: of each of left, top, width, height and log(width / height).
torch.manual_seed(0)
crops = []
for width, height, scale, ratio in [
    (500, 375, [0.08, 1.0], [3 / 4, 4 / 3]),
    (28, 28, [0.3, 1.0], [3 / 4, 4 / 3]),
    (100, 20, [0.6, 1.0], [3 / 4, 4 / 3]),
    (20, 100, [0.3, 0.9], [3 / 4, 4 / 3]),
]:
    empty = torch.empty(3, height, width)
    n = 20000
    draws = torch.tensor([RandomResizedCrop.get_params(empty, scale, ratio) for _ in range(n)], dtype=torch.float64)
    top, left, h, w = draws.T
    columns = [left, top, w, h, (w / h).log()]
    crops.append(dict(width=width, height=height, scale=scale, ratio=ratio, draws=n,
                      means=[round(c.mean().item(), 6) for c in columns],
                      deviations=[round(c.std().item(), 6) for c in columns]))

(HERE / "transform.json").write_text(json.dumps(dict(
    made_with=dict(pillow=PIL.__version__, torchvision=torchvision.__version__),
    cases=cases, views=views, crops=crops), separators=(",", ":")))
