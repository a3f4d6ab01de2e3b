"""A set in COCO's own JSON, detections in it, and pycocotools' twelve numbers, for tests/coco_set.rs.

Ids of images and categories have gaps and are out of order, some annotations are crowds, some images have
none. Needs pycocotools and NumPy:

    python3 pirl-eval/tests/golden/make_coco_set.py
"""

import contextlib
import io
import json
import pathlib

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

rng = np.random.default_rng(5)
WIDTH, HEIGHT = 640, 480
image_ids = [int(i) for i in rng.permutation(np.arange(3, 90, 3))[:24]]
categories = [{"id": i, "name": name} for i, name in [(44, "cup"), (2, "bus"), (90, "fox"), (17, "pen")]]
labels = sorted(category["id"] for category in categories)


def box():
    side = 2.0 ** rng.uniform(3, 8.2)
    w, h = min(side * rng.uniform(0.6, 1.6), WIDTH - 1), min(side * rng.uniform(0.6, 1.6), HEIGHT - 1)
    x, y = rng.uniform(0, WIDTH - w), rng.uniform(0, HEIGHT - h)
    # Quarters are exact in f32, in which boxes are kept.
    return [round(4 * v) / 4 for v in (x, y, w, h)]


annotations, detections = [], []
for image in image_ids[:-3]:
    for _ in range(rng.integers(1, 7)):
        bounds, category = box(), labels[rng.integers(len(labels))]
        crowd = int(rng.random() < 0.15)
        annotations.append(
            {"id": len(annotations) + 1, "image_id": image, "category_id": category, "bbox": bounds,
             "area": bounds[2] * bounds[3], "iscrowd": crowd, "segmentation": []}
        )
        for _ in range(rng.integers(0, 4)):
            shift = rng.normal(0, 0.12, 4) * np.array([bounds[2], bounds[3]] * 2)
            near = [round(4 * v) / 4 for v in np.array(bounds) + shift]
            if near[2] > 0 and near[3] > 0:
                wrong = rng.random() < 0.1
                detections.append(
                    {"image_id": image, "category_id": labels[rng.integers(len(labels))] if wrong else category,
                     "bbox": near, "score": float(np.float32(rng.random()))}
                )
for image in image_ids:
    detections.append({"image_id": image, "category_id": labels[0], "bbox": box(), "score": float(np.float32(rng.random()))})

instances = {
    "info": {}, "licenses": [], "categories": categories, "annotations": annotations,
    "images": [{"id": i, "file_name": f"{i:012}.png", "width": WIDTH, "height": HEIGHT} for i in image_ids],
}
with contextlib.redirect_stdout(io.StringIO()):
    coco = COCO()
    coco.dataset = instances
    coco.createIndex()
    evaluation = COCOeval(coco, coco.loadRes(json.loads(json.dumps(detections))), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
out = pathlib.Path(__file__).parent / "coco_set.json"
result = {"instances": instances, "detections": detections, "stats": [100 * float(v) for v in evaluation.stats]}
out.write_text(json.dumps(result))
print(result["stats"], len(annotations), len(detections))
