#!/usr/bin/env python3
"""Checks `pirl export` and `pirl embed` against the libraries that the exports are for.

    python3 -m venv venv && venv/bin/pip install torch torchvision timm transformers onnx onnxruntime pandas pyarrow
    venv/bin/python scripts/check_exports.py [resnet18 resnet50 ...]     # builds pirl, with Parquet

Sixty-four images are packed and seen as the recipe sees them, and `pirl embed` writes their features. A
network of each name, of ImageNet's stem and sizes, whose batch norms have statistics of their own, goes out
in every format; torchvision, timm (by folder, by checkpoint_path, and as maps), transformers and onnxruntime
must give features that differ by at most 1e-4 of the largest, and `pirl eval` must read what ONNX holds. The
four formats of `pirl embed` must hold the same numbers.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import onnxruntime
import pandas
import safetensors.numpy
import safetensors.torch
import timm
import torch
import torchvision
import transformers
from PIL import Image
from torchvision.transforms import v2 as transforms

ROOT = pathlib.Path(__file__).resolve().parents[1]
PIRL = ROOT / "target" / "release" / "pirl"
IMAGES, SIDE = 64, 224
TOLERANCE = 1e-4
SEEN = ["--set", "eval.resize=256", "--set", f"data.image_size={SIDE}"]


def pirl(*arguments):
    done = subprocess.run([PIRL, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, f"{arguments}: {done.stderr}"
    return done.stdout


def pack(folder):
    """Smooth noise, lossless, in two classes. The shorter side is what it would be resized to: every library rounds
    resized pixels its own way, by a step of 255 here and there, and here the networks are compared. Margins are
    even: of an odd one transformers always leaves the smaller half on the left."""
    random = np.random.default_rng(0)
    for i in range(IMAGES):
        small = random.integers(0, 256, (8, 8 + i % 5, 3), dtype=np.uint8)
        size = (256, 256 + 6 * (i % 11)) if i % 4 < 2 else (256 + 6 * (i % 11), 256)
        path = folder / "images" / "ab"[i % 2] / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path)
    pirl("data", "pack", "--format", "image-folder", "--input", folder / "images", "--output", folder / "pack")
    paths = sorted((folder / "images").glob("*/*.png"))  # the pack's order: by class, then by name
    return [Image.open(path).convert("RGB") for path in paths]


def batches(pixels):
    return torch.split(pixels, 16)


def network(arch, folder):
    """Torchvision's network with a random checkpoint, whose statistics are of noise; resnet10 is of its parts."""
    torch.manual_seed(1)
    models = torchvision.models.resnet
    if arch == "resnet10":
        model = models.ResNet(models.BasicBlock, [1, 1, 1, 1])
    else:
        model = getattr(models, arch)()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.2, 0.2)
        for _ in range(3):
            model.train()(torch.randn(8, 3, 96, 96))
    model.fc = torch.nn.Identity()
    torch.save(model.eval().state_dict(), folder / f"{arch}.pth")
    return model


class Check:
    def __init__(self, arch, features):
        self.arch, self.features, self.worst = arch, features, {}

    def __call__(self, name, features):
        features = np.asarray(features)
        assert features.shape == self.features.shape, (name, features.shape, self.features.shape)
        worst = np.abs(features - self.features).max() / np.abs(self.features).max()
        assert worst <= TOLERANCE, f"{self.arch}, {name}: {worst:.1e}"
        self.worst[name] = worst


def embed(weights, data, output, *more):
    pirl("embed", "--weights", weights, "--data", data, "--output", output, *SEEN, *more)


def check_embed(weights, folder, features):
    """The other formats of `pirl embed` hold the same as its .npy."""
    out = {ending: folder / f"features.{ending}" for ending in ["csv", "safetensors", "parquet"]}
    for path in out.values():
        embed(weights, folder / "pack", path)
    labels = pandas.read_csv(folder / "features.labels.csv")
    table = pandas.read_csv(out["csv"])
    assert (table[["index", "label", "class"]] == labels).all(axis=None)
    assert np.array_equal(table.filter(like="res5_").to_numpy(np.float32), features)
    tensors = safetensors.numpy.load_file(out["safetensors"])
    assert np.array_equal(tensors["res5"], features) and np.array_equal(tensors["labels"], labels["label"])
    table = pandas.read_parquet(out["parquet"])
    assert np.array_equal(np.stack(table["res5"].to_list()), features)
    assert list(table["class"]) == list(labels["class"]) and set(labels["class"]) == {"a", "b"}


