"""Checkpoints as PyTorch programs save them, and torchvision's features with their weights.

Writes weights/*.pth and weights/features.json. The networks are torchvision's ResNet-18 and ResNet-50,
whole; to keep files small each weight is a view of one short storage of random numbers, with strides
of its own, which `torch.save` stores once. Of the features every fourth is kept. Also a .pth that runs a command when Python loads it.
"""
import argparse
import json
import os
import sys
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn
from torchvision.models.resnet import resnet18, resnet50

HERE = Path(__file__).parent
OUT = HERE / "weights"
sys.path.insert(0, str(HERE / "../../../benches"))
from formula import fill  # noqa: E402

NUMBERS = 4093


def weights(network, seed):
    """A state dict of views. Each batch norm's statistics are random, in the range that keeps what
    comes out of it near 1 in size: a power of 2 that a forward pass finds."""
    random = torch.from_numpy(fill(seed, NUMBERS))
    shared = {}

    def segment(name, values):
        return shared.setdefault(name, values().clone())

    widest = max(len(t) for t in network.state_dict().values() if t.dim() == 1)
    state = OrderedDict()
    for i, (name, tensor) in enumerate(network.state_dict().items()):
        shape = tensor.shape
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(1000 + i)
        elif tensor.dim() == 1:
            of_norm = name.endswith("weight")
            scale = segment(of_norm, lambda: (random[:widest + 200] * 0.3 + of_norm))
            state[name] = scale[7 * i % 200:][:len(tensor)]
        else:
            # Overlapping views: the last number lies within the storage.
            strides = [1 + (NUMBERS - 1200) // (2 * shape[0]), 1 + 1000 // (2 * shape[1]), 3, 1][:len(shape)]
            state[name] = torch.as_strided(random, shape, strides, i % 97)
            assert i % 97 + sum((d - 1) * s for d, s in zip(shape, strides)) < NUMBERS
    network.load_state_dict(state)

    def calibrate(name, norm, inputs):
        size = round(inputs[0].pow(2).mean().sqrt().log2().item())
        mean = segment(("mean", size), lambda: random[-widest:] * 0.3 * 2.0**size)
        var = segment(("var", size), lambda: (1 + 0.5 * random[:widest]) * 4.0**size)
        for field, values in [("running_mean", mean), ("running_var", var)]:
            state[f"{name}.{field}"] = values[:len(norm.weight)]
            getattr(norm, field).copy_(state[f"{name}.{field}"])

    for name, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(lambda norm, inputs, name=name: calibrate(name, norm, inputs))
    with torch.no_grad():
        network.eval()(images())
    return state


def images():
    return torch.from_numpy(fill(3, 2, 3, 64, 64))


def features(network, state):
    """Of two images, in f64."""
    network.load_state_dict(state)
    network.fc = nn.Identity()
    with torch.inference_mode():
        return network.double().eval()(images().double())


def save(name, content, legacy=False):
    torch.save(content, OUT / name, _use_new_zipfile_serialization=not legacy)


def under(prefix, state):
    return OrderedDict((prefix + name, tensor) for name, tensor in state.items())


class Command:
    """What torch.load(..., weights_only=False) would run."""

    def __reduce__(self):
        return os.system, ("touch pickled-call-was-run",)


OUT.mkdir(exist_ok=True)
small, large = weights(resnet18(), 1), weights(resnet50(), 2)
other = weights(resnet18(), 3)
golden = {"resnet18": features(resnet18(), small), "resnet50": features(resnet50(), large)}
for name, values in golden.items():
    assert values.isfinite().all() and (values.std() > 1e-3).all(), name
(OUT / "features.json").write_text(json.dumps({name: [float(f"{x:.7g}") for x in values[:, ::4].flatten().tolist()] for name, values in golden.items()}))

without_fc = OrderedDict((k, v) for k, v in small.items() if not k.startswith("fc."))
save("torchvision.pth", large)
save("timm.pth", small)  # timm's resnet18 has torchvision's names
save("legacy.pth", small, legacy=True)
save("parallel.pth.tar", {"epoch": 3, "arch": "resnet18", "state_dict": under("module.", small), "best_acc1": torch.tensor(1.0)})
save("moco.pth.tar", {"epoch": 200, "arch": "resnet18",
                      "state_dict": under("module.encoder_k.", other) | under("module.encoder_q.", small) | {"module.queue": torch.zeros(2, 3)}})
save("pycontrast.pth", {"opt": argparse.Namespace(lr=0.03, gpu=None), "model": under("module.encoder.", without_fc) | {"module.head.0.weight": torch.zeros(2, 3)},
                        "contrast": {"memory": torch.zeros(4, 2)}, "epoch": 200})
save("vissl.torch", {
    "phase_idx": 199,
    "iteration": 10,
    "loss": {"nce_average.memory": torch.zeros(4, 2), "nce_average.params": torch.tensor([4.0, 0.07, -1.0, 0.5])},
    "iteration_num": 9,
    "train_phase_idx": 199,
    "classy_state_dict": {
        "train": True,
        "base_model": {"model": {"trunk": under("_feature_blocks.", without_fc), "heads": {"0.clf.0.weight": torch.zeros(2, 3)}}, "meta": None},
        "meters": {"train": None},
        "optimizer": {"optim": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}},
    },
    "type": "consolidated",
})
save("command.pth", {"state_dict": {"conv1.weight": torch.zeros(1), "extra": Command()}})
