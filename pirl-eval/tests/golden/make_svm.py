"""Writes svm.json: average precisions of VISSL's VOC07 protocol with scikit-learn's LinearSVC.

python make_svm.py

`protocol` is also what benches/peers/probes.py runs, on the features of `pirl eval svm`.
"""
import json, pathlib, sys, warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import cross_val_score
from sklearn.svm import LinearSVC

COSTS = [0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0]


def envelope(scores, positive):
    """The area under the precision envelope."""
    order = np.argsort(-scores, kind="stable")
    hits = positive[order]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(precision[hits].sum() / hits.sum())


def protocol(x, y, x_test, y_test, costs=COSTS, max_iter=2000):
    """x: (n, d); y: (n, classes) of 1, 0 and -1. Returns (average precision, cost) of each class."""
    x, x_test = (f / (np.linalg.norm(f, axis=1, keepdims=True) + 1e-5) for f in (x, x_test))
    result = []
    for c in range(y.shape[1]):
        positive = y[:, c] == 1
        machine = lambda cost: LinearSVC(
            C=cost, class_weight={1: 2, 0: 1}, intercept_scaling=1.0, penalty="l2",
            loss="squared_hinge", tol=1e-4, dual=True, max_iter=max_iter, random_state=0,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            means = [
                cross_val_score(machine(k), x, positive.astype(int), cv=3, scoring="average_precision").mean()
                for k in costs
            ]
            cost = costs[int(np.argmax(means))]
            scores = machine(cost).fit(x, positive.astype(int)).decision_function(x_test)
        kept = y_test[:, c] >= 0
        result.append((100 * envelope(scores[kept], y_test[kept, c] == 1), cost))
    return result


if __name__ == "__main__":
    here = pathlib.Path(__file__).resolve().parent
    sys.path.insert(0, str(here.parents[2] / "benches"))
    from formula import fill

    TRAIN, TEST, DIM, CLASSES = 300, 200, 24, 4

    def split(seed, rows):
        """Features, and classes that linear functions of them and noise decide."""
        x = fill(seed, rows, DIM).astype(np.float64)
        score = x[:, :CLASSES] + 0.5 * x[:, CLASSES:2 * CLASSES] + 0.8 * fill(seed + 1, rows, CLASSES)
        y = (score > 0.7).astype(int)
        y[np.abs(score - 0.7) < 0.05] = -1  # difficult objects alone
        return x, y

    # The published 2000 passes leave C = 1000 far from its optimum here, and what it then reaches
    # depends on the order of the samples: only finished machines can be compared.
    found = protocol(*split(61, TRAIN), *split(71, TEST), max_iter=200_000)
    result = {"precision": [round(p, 4) for p, _ in found], "cost": [c for _, c in found]}
    (here / "svm.json").write_text(json.dumps(result) + "\n")
    print(result)
