#!/usr/bin/env python3
"""Twenty PIRL steps in PyTorch, from weights and batches that come from benches/formula.py.

Writes pirl-train/tests/golden/trajectory.json: the loss of each step. The test `trajectory` of pirl-train
takes the same steps with pirl's own training step and must stay within 0.1 % of every one of them.

In f64, and at a small rate: this toy is chaotic. PyTorch's own f32 leaves its f64 by 0.1 % within 20
steps at a rate of 0.001, and by 0.9 % at 0.003.

    python3 benches/peers/trajectory.py          # needs torch and numpy
"""
import json
import math
import pathlib
import sys

import torch
import torch.nn as nn
import torch.nn.functional as F

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benches"))
from formula import fill as fill32  # noqa: E402

ROWS, BATCH, NEGATIVES, DIM, VIEWS = 96, 16, 48, 32, 9
IMAGE, PATCH, CHANNELS = 28, 12, (16, 32, 64, 128)
TEMPERATURE, LAMBDA, BANK_MOMENTUM = 0.1, 0.5, 0.5
LR, MOMENTUM, WEIGHT_DECAY, STEPS = 0.0003, 0.9, 1e-4, 20


def fill(seed, *shape):
    return fill32(seed, *shape).astype("float64")


class BasicBlock(nn.Module):
    def __init__(self, c_in, c_out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.downsample = None
        if stride != 1 or c_in != c_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out)
            )

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Trunk(nn.Module):
    """ResNet-18, width 0.25, small stem, with torchvision's parameter names."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, CHANNELS[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(CHANNELS[0])
        c_in = CHANNELS[0]
        for k, c in enumerate(CHANNELS):
            blocks = [BasicBlock(c_in, c, 1 if k == 0 else 2), BasicBlock(c, c, 1)]
            setattr(self, f"layer{k + 1}", nn.Sequential(*blocks))
            c_in = c

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        for k in range(4):
            x = getattr(self, f"layer{k + 1}")(x)
        return x.mean((2, 3))


def initialise(module, first_seed):
    """Weights by the formula: the seed is the parameter's rank among the sorted names."""
    for rank, (_, p) in enumerate(sorted(module.named_parameters())):
        if p.ndim == 1:
            continue  # batch norm stays 1 and 0, biases become 0
        bound = math.sqrt(3.0 / p[0].numel())
        with torch.no_grad():
            p.copy_(torch.from_numpy(fill(first_seed + rank, *p.shape)) * bound)
    for name, p in module.named_parameters():
        if p.ndim == 1 and "bn" not in name and "downsample" not in name:
            nn.init.zeros_(p)


def batch(step):
    """Indices, images and patches of a step: each image keeps a base of its own."""
    indices = [(step * BATCH + k) * 5 % ROWS for k in range(BATCH)]
    image = lambda i: torch.from_numpy(fill(2000 + i, 3, IMAGE, IMAGE))
    noise = torch.from_numpy(fill(3000 + step, BATCH, 3, IMAGE, IMAGE))
    images = torch.stack([image(i) for i in indices]) + 0.3 * noise
    patch = lambda i: torch.from_numpy(fill(4000 + i, VIEWS, 3, PATCH, PATCH))
    noise = torch.from_numpy(fill(5000 + step, BATCH * VIEWS, 3, PATCH, PATCH))
    patches = torch.cat([patch(i) for i in indices]) + 0.3 * noise
    return indices, images, patches


def term(v, positive, negatives, own):
    """Equation (5), the mean over the batch; `own` marks each image's own row."""
    z = (v @ negatives.T / TEMPERATURE).masked_fill(own, -math.inf)
    lse = z.logsumexp(1)
    z_p = (v * positive).sum(1) / TEMPERATURE
    return (F.softplus(lse - z_p) + F.softplus(z - lse[:, None]).sum(1)).mean()


def main():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    trunk = Trunk()
    f = nn.Linear(CHANNELS[-1], DIM)
    patch, joint = nn.Linear(CHANNELS[-1], DIM), nn.Linear(DIM * VIEWS, DIM)
    initialise(trunk, 100)
    for seed, layer in ((300, f), (310, patch), (320, joint)):
        initialise(layer, seed)
    bank = F.normalize(torch.from_numpy(fill(400, ROWS, DIM)), dim=1)

    parameters = [p for m in (trunk, f, patch, joint) for p in m.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    sgd = torch.optim.SGD(groups, lr=LR, momentum=MOMENTUM)
    losses = []
    for step in range(STEPS):
        indices, images, patches = batch(step)
        drawn = torch.tensor([(7 * k + 11 * step) % ROWS for k in range(NEGATIVES)])
        own = drawn[None] == torch.tensor(indices)[:, None]
        h = trunk(patches)
        g = F.normalize(joint(patch(h).reshape(BATCH, -1)), dim=1)
        v = F.normalize(f(trunk(images)), dim=1)
        positive, negatives = bank[indices], bank[drawn]
        loss = LAMBDA * term(g, positive, negatives, own)
        loss = loss + (1 - LAMBDA) * term(v, positive, negatives, own)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        with torch.no_grad():
            mixed = BANK_MOMENTUM * bank[indices] + (1 - BANK_MOMENTUM) * v
            bank[indices] = F.normalize(mixed, dim=1)
        losses.append(loss.item())
    out = ROOT / "pirl-train/tests/golden/trajectory.json"
    out.write_text(json.dumps({"losses": losses}, indent=1) + "\n")
    print(*(f"{x:.6f}" for x in losses))


if __name__ == "__main__":
    main()
