"""Writes detect_metrics.json: random annotations and detections with their average precisions, by
pycocotools and by a VOC evaluation written here in NumPy from the devkit's rule.

Run: python pirl-eval/tests/golden/make_detect_metrics.py
"""
import contextlib
import io
import json
import pathlib

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

HERE = pathlib.Path(__file__).resolve().parent
CLASSES, IMAGES = 6, 20
NO_OBJECTS, NO_DETECTIONS, ALL_DIFFICULT = 3, 4, 5
rng = np.random.default_rng(6)

objects, detections = [], []  # per image, (box, label, difficult) and (box, label, score)
for image in range(IMAGES):
    here, found = [], []
    for _ in range(rng.integers(1, 8) if image else 0):  # image 0 is empty
        side = 2.0 ** rng.uniform(3, 7.5, 2)
        corner = rng.uniform(0, 120, 2)
        box = np.concatenate([corner, corner + side]).round()
        label = rng.choice([c for c in range(CLASSES) if c != NO_OBJECTS])
        difficult = label == ALL_DIFFICULT or rng.random() < 0.2
        here.append((box, int(label), bool(difficult)))
        for _ in range(rng.integers(0, 4)):  # found, once or more often, well or badly
            moved = box + rng.normal(0, 0.1, 4) * np.tile(side, 2) * rng.choice([0, 0.5, 1, 1.5])
            moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
            found.append((moved, int(label), rng.random() ** 0.5))
    for _ in range(rng.integers(2, 8)):  # background
        corner = rng.uniform(0, 150, 2)
        found.append((np.concatenate([corner, corner + rng.uniform(1, 100, 2)]), int(rng.integers(CLASSES)), rng.random()))
    found = [f for f in found if f[1] != NO_DETECTIONS]
    # Eighths are exact in single precision; some scores tie, others tie once rounded to 3 decimals.
    rounded = lambda score: round(score * 16) / 16 if rng.random() < 0.4 else round(score, 4)
    detections.append([((box * 8).round() / 8, label, rounded(score)) for box, label, score in found])
    objects.append(here)
for _ in range(120):  # more than COCO counts
    detections[1].append((np.array([5.0, 5, 30, 40]), 0, round(rng.random() / 4, 4)))


def voc_ap(recall, precision, eleven_points):
    if eleven_points:
        ap = 0.0
        for t in np.arange(0.0, 1.1, 0.1):
            above = precision[recall >= t]
            ap += (above.max() if above.size else 0.0) / 11
        return ap
    recall = np.concatenate([[0.0], recall, [1.0]])
    precision = np.concatenate([[0.0], precision, [0.0]])
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return float(((recall[steps + 1] - recall[steps]) * precision[steps + 1]).sum())


def voc(label, threshold):
    """Recall and precision of a class, through the text that detectron2 writes."""
    lines = []
    for image, found in enumerate(detections):
        for box, of, score in found:
            if of == label:
                xmin, ymin, xmax, ymax = box.astype(np.float32)
                xmin, ymin, score = xmin + np.float32(1), ymin + np.float32(1), np.float32(score).item()
                lines.append(f"{image} {score:.3f} {xmin:.1f} {ymin:.1f} {xmax:.1f} {ymax:.1f}")
    rows = [line.split() for line in lines]
    rows = [rows[i] for i in np.argsort([-float(row[1]) for row in rows], kind="stable")]
    # As in the annotation files, from 1 and with both ends.
    truth = [[(box + [1, 1, 0, 0], hard) for box, of, hard in here if of == label] for here in objects]
    positives = sum(not hard for here in truth for _, hard in here)
    taken = set()
    tp, fp = np.zeros(len(rows)), np.zeros(len(rows))
    for i, (image, _, *box) in enumerate(rows):
        image, box = int(image), np.array(box, float)
        best, best_at = -np.inf, None
        for at, (t, _) in enumerate(truth[image]):
            w = max(min(box[2], t[2]) - max(box[0], t[0]) + 1, 0)
            h = max(min(box[3], t[3]) - max(box[1], t[1]) + 1, 0)
            area = lambda b: (b[2] - b[0] + 1) * (b[3] - b[1] + 1)
            iou = w * h / (area(box) + area(t) - w * h)
            if iou > best:
                best, best_at = iou, at
        if best > threshold:
            if truth[image][best_at][1]:
                continue
            if (image, best_at) in taken:
                fp[i] = 1
            else:
                taken.add((image, best_at))
                tp[i] = 1
        else:
            fp[i] = 1
    tp, fp = tp.cumsum(), fp.cumsum()
    with np.errstate(invalid="ignore"):
        recall = tp / positives if positives else np.full(len(tp), np.nan)
    return recall, tp / np.maximum(tp + fp, np.finfo(float).eps), positives


def table(eleven_points):
    rows = []
    for label in range(CLASSES):
        row = []
        for threshold in range(50, 100, 5):
            recall, precision, positives = voc(label, threshold / 100)
            row.append(100 * voc_ap(recall, precision, eleven_points) if positives else 0.0)
        rows.append(row)
    return rows


def coco():
    boxes = [(image, *entry) for image, here in enumerate(objects) for entry in here]
    xywh = lambda b: [float(b[0]), float(b[1]), float(b[2] - b[0]), float(b[3] - b[1])]
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i} for i in range(IMAGES)],
        "categories": [{"id": c} for c in range(CLASSES)],
        "annotations": [
            {"id": i + 1, "image_id": image, "category_id": label, "bbox": xywh(b), "iscrowd": int(hard),
             "area": float((b[2] - b[0]) * (b[3] - b[1]))}
            for i, (image, b, label, hard) in enumerate(boxes)
        ],
    }
    truth.createIndex()
    found = [
        {"image_id": image, "category_id": label, "bbox": xywh(b), "score": np.float32(score).item()}
        for image, here in enumerate(detections) for b, label, score in here
    ]
    evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]  # thresholds, recalls, classes
    per_class = [float(precision[:, :, c].mean()) for c in range(CLASSES)]
    return [float(x) for x in evaluation.stats], per_class


with contextlib.redirect_stdout(io.StringIO()):
    stats, per_class = coco()
curve = voc(0, 0.5)
result = {
    "objects": [[[*b.tolist(), label, hard] for b, label, hard in here] for here in objects],
    "detections": [[[*b.tolist(), label, score] for b, label, score in here] for here in detections],
    "voc2007": table(True),
    "area": table(False),
    "curve": [curve[0].tolist(), curve[1].tolist()],
    "coco": stats,
    "coco_per_class": per_class,
}
(HERE / "detect_metrics.json").write_text(json.dumps(result) + "\n")