@torch.no_grad()
def check(arch, folder, images):
    model = network(arch, folder)
    weights = folder / f"{arch}.pth"
    embed(weights, folder / "pack", folder / "features.npy")
    features = np.load(folder / "features.npy")
    check_embed(weights, folder, features)
    same = Check(arch, features)

    def export(format, output):
        pirl("export", "--weights", weights, "--format", format, "--output", output, *SEEN)
        return output

    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    view = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(SIDE), transforms.ToImage(),
                               transforms.ToDtype(torch.float32, scale=True), transforms.Normalize(mean, std)])
    pixels = torch.stack([view(image) for image in images])
    run = lambda model: torch.cat([model(batch) for batch in batches(pixels)])

    state = safetensors.torch.load_file(export("torchvision", folder / "torchvision.safetensors"))
    model.load_state_dict(state, strict=True)
    same("torchvision", run(model))

    card = export("timm", folder / "timm")
    read = timm.create_model(f"local-dir:{card}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(read)
    assert config["input_size"] == (3, SIDE, SIDE) and config["crop_pct"] == SIDE / 256
    seen = torch.stack([timm.data.create_transform(**config, is_training=False)(image) for image in images])
    assert torch.allclose(seen, pixels, atol=1e-5), (seen - pixels).abs().max()
    same("timm, by folder", run(read))
    name, more = ("resnet18", {"layers": (1, 1, 1, 1)}) if arch == "resnet10" else (arch, {})
    file = str(card / "model.safetensors")
    read = timm.create_model(name, pretrained=False, num_classes=0, checkpoint_path=file, **more).eval()
    same("timm, by checkpoint_path", run(read))
    for source in [dict(model_name=f"local-dir:{card}", pretrained=True),
                   dict(model_name=name, pretrained=False, checkpoint_path=file, **more)]:
        read = timm.create_model(**source, features_only=True).eval()
        assert read.feature_info.reduction() == [2, 4, 8, 16, 32]
        same("timm, features_only", run(lambda x: read(x)[-1].mean((2, 3))))

    card = str(export("hugging-face", folder / "hugging-face"))
    read, info = transformers.ResNetModel.from_pretrained(card, output_loading_info=True)
    assert not any(info[key] for key in ["missing_keys", "unexpected_keys", "mismatched_keys"]), info
    processor = transformers.AutoImageProcessor.from_pretrained(card)
    seen = processor(images, return_tensors="pt")["pixel_values"]
    assert torch.allclose(seen, pixels, atol=1e-5), (seen - pixels).abs().max()
    same("transformers.ResNetModel", run(lambda x: read.eval()(x).pooler_output.flatten(1)))
    read = transformers.ResNetBackbone.from_pretrained(card, out_features=["stage4"]).eval()
    same("transformers.ResNetBackbone", run(lambda x: read(x).feature_maps[-1].mean((2, 3))))

    path = str(export("onnx", folder / "network.onnx"))
    onnx.checker.check_model(path, full_check=True)
    assert {node.op_type for node in onnx.load(path).graph.node} == {
        "Conv", "Relu", "Add", "MaxPool", "GlobalAveragePool", "Flatten"}
    session = onnxruntime.InferenceSession(path)
    ask = lambda x: torch.from_numpy(session.run(["features"], {"images": x.numpy()})[0])
    same("onnxruntime", run(ask))
    assert ask(pixels[:3, :, :100, :140]).shape == (3, features.shape[1])  # any batch and size
    embed(path, folder / "pack", folder / "onnx.npy")
    same("onnx, read by pirl", np.load(folder / "onnx.npy"))
    report = json.loads(pirl("eval", "knn", "--weights", path, "--train", folder / "pack", "--test", folder / "pack",
                             "--set", "eval.baselines=false", "--json", *SEEN))
    assert "top1" in report
    print(f"{arch}: {IMAGES} images, {features.shape[1]} features; largest difference over the largest feature")
    for name, worst in same.worst.items():
        print(f"  {name:28} {worst:.1e}")


def check_stems(folder, images):
    """ONNX holds the stems that other libraries do not have; their reference is `pirl embed` alone."""
    side = 48
    view = transforms.Compose([transforms.CenterCrop(side), transforms.ToImage(), transforms.ToDtype(torch.float32, scale=True),
                               transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])
    pixels = torch.stack([view(image) for image in images]).numpy()
    for stem in ["small", "medium"]:
        settings = ["model.arch=resnet10", "model.width=0.25", f"model.stem={stem}", "eval.resize=256", f"data.image_size={side}",
                    "eval.precise_batch_norm=0"]
        settings = ["--recipe", "imagenet-resnet50-jigsaw", *(word for set in settings for word in ["--set", set])]
        weights = folder / f"{stem}.safetensors"
        pirl("export", "--weights", "random", "--format", "torchvision", "--output", weights, *settings)
        pirl("embed", "--weights", weights, "--data", folder / "pack", "--output", folder / "stem.npy", *settings)
        path = folder / f"{stem}.onnx"
        pirl("export", "--weights", weights, "--format", "onnx", "--output", path, *settings)
        session = onnxruntime.InferenceSession(str(path))
        same = Check(stem, np.load(folder / "stem.npy"))
        same("onnxruntime", session.run(["features"], {"images": pixels})[0])
        print(f"resnet10 of width 0.25, model.stem = {stem}, onnxruntime: {same.worst['onnxruntime']:.1e}")


subprocess.run(["cargo", "build", "--release", "--locked", "-p", "pirl-cli", "--features", "parquet"], cwd=ROOT, check=True)
with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    images = pack(folder)
    check_stems(folder, images)
for arch in sys.argv[1:] or ["resnet18", "resnet50"]:
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        check(arch, folder, pack(folder))
