"""Writes detect.safetensors: torchvision's ROIAlign, NMS, box coding, matching and proposals.

detectron2 is not on PyPI; where its rule differs from torchvision's (anchors, small boxes) it is
written out here. Features, scores and offsets come from benches/formula.py.
Run: python pirl-eval/tests/golden/make_detect.py
"""
import math
import pathlib
import sys

import numpy as np
import torch
from safetensors.numpy import save_file
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, nms, roi_align

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2] / "benches"))
from formula import fill  # noqa: E402

golden = {}


def record(name, value):
    value = value.detach().numpy() if torch.is_tensor(value) else np.asarray(value)
    if value.dtype == np.int64:
        value = value.astype(np.uint32)
    golden[name] = np.ascontiguousarray(value)


def tensor(seed, *shape):
    return torch.from_numpy(fill(seed, *shape))


def boxes(seed, count, spread=200, size=40):
    """Corners in [0, 2 spread), sides in [0, 2 size), in single precision."""
    t = tensor(seed, count, 4)
    corner, sides = (t[:, :2] + 1) * spread, (t[:, 2:] + 1) * size
    return torch.cat([corner, corner + sides], 1)


# Inside, outside, across every border, empty, inverted, huge; in pixels of 16 to a cell.
REGIONS = [
    [0, 10.3, 20.7, 130.2, 155.9],
    [1, 0, 0, 272, 208],
    [0, 100, 90, 101.5, 91],
    [1, -40, -30, 50, 60],
    [0, 200, 150, 400, 300],
    [1, 1000, 1000, 1100, 1200],
    [0, 50, 50, 50, 50],
    [1, 80, 90, 60, 40],
    [0, -500, -500, 900, 900],
    [1, 30, 60, 34, 190],
    [0, 271.9, 207.9, 272, 208],
    [1, -15.9, 10, -8.1, 40],
]
ALIGNS = [  # n, c, h, w; rows, columns; scale; sampling ratio; aligned
    (2, 3, 13, 17, 7, 7, 1 / 16, 0, True),
    (2, 2, 13, 17, 3, 5, 1 / 16, 2, True),
    (2, 2, 13, 17, 4, 2, 1 / 16, 0, False),
    (2, 1, 5, 3, 2, 3, 0.25, 3, False),
    (2, 5, 1, 1, 2, 2, 1 / 16, 0, True),
    (2, 17, 4, 6, 1, 1, 1 / 48, 0, True),
]
regions = torch.tensor(REGIONS)
record("align.regions", regions)
for i, (n, c, h, w, rows, columns, scale, ratio, aligned) in enumerate(ALIGNS):
    x = tensor(1, n, c, h, w).requires_grad_()
    # The sampled grid of an empty region of a fixed ratio is not empty, so all are kept.
    out = roi_align(x, regions, (rows, columns), scale, ratio if ratio > 0 else -1, aligned)
    (out * tensor(2, *out.shape)).sum().backward()
    record(f"align{i}.out", out)
    record(f"align{i}.d_features", x.grad)

for count in (300, 1100):
    b = boxes(3, count)
    b[::50, 2:] = b[::50, :2]  # without area
    whole = b.round()  # so that IoUs tie with the threshold
    scores = tensor(4, count)
    tied = (scores * 8).round()
    classes = torch.arange(count) * 7 % 11 % 5
    for threshold in (0.3, 0.5, 0.7):
        record(f"nms{count}.{threshold}", nms(b, scores, threshold))
        record(f"nms{count}.{threshold}.tied", nms(whole, tied, threshold))
        record(f"batched_nms{count}.{threshold}", batched_nms(b, scores, classes, threshold))
        keep = batched_nms(whole, tied, classes, threshold)
        if count > 1000:  # sorted by a sort that is not stable: of equal scores any may come first
            keep = keep.sort()[0]
            keep = keep[tied[keep].sort(descending=True, stable=True)[1]]
        record(f"batched_nms{count}.{threshold}.tied", keep)

