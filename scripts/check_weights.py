#!/usr/bin/env python3
"""Checks `pirl export` and the reading of checkpoints against torchvision itself.

    python3 scripts/check_weights.py            # needs torch, torchvision, safetensors; builds pirl

An untrained ResNet-18 and ResNet-50 go out and into torchvision by load_state_dict; torchvision's go
in, saved as other programs save them, and come out the same to the bit. detectron2, where it is
installed, must place every tensor of its R50-C4.
"""
import pathlib
import subprocess
import tempfile

import torch
import torchvision
from safetensors.torch import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parents[1]
PIRL = ROOT / "target" / "release" / "pirl"


def export(weights, output, format="torchvision", *more):
    command = [PIRL, "export", "--weights", weights, "--format", format, "--output", output, *more]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return load_file(output)


def same(a, b):
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def detectron2_loads(state):
    """Whether detectron2's checkpointer finds a place for every weight and statistic."""
    from detectron2 import model_zoo
    from detectron2.checkpoint import DetectionCheckpointer
    from detectron2.modeling import build_model

    config = model_zoo.get_config("PascalVOC-Detection/faster_rcnn_R_50_C4.yaml")
    config.MODEL.DEVICE = "cpu"
    model = build_model(config)
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        torch.save({"model": state, "matching_heuristics": True}, file.name)
        DetectionCheckpointer(model).load(file.name)
    placed = model.state_dict()
    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked"):
            prefix = "roi_heads." if name.startswith("res5") else "backbone."
            assert torch.equal(placed[prefix + name], tensor), name


def check(arch, folder):
    name = str(folder / "out.safetensors")
    network = getattr(torchvision.models, arch)(num_classes=7)
    recipe = ["--recipe", "imagenet-resnet50-jigsaw", "--set", f"model.arch={arch}"]
    untrained = export("random", name, "torchvision", *recipe)
    whole = untrained | {k: v for k, v in network.state_dict().items() if k.startswith("fc.")}
    network.load_state_dict(whole, strict=True)

    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    state = network.state_dict()
    own = {k: v for k, v in state.items() if not k.startswith("fc.")}
    under = lambda prefix, state=own: {prefix + k: v for k, v in state.items()}
    files = {
        "torchvision.pth": state,
        "parallel.pth": {"state_dict": torch.nn.DataParallel(network).state_dict()},
        "vissl.torch": {"classy_state_dict": {"base_model": {"model": {"trunk": under("_feature_blocks.")}}}},
        "pycontrast.pth": {"model": under("module.encoder.")},
        "moco.pth.tar": {"state_dict": under("module.encoder_q.") | under("module.encoder_k.", untrained)},
        "whole.pth": {"optimizer": torch.optim.SGD(network.parameters(), 0.1, momentum=0.9).state_dict(), "model": state},
    }
    for file, content in files.items():
        for legacy in [False, True]:
            torch.save(content, folder / file, _use_new_zipfile_serialization=not legacy)
            assert same(export(folder / file, name), own), file
    save_file(state, folder / "torchvision.safetensors")
    assert same(export(folder / "torchvision.safetensors", name), own)
    renamed = export(folder / "torchvision.safetensors", str(folder / "detectron2.safetensors"), "detectron2")
    assert same(export(folder / "detectron2.safetensors", name), own)
    if arch == "resnet50":
        try:
            import detectron2  # noqa: F401
        except ImportError:
            print("detectron2 is not installed: its own checkpointer was not asked")
        else:
            detectron2_loads(renamed)
    try:
        import timm
    except ImportError:
        print("timm is not installed")
    else:
        theirs = timm.create_model(arch).state_dict()
        save_file(theirs, folder / "timm.safetensors")
        theirs = {k: v for k, v in theirs.items() if not k.startswith("fc.")}
        assert same(export(folder / "timm.safetensors", name), theirs)
    print(f"{arch}: {len(own)} tensors went in and out of {2 * len(files) + 3} files the same")


subprocess.run(["cargo", "build", "--release", "--locked", "-p", "pirl-cli"], cwd=ROOT, check=True)
for arch in ["resnet18", "resnet50"]:
    with tempfile.TemporaryDirectory() as folder:
        check(arch, pathlib.Path(folder))
