"""Ten steps of SGD and LARS, learning rates of the schedules, and torchvision's state dicts.

Writes optim.json and torchvision.json.
"""
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn
from torch.optim import lr_scheduler as schedulers

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "../../../benches"))
from formula import fill  # noqa: E402

STEPS = 10


def run(lars=False, decay_all=False, **options):
    """A linear layer of 6 inputs and 4 outputs; step t's gradient is the sequences 10 + 2t, 11 + 2t."""
    layer = nn.Linear(6, 4).double()
    decay = options.pop("weight_decay")
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(fill(1, 4, 6)))
        layer.bias.copy_(torch.from_numpy(fill(2, 4)))
    groups = [
        {"params": [layer.weight], "weight_decay": 0 if lars else decay},
        {"params": [layer.bias], "weight_decay": decay if decay_all and not lars else 0},
    ]
    sgd = torch.optim.SGD(groups, **options)
    for t in range(STEPS):
        layer.weight.grad = torch.from_numpy(fill(10 + 2 * t, 4, 6)).double()
        layer.bias.grad = torch.from_numpy(fill(11 + 2 * t, 4)).double()
        if lars:  # Apex's LARC without clipping, on the weight alone
            w, g = layer.weight.detach(), layer.weight.grad
            trust = 0.02 * w.norm() / (g.norm() + decay * w.norm())
            layer.weight.grad = (g + decay * w) * trust
        sgd.step()
    return torch.cat([layer.weight.flatten(), layer.bias]).tolist()


optim = {
    "plain": run(lr=0.1, momentum=0.0, weight_decay=0.0),
    "momentum": run(lr=0.1, momentum=0.9, weight_decay=0.01),
    "decay_all": run(lr=0.1, momentum=0.9, weight_decay=0.01, decay_all=True),
    "nesterov": run(lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
    "lars": run(lars=True, lr=0.1, momentum=0.9, weight_decay=0.01),
}


def rates(make, steps):
    sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.12)
    schedule = make(sgd)
    values = []
    for _ in range(steps):
        values.append(sgd.param_groups[0]["lr"])
        sgd.step()
        schedule.step()
    return values


def warm_cosine(sgd):
    warm = schedulers.LinearLR(sgd, 0.25, total_iters=6)
    cosine = schedulers.CosineAnnealingLR(sgd, 14, eta_min=0.12 * 0.001)
    return schedulers.SequentialLR(sgd, [warm, cosine], [6])


# 5 epochs of 4 steps
schedule = {
    "cosine": rates(lambda o: schedulers.CosineAnnealingLR(o, 20, eta_min=0.12 * 0.001), 20),
    "multi_step": rates(lambda o: schedulers.MultiStepLR(o, [8, 16], gamma=0.1), 20),
    "warm_cosine": rates(warm_cosine, 20),
}
(HERE / "optim.json").write_text(json.dumps({"optim": optim, "schedule": schedule}, indent=0))

names = {}
for arch in ["resnet18", "resnet34", "resnet50", "resnet101"]:
    state = getattr(torchvision.models, arch)().state_dict()
    names[arch] = [[n, list(t.shape)] for n, t in state.items() if not n.startswith("fc.")]
(HERE / "torchvision.json").write_text(json.dumps(names, separators=(",", ":")))
