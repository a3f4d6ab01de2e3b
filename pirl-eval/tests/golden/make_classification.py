"""Writes classification.json: tables of classes, the confusion matrix and the calibration of a classifier, by
scikit-learn.

python make_classification.py
"""
import json, pathlib, sys

import numpy as np
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

here = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(here.parents[2] / "benches"))
from formula import fill

ROWS, CLASSES, BINS = 400, 7, 15
y = np.arange(ROWS) * 7 % 11 % (CLASSES - 1)
z = 3.0 * fill(33, ROWS, CLASSES).astype(np.float64) + 1.5 * np.eye(CLASSES)[y]
z[:, CLASSES - 2] -= 20.0
p = np.exp(z - z.max(1, keepdims=True))
p /= p.sum(1, keepdims=True)
found, confidence = p.argmax(1), p.max(1)

labels = list(range(CLASSES))
precision, recall, _, support = precision_recall_fscore_support(y, found, labels=labels, zero_division=0)
accuracies, confidences = calibration_curve(found == y, confidence, n_bins=BINS)
counts, _ = np.histogram(confidence, bins=BINS, range=(0, 1))
counts = counts[counts > 0]
result = {
    "precision": [round(100 * v, 5) for v in precision],
    "recall": [round(100 * v, 5) for v in recall],
    "support": support.tolist(),
    "confusion": confusion_matrix(y, found, labels=labels).tolist(),
    "confidences": [round(100 * v, 5) for v in confidences],
    "accuracies": [round(100 * v, 5) for v in accuracies],
    "ece": [round(100 * float((counts * np.abs(accuracies - confidences)).sum() / ROWS), 5)],
}
(here / "classification.json").write_text(json.dumps(result) + "\n")
print(result)
