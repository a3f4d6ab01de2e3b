"""Writes sgd.json: batch norm and softmax regression trained by PyTorch, 12 steps on all rows and 6 on
batches of their own.

python make_sgd.py
"""
import json, pathlib, sys

import torch

here = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(here.parents[2] / "benches"))
from formula import fill

ROWS, CHANNELS, CELLS, CLASSES = 40, 3, 2, 4
x = torch.from_numpy(fill(21, ROWS, CHANNELS * CELLS)) * 2 + 1
y = torch.tensor([i * 7 % 11 % CLASSES for i in range(ROWS)])
maps = x.reshape(ROWS, CHANNELS, CELLS)
result = {}
for affine in (False, True):
    norm = torch.nn.BatchNorm1d(CHANNELS, affine=affine)
    linear = torch.nn.Linear(CHANNELS * CELLS, CLASSES)
    torch.nn.init.zeros_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    optimizer = torch.optim.SGD(
        [
            {"params": list(linear.parameters()), "weight_decay": 0.01},
            {"params": list(norm.parameters()), "weight_decay": 0.0},
        ],
        lr=0.2, momentum=0.9, nesterov=True,
    )
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[5, 9], gamma=0.1)
    for _ in range(12):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(linear(norm(maps).flatten(1)), y)
        loss.backward()
        optimizer.step()
        scheduler.step()
    with torch.no_grad():
        logits = linear(norm(maps).flatten(1))
    result["affine" if affine else "plain"] = [round(v, 7) for v in logits.flatten().tolist()]
# Batches of their own, as random crops make them: batch norm learns running statistics on the way.
norm, linear = torch.nn.BatchNorm1d(CHANNELS), torch.nn.Linear(CHANNELS * CELLS, CLASSES)
torch.nn.init.zeros_(linear.weight)
torch.nn.init.zeros_(linear.bias)
optimizer = torch.optim.SGD(
    [
        {"params": list(linear.parameters()), "weight_decay": 0.01},
        {"params": list(norm.parameters()), "weight_decay": 0.0},
    ],
    lr=0.2, momentum=0.9, nesterov=True,
)


def batch(seed, rows):
    return (torch.from_numpy(fill(seed, rows, CHANNELS * CELLS)) * 2 + 1).reshape(rows, CHANNELS, CELLS)


losses = []
for step in range(6):
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(linear(norm(batch(51 + step, 16)).flatten(1)), y[:16])
    losses.append(round(loss.item(), 7))
    loss.backward()
    optimizer.step()
norm.eval()
with torch.no_grad():
    logits = linear(norm(batch(60, 10)).flatten(1))
result["batch_losses"] = losses
result["batch_logits"] = [round(v, 7) for v in logits.flatten().tolist()]
(here / "sgd.json").write_text(json.dumps(result) + "\n")
