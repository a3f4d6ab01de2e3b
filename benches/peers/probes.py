"""scikit-learn on the very features of `pirl eval linear`, `knn` or `svm`: its accuracies beside ours.

pirl eval PROBE --weights RUN --train TRAIN --test TEST --cache FEATURES --set eval.baselines=false \\
    --json > result.json
python benches/peers/probes.py PROBE FEATURES result.json

FEATURES must hold those two packs' features only; their images must have one label each. Needs
numpy, safetensors and scikit-learn. What should come out: linear within 0.3 points of multinomial
logistic regression with the same standardisation and weight decay, svm within 0.1 points of
LinearSVC, k-NN the same for every image.
"""
import json, pathlib, sys, time

import numpy as np
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

here = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(here.parents[1] / "pirl-eval" / "tests" / "golden"))
from make_svm import protocol


def linear(x, y, x_test, y_test, settings):
    mean, deviation = x.mean(0), np.sqrt(x.var(0) + 1e-5)
    model = LogisticRegression(C=1 / (settings["weight_decay"] * len(x)), max_iter=1000)
    model.fit((x - mean) / deviation, y)
    return 100 * model.score((x_test - mean) / deviation, y_test)


def knn(x, y, x_test, y_test, settings):
    votes = lambda distance: np.exp((1 - distance) / settings["temperature"])
    model = KNeighborsClassifier(settings["k"], metric="cosine", algorithm="brute", weights=votes)
    return 100 * model.fit(x, y).score(x_test, y_test)


def svm(x, y, x_test, y_test, settings):
    one_hot = lambda labels: np.eye(y.max() + 1, dtype=int)[labels]
    found = protocol(x, one_hot(y), x_test, one_hot(y_test), settings["costs"])
    return float(np.mean([precision for precision, _ in found]))


probe = sys.argv[1]
files = pathlib.Path(sys.argv[2]).glob("*.safetensors")
result = json.load(open(sys.argv[3]))
sets = [load_file(path) for path in files]
sets = {len(part["labels"]): part for part in sets}
train, test = (sets[result[name]["images"]] for name in ("train", "test"))
for layer, ours in sorted(result["layers"].items()):
    x, x_test = (part[layer].reshape(len(part["labels"]), -1).astype(np.float64) for part in (train, test))
    started = time.time()
    settings = result["settings"] | ({"k": ours["k"]} if probe == "knn" else {})
    theirs = globals()[probe](x, train["labels"], x_test, test["labels"], settings)
    ours = ours["map" if probe == "svm" else "top1"]
    print(f"{layer}: scikit-learn {theirs:.3f} ({time.time() - started:.0f} s), pirl {ours:.3f}", flush=True)
