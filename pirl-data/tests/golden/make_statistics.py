"""Mean, deviation and sizes of images, as NumPy has them, for tests/pack.rs.

Of the PNG files of decode/ whose pixels no decoder rounds, and which are stored upright. Every image counts
alike: the mean is that of the images' means, and the deviation that of values drawn from an image drawn at
random. Writes statistics.json. Needs NumPy, and the .rgb files of make_decode.py beside the images:

    python3 pirl-data/tests/golden/make_statistics.py
"""

import json
import pathlib

import numpy as np

HERE = pathlib.Path(__file__).parent
NAMES = ["grey", "grey-alpha", "interlaced", "palette", "palette-transparent", "rgb", "rgba", "exif-6"]

means, squares, sides = [], [], []
for name in NAMES:
    data = (HERE / "decode" / f"{name}.png.rgb").read_bytes()
    width, height = np.frombuffer(data[:4], "<u2").astype(int)
    pixels = np.frombuffer(data[4:], np.uint8).reshape(height * width, 3) / 255
    means.append(pixels.mean(0))
    squares.append((pixels**2).mean(0))
    sides.append(sorted((int(width), int(height))))
mean = np.mean(means, 0)
shorter, longer = np.sort(np.array(sides), 0).T
found = {
    "images": [f"decode/{name}.png" for name in NAMES],
    "mean": mean.tolist(),
    "std": np.sqrt(np.mean(squares, 0) - mean**2).tolist(),
    "shorter_sides": [int(shorter[0]), int(shorter[len(NAMES) // 2]), int(shorter[-1])],
    "longer_sides": [int(longer[0]), int(longer[len(NAMES) // 2]), int(longer[-1])],
}
(HERE / "statistics.json").write_text(json.dumps(found, indent=1) + "\n")