for i, weights in enumerate([(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]):
    coder = BoxCoder(weights)
    # Both at least a pixel wide.
    src, dst = (boxes(seed, 40) + torch.tensor([0, 0, 1, 1]) for seed in (5, 6))
    offsets = coder.encode_single(dst, src)
    record(f"coder{i}.offsets", offsets)
    record(f"coder{i}.boxes", coder.decode_single(offsets, src))
    record(f"coder{i}.wild", coder.decode_single(tensor(7, 40, 4) * 30, src))


def cell_anchors(sizes, ratios):
    """detectron2's generate_cell_anchors."""
    anchors = []
    for size in sizes:
        for ratio in ratios:
            w = math.sqrt(size**2.0 / ratio)
            h = ratio * w
            anchors.append([-w / 2.0, -h / 2.0, w / 2.0, h / 2.0])
    return torch.tensor(anchors)


def anchors(sizes, ratios, stride, h, w):
    """detectron2's _grid_anchors with an offset of 0."""
    ys, xs = (torch.arange(0, n * stride, step=stride, dtype=torch.float32) for n in (h, w))
    y, x = torch.meshgrid(ys, xs, indexing="ij")
    shifts = torch.stack([x, y, x, y], 2).reshape(-1, 1, 4)
    return (shifts + cell_anchors(sizes, ratios)).reshape(-1, 4)


RATIOS = [0.5, 1.0, 2.0]
SIZES = [32, 64, 128, 256, 512]
record("anchors.c4", anchors(SIZES, RATIOS, 16, 3, 4))
record("anchors.odd", anchors([24.5], [0.3, 1.7], 7, 2, 5))

objects = boxes(8, 9, spread=50, size=40)
grid = anchors(SIZES, RATIOS, 16, 9, 10)
for name, (low, high, low_quality) in {"rpn": (0.3, 0.7, True), "head": (0.5, 0.5, False)}.items():
    given = torch.cat([objects, objects[4:5]])  # one twice: a tie
    overlaps = box_iou(given, grid)
    record(f"match.{name}.objects", overlaps.max(0)[1])
    matched = Matcher(high, low, low_quality)(overlaps)
    labels = torch.where(matched >= 0, 1, torch.where(matched == Matcher.BELOW_LOW_THRESHOLD, 0, 2))
    record(f"match.{name}.labels", labels)


def top_proposals(levels, size, pre, post, threshold, min_size):
    """detectron2's find_top_rpn_proposals for one image."""
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    found = []
    for level, (anchor, logits, offsets) in enumerate(levels):
        scores, index = logits.topk(min(pre, len(logits)))
        b = coder.decode_single(offsets[index], anchor[index])
        found.append((b, scores, torch.full((len(b),), level)))
    b, scores, level = (torch.cat(x) for x in zip(*found))
    b = clip_boxes_to_image(b, size)
    large = ((b[:, 2:] - b[:, :2]) > min_size).all(1)
    b, scores, level = b[large], scores[large], level[large]
    keep = batched_nms(b, scores, level, threshold)[:post]
    return b[keep], scores[keep]


maps, size = [(16, 10, 13), (32, 5, 7)], (150, 205)
levels = []
for seed, (stride, h, w) in enumerate(maps):
    a = anchors(SIZES[:3], RATIOS, stride, h, w)
    logits, offsets = tensor(10 + seed, len(a)) * 4, tensor(20 + seed, len(a), 4)
    offsets[::37] -= 6  # shrunk to less than a pixel, or moved out
    assert len(logits.unique()) == len(logits), "ties have no order in PyTorch"
    levels.append((a, logits, offsets))
for i, (pre, post, threshold, min_size, count) in enumerate(
    [(400, 100, 0.7, 0, 1), (10**6, 50, 0.5, 0, 1), (200, 10**6, 0.7, 4, 2), (300, 60, 0.7, 0, 2)]
):
    b, scores = top_proposals(levels[:count], size, pre, post, threshold, min_size)
    record(f"proposals{i}.boxes", b)
    record(f"proposals{i}.logits", scores)
    if min_size == 0 and count == 1:
        # torchvision's own: it drops sides below its least size, where detectron2 wants them above.
        top = {"training": pre, "testing": pre}, {"training": post, "testing": post}
        rpn = RegionProposalNetwork(AnchorGenerator(), RPNHead(4, 9), 0.7, 0.3, 256, 0.5, *top, threshold)
        rpn.min_size = 1e-30
        a, logits, offsets = levels[0]
        decoded = rpn.box_coder.decode_single(offsets, a)[None]
        theirs, _ = rpn.filter_proposals(decoded, logits[None], [size], [len(a)])
        assert torch.equal(theirs[0], b), "torchvision's proposals differ"

save_file(golden, str(HERE / "detect.safetensors"))
