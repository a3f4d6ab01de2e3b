"""Parquet files as pyarrow and the `datasets` library of Hugging Face write them, for tests/parquet.rs.

Images are files of decode/. Writes parquet/; the layout of the metadata is that of datasets 2 to 4
(`arrow_writer.py`, `features.py`), written here without that library. Needs pyarrow:

    python3 pirl-data/tests/golden/make_parquet.py
"""

import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

HERE = pathlib.Path(__file__).parent
OUT = HERE / "parquet"
NAMES = ["grey.png", "rgb.png", "exif-6.jpg", "rgba.png", "palette.png", "rgb-420.jpg", "grey.jpg", "interlaced.png"]
BYTES = [(HERE / "decode" / name).read_bytes() for name in NAMES]
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def images(which=range(8), path=lambda name: name):
    return pa.array([{"bytes": BYTES[i], "path": path(NAMES[i])} for i in which], IMAGE)


def features(**columns):
    return {"huggingface": json.dumps({"info": {"features": columns}})}


def class_label(*names):
    return {"names": list(names), "_type": "ClassLabel"}


def write(name, columns, metadata=None, **options):
    path = OUT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns).replace_schema_metadata(metadata)
    pq.write_table(table, path, **options)


labels = [2, 0, 1, 2, 0, 1, 2, 0]
animals = class_label("cat", "dog", "emu")
hugging = features(image={"_type": "Image"}, label=animals)
# Several groups of rows, the last of two; dictionaries; snappy, pyarrow's and datasets' default.
write("hf.parquet", {"image": images(), "label": pa.array(labels, pa.int64())}, hugging, row_group_size=3)
# What is not known is -1 or null; an image that is elsewhere has a path alone.
holes = images().to_pylist()
holes[4]["bytes"] = None
holes[5] = None
write(
    "holes.parquet",
    {"image": pa.array(holes, IMAGE), "label": pa.array([2, -1, 1, None, 0, 1, 2, 0], pa.int64())},
    hugging,
    row_group_size=5,
)
write("unknown.parquet", {"image": images([1, 2]), "label": pa.array([-1, -1], pa.int64())}, hugging)
# The layout of a repository: parts by name; zstd, the second version of data pages.
for part, which in [("train-00000-of-00002", [0, 1, 2]), ("train-00001-of-00002", [3, 4]), ("test-00000-of-00001", [5, 6, 7])]:
    columns = {"image": images(which, lambda name: None), "label": pa.array([labels[i] for i in which], pa.int64())}
    options = {"compression": "zstd", "data_page_version": "2.0", "use_dictionary": False}
    write(f"parts/data/{part}.parquet", columns, hugging, **options)
# CIFAR-100's: two columns of labels, images called img.
write(
    "several.parquet",
    {
        "img": images(),
        "fine_label": pa.array(labels, pa.int64()),
        "coarse_label": pa.array([0, 1] * 4, pa.int64()),
    },
    features(img={"_type": "Image"}, fine_label=animals, coarse_label=class_label("pet", "bird")),
)
# Of other programs: bytes in a column, names as labels, 32-bit integers beside, nothing said of either.
write(
    "plain.parquet",
    {
        "id": pa.array(range(8), pa.int32()),
        "caption": pa.array([f"{i}" for i in range(8)]),
        "picture": pa.array(BYTES, pa.binary()),
        "class": pa.array(["dog", "cat", "emu", "dog", "cat", "emu", "dog", "cat"]),
    },
    compression="none",
    row_group_size=4,
)
write("large.parquet", {"image": images().cast(pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])), "label": pa.array(labels, pa.int32())}, hugging)
write("lists.parquet", {"image": pa.array([[row] for row in images().to_pylist()], pa.list_(IMAGE))})
write("numbers.parquet", {"label": pa.array(labels), "value": pa.array([0.5] * 8)})
write("label-17.parquet", {"image": images([0]), "label": pa.array([17], pa.int64())}, hugging)
