"""Multinomial logistic regression by scikit-learn on the very features of `pirl eval linear`, with the
same standardisation and weight decay: its accuracy is what the probe's should come within 0.3
points of.

pirl eval linear --weights RUN --train TRAIN --test TEST --cache FEATURES --json > result.json
python benches/peers/logistic.py FEATURES result.json

FEATURES must hold those two packs' features only. Needs numpy, safetensors and scikit-learn.
"""
import json, pathlib, sys, time

import numpy as np
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression

DECAY = 5e-4

files = sorted(pathlib.Path(sys.argv[1]).glob("*.safetensors"), key=lambda path: path.stat().st_size)
test, train = (load_file(path) for path in files)
result = json.load(open(sys.argv[2]))
for layer, probe in sorted(result["layers"].items()):
    x, x_test = (part[layer].reshape(len(part["labels"]), -1).astype(np.float64) for part in (train, test))
    mean, deviation = x.mean(0), np.sqrt(x.var(0) + 1e-5)
    started = time.time()
    model = LogisticRegression(C=1 / (DECAY * len(x)), max_iter=1000)
    model.fit((x - mean) / deviation, train["labels"])
    top1 = 100 * model.score((x_test - mean) / deviation, test["labels"])
    seconds = time.time() - started
    print(f"{layer}: scikit-learn {top1:.2f} ({seconds:.0f} s), pirl {probe['top1']:.2f} at lr {probe['lr']}")
