#!/usr/bin/env python3
"""Checks that an exported backbone is worth in PyTorch what `pirl eval knn` says of its run.

    python3 -m venv venv && venv/bin/pip install torch torchvision safetensors
    venv/bin/python scripts/check_knn.py RUN TRAIN TEST [K ...]          # needs target/release/pirl; packs of images

The run goes out as `pirl export --format torchvision` has it, into a network of torchvision's blocks; the images of
both packs are decoded, seen and averaged here, and the neighbours (10, 20 and 200 without K) vote with
exp((cosine - 1) / 0.07). At every layer and K, the share of right answers must be within 0.05 points of pirl's.
"""
import io
import json
import pathlib
import subprocess
import sys
import tempfile
import tomllib

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.transforms import v2 as transforms

PIRL = pathlib.Path(__file__).resolve().parents[1] / "target" / "release" / "pirl"
LAYERS = ["res2", "res3", "res4", "res5"]
TEMPERATURE, TOLERANCE = 0.07, 0.05


def pirl(*arguments):
    return subprocess.run([PIRL, *map(str, arguments)], check=True, stdout=subprocess.PIPE, text=True).stdout


class Network(ResNet):
    """Torchvision's, with the widths, blocks and stem that the weights have."""

    def __init__(self, state):
        torch.nn.Module.__init__(self)
        width, channels, kernel, _ = state["conv1.weight"].shape
        block = Bottleneck if "layer1.0.conv3.weight" in state else BasicBlock
        self._norm_layer, self.inplanes, self.dilation, self.groups, self.base_width = torch.nn.BatchNorm2d, width, 1, 1, 64
        self.conv1 = torch.nn.Conv2d(channels, width, kernel, stride=1 if kernel == 3 else 2, padding=kernel // 2, bias=False)
        self.bn1, self.relu = torch.nn.BatchNorm2d(width), torch.nn.ReLU()
        self.maxpool = torch.nn.MaxPool2d(3, 2, 1) if kernel == 7 else torch.nn.Identity()
        for stage in range(1, 5):
            blocks = len({name.split(".")[1] for name in state if name.startswith(f"layer{stage}.")})
            layer = self._make_layer(block, width << stage - 1, blocks, stride=1 if stage == 1 else 2)
            setattr(self, f"layer{stage}", layer)
        self.load_state_dict(state, strict=True)

    def forward(self, x):
        """The averages of the maps of res2 to res5."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        features = []
        for layer in [self.layer1, self.layer2, self.layer3, self.layer4]:
            x = layer(x)
            features.append(x.mean((2, 3)))
        return features


def images(pack):
    """Each image of a pack with its label."""
    stem = pathlib.Path(pack).with_suffix("")
    whole = stem.with_suffix(".safetensors")
    for shard in [whole] if whole.exists() else sorted(stem.parent.glob(f"{stem.name}-*-of-*.safetensors")):
        with safe_open(shard, "np") as file:
            about, offsets, labels = file.metadata(), file.get_tensor("offsets"), file.get_tensor("labels")
            content = file.get_tensor("bytes")
        for label, begin, end in zip(labels, offsets, offsets[1:]):
            data = content[int(begin):int(end)]
            if about["encoding"] == "raw":
                shape = [int(about[side]) for side in ["height", "width", "channels"]]
                image = Image.fromarray(data.reshape(shape).squeeze())
            else:
                image = Image.open(io.BytesIO(data.tobytes()))
            yield image.convert("RGB"), int(label)


@torch.no_grad()
def read(network, view, pack):
    """The features of each layer, their rows of unit length, and the labels."""
    features, labels, batch = [[] for _ in LAYERS], [], []

    def flush():
        for layer, rows in zip(features, network(torch.stack(batch))):
            layer.append(rows)
        batch.clear()

    for image, label in images(pack):
        batch.append(view(image))
        labels.append(label)
        if len(batch) == 256:
            flush()
    if batch:
        flush()
    return [torch.nn.functional.normalize(torch.cat(layer)) for layer in features], torch.tensor(labels)


def accuracies(train, test, ks):
    """For each k, the share of test rows, in percent, that their k nearest training rows tell the class of."""
    (bank, known), (queries, asked) = train, test
    classes, right = int(known.max()) + 1, dict.fromkeys(ks, 0)
    for rows, labels in zip(queries.split(500), asked.split(500)):
        cosines, nearest = (rows @ bank.T).topk(max(ks))
        votes = ((cosines.double() - 1) / TEMPERATURE).exp()
        for k in ks:
            sums = torch.zeros(len(rows), classes, dtype=torch.float64).scatter_add(1, known[nearest[:, :k]], votes[:, :k])
            right[k] += int((sums.argmax(1) == labels).sum())
    return {k: 100 * count / len(asked) for k, count in right.items()}


run, train, test, *ks = sys.argv[1:]
ks = [int(k) for k in ks] or [10, 20, 200]
found = json.loads(pirl(
    "eval", "knn", "--weights", run, "--train", train, "--test", test, "--json", "--set", f"eval.layers={json.dumps(LAYERS)}",
    "--set", "eval.pool=average", "--set", f"eval.knn.k={ks}", "--set", f"eval.knn.temperature={TEMPERATURE}",
    "--set", "eval.baselines=false"))
with tempfile.TemporaryDirectory() as folder:
    exported = pathlib.Path(folder) / "backbone.safetensors"
    pirl("export", "--weights", run, "--format", "torchvision", "--output", exported)
    network = Network(load_file(exported)).eval()
data = tomllib.loads((pathlib.Path(run) / "config.toml").read_text())["data"]
view = transforms.Compose([
    transforms.Resize(found["view"]["resize"]), transforms.CenterCrop(found["view"]["crop"]), transforms.ToImage(),
    transforms.ToDtype(torch.float32, scale=True), transforms.Normalize(data["mean"], data["std"])])
(bank, known), (queries, asked) = read(network, view, train), read(network, view, test)
worst = 0
print("| layer | k | PyTorch | pirl |\n| --- | --- | --- | --- |")
for layer, rows, tested in zip(LAYERS, bank, queries):
    for k, here in accuracies((rows, known), (tested, asked), ks).items():
        pirls = found["layers"][layer]["by_k"][str(k)]["top1"]
        worst = max(worst, abs(here - pirls))
        print(f"| {layer} | {k} | {here:.2f} | {pirls:.2f} |")
print(f"largest difference {worst:.3f} points")
assert worst <= TOLERANCE, f"more than {TOLERANCE} points apart"
