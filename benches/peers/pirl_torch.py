"""One PIRL step, feature extraction, the loss, the bank, probes and single ops in PyTorch, and probes in scikit-learn: the
peer that compare.py times.

Speaks lines: says `ready` once warmed up, answers `run` with the seconds of one run and `peak` with
the most memory this process ever held, in MiB.

    python pirl_torch.py KIND CASE LAYOUT PRECISION THREADS       (compare.py starts it)

In bf16 the networks run under autocast; loss, optimiser and bank are f32.
"""
import json
import pathlib
import sys
import time

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from formula import fill  # noqa: E402

CASES = json.loads((pathlib.Path(__file__).parent / "cases.json").read_text())

PATCHES, DIM = 9, 128
LONG = 20  # seconds; a run of so many is warm after one


class Block(nn.Module):
    """torchvision's BasicBlock, or its Bottleneck."""

    def __init__(self, c_in, planes, stride, bottleneck):
        super().__init__()
        c_out = planes * (4 if bottleneck else 1)
        if bottleneck:
            sizes = [(c_in, planes, 1, 1), (planes, planes, 3, stride), (planes, c_out, 1, 1)]
        else:
            sizes = [(c_in, planes, 3, stride), (planes, planes, 3, 1)]
        layers = []
        for i, o, kernel, step in sizes:
            layers += [nn.Conv2d(i, o, kernel, step, kernel // 2, bias=False), nn.BatchNorm2d(o), nn.ReLU(True)]
        self.branch = nn.Sequential(*layers[:-1])
        self.shortcut = None
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x):
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return F.relu(self.branch(x) + shortcut, inplace=True)


def resnet(depth, width):
    """ResNet-18 or -50 with the ImageNet stem, average-pooled; and its number of features."""
    bottleneck, blocks = (False, [2, 2, 2, 2]) if depth == 18 else (True, [3, 4, 6, 3])
    c = int(64 * width)
    layers = [nn.Conv2d(3, c, 7, 2, 3, bias=False), nn.BatchNorm2d(c), nn.ReLU(True), nn.MaxPool2d(3, 2, 1)]
    c_in = c
    for stage, count in enumerate(blocks):
        for block in range(count):
            layers.append(Block(c_in, c << stage, 2 if block == 0 and stage > 0 else 1, bottleneck))
            c_in = (c << stage) * (4 if bottleneck else 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), c_in


def paper(query, positive, negatives, tau):
    z_p = (query * positive).sum(1) / tau
    z_n = query @ negatives.T / tau
    log_s = torch.logsumexp(z_n, 1)
    return (F.softplus(log_s - z_p) + F.softplus(z_n - log_s[:, None]).sum(1)).mean()


def infonce(query, positive, negatives, tau):
    z = torch.cat([(query * positive).sum(1, keepdim=True), query @ negatives.T], 1) / tau
    return F.cross_entropy(z, torch.zeros(len(z), dtype=torch.long, device=z.device))


def step_case(name, layout, bf16):
    return step(CASES["step"][name], layout, torch.bfloat16 if bf16 else None)


def step(case, layout, autocast, device="cpu", foreach=None):
    """A training step on images that are on the device already; `autocast`: the type, or None for f32."""
    batch, image, patch = case["batch"], case["image"], case["patch"]
    trunk, features = resnet(case["depth"], case["width"])
    heads = [nn.Linear(features, DIM), nn.Linear(features, DIM), nn.Linear(DIM * PATCHES, DIM)]
    trunk, (f, g1, g2) = trunk.to(device), (head.to(device) for head in heads)
    loss = paper if case["loss"] == "paper" else infonce
    images = torch.randn(batch, 3, image, image, device=device)
    patches = torch.randn(batch * PATCHES, 3, patch, patch, device=device)
    if layout == "channels_last":
        trunk = trunk.to(memory_format=torch.channels_last)
        images, patches = (x.contiguous(memory_format=torch.channels_last) for x in (images, patches))
    parameters = [p for m in (trunk, f, g1, g2) for p in m.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 1e-4},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    sgd = torch.optim.SGD(groups, lr=0.01, momentum=0.9, foreach=foreach)
    scaler = torch.amp.GradScaler(device, enabled=autocast == torch.float16)
    bank = F.normalize(torch.randn(case["bank"], DIM, device=device), dim=1)
    rows = torch.arange(batch, device=device)
    negatives = bank[-case["negatives"]:].clone()

    def run():
        with torch.autocast(device, dtype=autocast, enabled=autocast is not None):
            of_patches, of_images = trunk(patches), trunk(images)
            g, v = g2(g1(of_patches).reshape(batch, -1)), f(of_images)
        g, v = F.normalize(g.float(), dim=1), F.normalize(v.float(), dim=1)
        positive = bank[rows]
        total = (loss(g, positive, negatives, case["tau"]) + loss(v, positive, negatives, case["tau"])) / 2
        sgd.zero_grad()
        scaler.scale(total).backward()
        scaler.step(sgd)
        scaler.update()
        with torch.no_grad():
            bank[rows] = F.normalize(0.5 * bank[rows] + 0.5 * v, dim=1)
        return total

    return run


def features_case(name, layout, bf16):
    """Features of a batch by a frozen network, batch norm folded into the convolutions."""
    case = CASES["features"][name]
    trunk = resnet(case["depth"], case["width"])[0].eval()
    for part in [trunk, *(m for m in trunk.modules() if isinstance(m, nn.Sequential) and m is not trunk)]:
        for i, layer in enumerate(part):
            if isinstance(layer, nn.BatchNorm2d):
                part[i - 1] = fuse_conv_bn_eval(part[i - 1], layer)
                part[i] = nn.Identity()
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    trunk = trunk.to(memory_format=form)
    images = torch.randn(case["batch"], 3, case["image"], case["image"])

    def run():
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            trunk(images.contiguous(memory_format=form))

    return run


def loss_case(name):
    """Both branches of the paper's loss, forward and backward."""
    case = CASES["loss"][name]
    unit = lambda n: F.normalize(torch.randn(n, case["dim"]), dim=1)
    g, v = (unit(case["batch"]).requires_grad_() for _ in range(2))
    positive, negatives = unit(case["batch"]), unit(case["negatives"])

    def run():
        total = (paper(g, positive, negatives, 0.07) + paper(v, positive, negatives, 0.07)) / 2
        torch.autograd.grad(total, [g, v])

    return run


def bank_case(name):
    """A step's share of the bank: draw negatives, gather them, update the batch's rows."""
    case = CASES["bank"][name]
    rows, batch, count = case["rows"], case["batch"], case["negatives"]
    bank = F.normalize(torch.randn(rows, case["dim"]), dim=1)
    embeddings = F.normalize(torch.randn(batch, case["dim"]), dim=1)
    own = torch.arange(batch) * 999_983 % rows

    def run():
        # With replacement, as VISSL draws: faster than the only other way it has, a permutation.
        drawn = bank[torch.randint(0, rows, (count,))]
        bank[own] = F.normalize(0.5 * bank[own] + 0.5 * embeddings, dim=1)
        return drawn

    return run


def probe_case(name):
    """Weighted nearest neighbours as a loop of products, or a linear probe (batch norm, softmax regression)."""
    case = CASES["probe"][name]
    rows, classes = case["train"], case["classes"]
    x, x_test = (torch.from_numpy(fill(seed, n, case["dim"])) for seed, n in ((1, rows), (2, case["test"])))
    y, y_test = (torch.arange(n) % classes for n in (rows, case["test"]))

    def knn():
        bank, right = F.normalize(x, dim=1), 0
        for queries, labels in zip(F.normalize(x_test, dim=1).split(256), y_test.split(256)):
            similarity, index = (queries @ bank.T).topk(case["k"])
            votes = torch.zeros(len(queries), classes)
            votes.scatter_add_(1, y[index], ((similarity - 1) / 0.07).exp())
            right += (votes.argmax(1) == labels).sum()
        return right / len(y_test)

    def linear():
        probe = nn.Sequential(nn.BatchNorm1d(case["dim"], affine=False), nn.Linear(case["dim"], classes))
        sgd = torch.optim.SGD(probe.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
        for _ in range(case["epochs"]):
            for batch in torch.randperm(rows).split(256):
                sgd.zero_grad()
                F.cross_entropy(probe(x[batch]), y[batch]).backward()
                sgd.step()
        with torch.inference_mode():
            return (probe.eval()(x_test).argmax(1) == y_test).float().mean()

    return {"knn": knn, "linear": linear}[case["probe"]]


def sklearn_case(name, threads):
    """The same of scikit-learn. Nearest neighbours of unit rows by its fastest metric, whose weights are those of
    the cosines; softmax regression is one classifier for each class there."""
    import threadpoolctl
    from sklearn.linear_model import SGDClassifier
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import Normalizer, StandardScaler

    threadpoolctl.threadpool_limits(threads)
    case = CASES["probe"][name]
    x, x_test = (fill(seed, n, case["dim"]) for seed, n in ((1, case["train"]), (2, case["test"])))
    y, y_test = (torch.arange(n).numpy() % case["classes"] for n in (case["train"], case["test"]))

    def knn():
        return Normalizer(), KNeighborsClassifier(
            case["k"], weights=lambda distance: np.exp(-distance / 0.14), algorithm="brute", metric="sqeuclidean"
        )

    def linear():
        return StandardScaler(), SGDClassifier("log_loss", max_iter=case["epochs"], tol=None, n_jobs=threads)

    steps = {"knn": knn, "linear": linear}[case["probe"]]
    return lambda: make_pipeline(*steps()).fit(x, y).score(x_test, y_test)


def op_case(name, layout, bf16):
    """A convolution alone, forward and both gradients."""
    dtype = torch.bfloat16 if bf16 else torch.float32
    n, side, c_in, c_out, kernel, stride = CASES["op"][name]
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x = torch.randn(n, c_in, side, side, dtype=dtype).contiguous(memory_format=form).requires_grad_()
    w = torch.randn(c_out, c_in, kernel, kernel).contiguous(memory_format=form).requires_grad_()

    def forward():
        return F.conv2d(x, w.to(dtype), None, stride, kernel // 2)

    dy = torch.randn_like(forward())

    def run():
        torch.autograd.grad(forward(), [x, w], dy)

    return run


def detect_case(name):
    """ROIAlign, alone or with its gradient, or non-maximum suppression, by torchvision."""
    import torchvision

    case = CASES["detect"][name]

    def regions(width, height):
        t = torch.from_numpy(fill(1, case["boxes"], 4))
        corner = (t[:, :2] + 1) / 2 * torch.tensor([width, height])
        far = corner + 16 * torch.exp2((t[:, 2:] + 1) * 2.5)
        return torch.cat([corner, far.minimum(torch.tensor([width, height]))], 1)

    if case["op"] == "nms":
        boxes, scores = regions(800, 600), torch.from_numpy(fill(2, case["boxes"]))
        return lambda: torchvision.ops.nms(boxes, scores, case["threshold"])
    height, width = case["height"], case["width"]
    rois = F.pad(regions(width * 16, height * 16), (1, 0))  # all of image 0
    features = torch.from_numpy(fill(3, 1, case["channels"], height, width))
    features.requires_grad_(case["backward"])

    def run():
        out = torchvision.ops.roi_align(features, rois, case["output"], 1 / 16, -1, aligned=True)
        if case["backward"]:
            torch.autograd.grad(out.sum(), features)

    return run


def main():
    kind, case, layout, precision, threads = sys.argv[1:]
    bf16 = precision == "bf16"
    torch.set_num_threads(int(threads))
    torch.manual_seed(1)
    run = {
        "step": lambda: step_case(case, layout, bf16),
        "features": lambda: features_case(case, layout, bf16),
        "loss": lambda: loss_case(case),
        "bank": lambda: bank_case(case),
        "probe": lambda: probe_case(case),
        "sklearn": lambda: sklearn_case(case, int(threads)),
        "op": lambda: op_case(case, layout, bf16),
        "detect": lambda: detect_case(case),
    }[kind]()
    start = time.perf_counter()
    run()
    if time.perf_counter() - start < LONG:
        run()
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "run":
            start = time.perf_counter()
            run()
            print(time.perf_counter() - start, flush=True)
        else:
            status = open("/proc/self/status").read()
            print(int(status.split("VmHWM:")[1].split()[0]) / 1024, flush=True)


if __name__ == "__main__":
    main()
