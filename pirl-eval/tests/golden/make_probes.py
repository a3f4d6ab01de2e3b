"""Writes probes.json: the optimum of softmax regression by scikit-learn, and weighted nearest
neighbours by scikit-learn.

python make_probes.py
"""
import json, pathlib, sys

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

here = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(here.parents[2] / "benches"))
from formula import fill

# Classes that overlap, so that the optimum lies well inside.
ROWS, DIM, CLASSES, DECAY = 200, 5, 3, 0.01
noise = fill(31, ROWS, DIM).astype(np.float64)
y = np.arange(ROWS) * 7 % 11 % CLASSES
x = noise + 0.5 * np.eye(CLASSES, DIM)[y]
x = x.astype(np.float32).astype(np.float64)
z = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
# The bias decays like the weights, as one more of them.
z1 = np.hstack([z, np.ones((ROWS, 1))])
model = LogisticRegression(C=1 / (DECAY * ROWS), fit_intercept=False, tol=1e-12, max_iter=10000)
model.fit(z1, y)
logits = z1 @ model.coef_.T
logits -= logits.mean(1, keepdims=True)

TRAIN, TEST, WIDTH, LABELS, K, TAU = 500, 150, 8, 6, 40, 0.07
train, test = fill(41, TRAIN, WIDTH).astype(np.float64), fill(42, TEST, WIDTH).astype(np.float64)
labels = np.arange(TRAIN) * 13 % 17 % LABELS
knn = KNeighborsClassifier(
    K, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / TAU)
)
knn.fit(train, labels)

result = {
    "optimum": [round(v, 6) for v in logits.flatten().tolist()],
    "neighbours": knn.predict(test).tolist(),
}
(here / "probes.json").write_text(json.dumps(result) + "\n")
