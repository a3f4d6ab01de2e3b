"""Features, gradients and running statistics of torchvision's ResNets and of PyTorch heads.

Writes network.safetensors. Weights and images come from benches/formula.py, so only results are
stored: of every gradient and statistic its L2 norm and 16 entries. Everything is computed in f64.
"""
import json
import struct
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.resnet import BasicBlock, resnet18, resnet50

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "../../../benches"))
from formula import fill  # noqa: E402

SAMPLES = 16


def tensor(seed, *shape):
    return torch.from_numpy(fill(seed, *shape).astype(np.float64))


def initialise(module, shift):
    """Parameter i is the sequence 100 + i, scaled; statistic i of the batch norms 5000 + i.

    `shift` is added to the batch norms' biases. In the large networks it keeps activations off the
    kink of ReLU: with 0, PyTorch's own f32 gradients are up to 4e-3 from its f64 ones.
    """
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            x = tensor(100 + i, *p.shape)
            if p.dim() > 1:
                p.copy_((x * np.sqrt(6 / p[0].numel())).float())
            else:
                p.copy_((x * 0.2).float())
        for m in module.modules():
            if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm1d)):
                m.weight += 1
                m.bias += shift
        statistics = [(n, b) for n, b in module.named_buffers() if "running" in n]
        for i, (name, b) in enumerate(statistics):
            x = tensor(5000 + i, *b.shape)
            b.copy_((x * 0.2 + name.endswith("var")).float())


def summary(tensors):
    norms, samples = [], []
    for t in tensors:
        t = t.detach().flatten()
        norms.append(t.norm())
        samples.append(t[torch.arange(SAMPLES) * (len(t) - 1) // (SAMPLES - 1)])
    return torch.stack(norms), torch.stack(samples)


def quarter_small():
    m = resnet18()
    m.inplanes = 16
    m.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
    m.bn1 = nn.BatchNorm2d(16)
    m.maxpool = nn.Identity()
    m.layer1 = m._make_layer(BasicBlock, 16, 2)
    m.layer2 = m._make_layer(BasicBlock, 32, 2, stride=2)
    m.layer3 = m._make_layer(BasicBlock, 64, 2, stride=2)
    m.layer4 = m._make_layer(BasicBlock, 128, 2, stride=2)
    return m


class Jigsaw(nn.Module):
    """g of the paper on 3 patches of 24 features, to 8 dimensions; linear or MLP."""

    def __init__(self, mlp):
        super().__init__()
        self.patch = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 8), nn.ReLU()) if mlp else nn.Linear(24, 8)
        self.fc = nn.Linear(24, 8)

    def forward(self, x):
        return F.normalize(self.fc(self.patch(x).reshape(-1, 24)))


class Covariant(nn.Module):
    """The covariant jigsaw's classifier on 3 patches of 24 features, to 5 classes."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Sequential(nn.Linear(24, 1000), nn.BatchNorm1d(1000), nn.ReLU())
        self.fc = nn.Linear(3000, 5)

    def forward(self, x):
        return self.fc(self.patch(x).reshape(-1, 3000))


def save(tensors, path):
    """A safetensors file of float32 tensors."""
    header, data = {}, b""
    for name, t in tensors.items():
        values = t.numpy().astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(t.shape), "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


out = {}


def record(name, module, x, shift=0):
    initialise(module, shift)
    module.double()
    for mode in ["eval", "train"]:
        module.train(mode == "train")
        module.zero_grad()
        x = x.detach().requires_grad_()
        y = module(x)
        (y * tensor(7, *y.shape)).sum().backward()
        key = f"{name}.{mode}"
        out[f"{key}.output"] = y.detach()
        out[f"{key}.grad_norms"], out[f"{key}.grad_samples"] = summary(p.grad for p in module.parameters())
        out[f"{key}.input_norm"], out[f"{key}.input_sample"] = summary([x.grad])
    statistics = [b for n, b in module.named_buffers() if "running" in n]
    if statistics:
        out[f"{name}.running_norms"], out[f"{name}.running_samples"] = summary(statistics)


for name, network, size, shift in [
    ("resnet18", resnet18(), 64, 3),
    ("resnet50", resnet50(), 64, 3),
    ("small12", quarter_small(), 12, 0),
    ("small28", quarter_small(), 28, 0),
]:
    network.fc = nn.Identity()
    record(name, network, tensor(3, 3, 3, size, size), shift)
for name, head in [("jigsaw", Jigsaw(False)), ("jigsaw_mlp", Jigsaw(True)), ("covariant", Covariant())]:
    record(name, head, tensor(1, 12, 24))

save(out, HERE / "network.safetensors")
