"""Writes low_shot.json: support vector machines and nearest neighbours that learn from four labels of each
class, by scikit-learn.

python make_low_shot.py

Which images are labelled is no matter of chance here: the first ones that fit, after those held out.
"""
import json, pathlib, sys

import numpy as np
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import LinearSVC

from make_svm import envelope

here = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(here.parents[2] / "benches"))
from formula import fill

TRAIN, HELD_OUT, TEST, DIM, CLASSES, K = 300, 50, 200, 24, 4, 4
COSTS = [0.1, 1.0, 10.0]
TAU = 0.07
pool = np.arange(HELD_OUT, TRAIN)


def scores(seed, rows):
    """Features, and linear functions of them with noise."""
    x = fill(seed, rows, DIM).astype(np.float64)
    return x, x[:, :CLASSES] + 0.5 * x[:, CLASSES:2 * CLASSES] + 0.8 * fill(seed + 1, rows, CLASSES)


def unit(x):
    return x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-5)


def decide(cost, x, positive, *others):
    machine = LinearSVC(
        C=cost, class_weight={1: 2, 0: 1}, intercept_scaling=1.0, penalty="l2", loss="squared_hinge",
        tol=1e-6, dual=True, max_iter=500_000, random_state=0,
    ).fit(x, positive.astype(int))
    return [machine.decision_function(other) for other in others]


(x, score), (x_test, score_test) = scores(81, TRAIN), scores(91, TEST)
x, x_test = unit(x), unit(x_test)
percent = lambda right: round(100 * float(np.mean(right)), 4)

# A class each: the one with the highest score.
y, y_test = score.argmax(1), score_test.argmax(1)
drawn = np.sort(np.concatenate([pool[y[pool] == c][:K] for c in range(CLASSES)]))
one = []
for cost in COSTS:
    found = [decide(cost, x[drawn], y[drawn] == c, x[:HELD_OUT], x_test) for c in range(CLASSES)]
    held_out, test = (np.stack(of, 1).argmax(1) for of in zip(*found))
    one.append([percent(held_out == y[:HELD_OUT]), percent(test == y_test)])

neighbours = []
for k in [3, len(drawn)]:
    knn = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / TAU)
    ).fit(x[drawn], y[drawn])
    neighbours.append([percent(knn.predict(x[:HELD_OUT]) == y[:HELD_OUT]), percent(knn.predict(x_test) == y_test)])

# Any number of classes: those with a score above 0.7; -1 where only difficult objects show it.
def presence(score):
    y = (score > 0.7).astype(int)
    y[np.abs(score - 0.7) < 0.05] = -1
    return y


y, y_test = presence(score), presence(score_test)
several = []
for cost in COSTS:
    precisions = []
    for c in range(CLASSES):
        own = pool[y[pool, c] == 1][:K]
        others = pool[y[pool, c] == 0][:K * (CLASSES - 1)]
        rows = np.sort(np.concatenate([own, others]))
        found = decide(cost, x[rows], y[rows, c] == 1, x[:HELD_OUT], x_test)
        pair = []
        for of, truth in zip(found, [y[:HELD_OUT, c], y_test[:, c]]):
            kept = truth >= 0
            pair.append(100 * envelope(of[kept], truth[kept] == 1))
        precisions.append(pair)
    several.append([round(float(v), 4) for v in np.mean(precisions, 0)])

result = {"one": one, "several": several, "neighbours": neighbours}
(here / "low_shot.json").write_text(json.dumps(result) + "\n")
print(result)
