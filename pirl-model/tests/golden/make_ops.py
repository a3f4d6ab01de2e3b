"""Writes ops.safetensors: outputs and gradients of PyTorch's ops on inputs from benches/formula.py.

Small results are stored whole, large ones as their L2 norm followed by a fixed sample of entries.
Everything is NCHW. Run: python pirl-model/tests/golden/make_ops.py
"""
import pathlib
import sys

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2] / "benches"))
from formula import fill  # noqa: E402

SAMPLE = 64
CONVOLUTIONS = [  # n, c_in, h, w, c_out, kernel, stride, padding
    (1, 3, 9, 7, 5, 3, 1, 1),
    (2, 16, 7, 7, 17, 3, 2, 1),
    (3, 5, 1, 1, 4, 1, 1, 0),
    (4, 64, 2, 2, 100, 3, 1, 1),
    (2, 3, 15, 12, 16, 7, 2, 3),
    (2, 1, 12, 12, 16, 3, 1, 1),
    (2, 17, 6, 5, 8, 1, 2, 0),
    (9, 64, 6, 6, 128, 3, 2, 1),
    (2, 100, 5, 5, 64, 3, 1, 1),
]
NORMS = [(2, 3, 5, 4), (4, 16, 3, 3), (3, 100, 2, 5), (40, 64, 9, 11)]  # n, c, h, w
POOLS = [(2, 3, 8, 8), (1, 16, 7, 9), (1, 5, 1, 1), (2, 17, 2, 2)]  # n, c, h, w; 3x3/2, padding 1


def tensor(seed, *shape, shift=0.0):
    return (torch.from_numpy(fill(seed, *shape)) + shift).requires_grad_()


def summary(x):
    x = x.detach().numpy().reshape(-1)
    if x.size <= SAMPLE:
        return x.copy()
    norm = np.linalg.norm(x.astype(np.float64))
    picks = np.arange(SAMPLE) * x.size // SAMPLE
    return np.concatenate([[norm], x[picks]]).astype(np.float32)


golden = {}


def record(name, out, seed, **inputs):
    """Stores `out` and the gradients of sum(out * fill(seed)) with respect to the inputs."""
    (out * torch.from_numpy(fill(seed, *out.shape))).sum().backward()
    golden[f"{name}.out"] = summary(out)
    for key, value in inputs.items():
        golden[f"{name}.d_{key}"] = summary(value.grad)


torch.manual_seed(0)
for i, (n, c_in, h, w, c_out, kernel, stride, padding) in enumerate(CONVOLUTIONS):
    x, weight = tensor(1, n, c_in, h, w), tensor(2, c_out, c_in, kernel, kernel)
    record(f"conv{i}", F.conv2d(x, weight, stride=stride, padding=padding), 3, x=x, weight=weight)

for i, shape in enumerate(NORMS):
    for train in (True, False):
        c = shape[1]
        x, residual = tensor(1, *shape), tensor(4, *shape)
        gamma, beta = tensor(2, c, shift=1.5), tensor(3, c)
        mean, var = tensor(5, c).detach(), tensor(6, c, shift=1.25).detach()
        out = F.batch_norm(x, mean, var, gamma, beta, training=train, momentum=0.1, eps=1e-5)
        name = f"norm{i}.{'train' if train else 'eval'}"
        record(name, F.relu(out + residual), 9, x=x, gamma=gamma, beta=beta, residual=residual)

for i, shape in enumerate(POOLS):
    x = tensor(1, *shape)
    # Few distinct values, so that the rule for ties shows.
    rounded = torch.round(x * 3)
    rounded.retain_grad()
    record(f"pool{i}", F.max_pool2d(rounded, 3, stride=2, padding=1), 2, x=rounded)

x = tensor(1, 3, 17, 4, 5)
record("average", F.adaptive_avg_pool2d(x, 1).flatten(1), 2, x=x)
x, weight, bias = tensor(1, 5, 40), tensor(2, 17, 40), tensor(3, 17)
record("linear", F.linear(x, weight, bias), 4, x=x, weight=weight, bias=bias)
x = tensor(1, 50)
record("relu", F.relu(x), 2, x=x)

save_file(golden, HERE / "ops.safetensors")
print(len(golden), "tensors,", (HERE / "ops.safetensors").stat().st_size, "bytes")
