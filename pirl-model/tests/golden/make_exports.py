"""What transformers' ResNets are called and compute, and what timm writes of its own: exports.json.

    pip install torch transformers timm
    python3 pirl-model/tests/golden/make_exports.py

Parameter i of a network is the sequence 100 + i of benches/formula.py, scaled; batch norms' scales and
variances are around 1. Features are of two images, the sequence 9, of 40 x 33 pixels.
"""
import json
import math
import sys
import tempfile
from pathlib import Path

import timm
import torch
import torchvision
import transformers
from timm.models import save_for_hf

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "../../../benches"))
from formula import fill  # noqa: E402

IMAGES = torch.from_numpy(fill(9, 2, 3, 40, 33))
NETWORKS = {
    "resnet10": dict(depths=[1, 1, 1, 1], layer_type="basic", hidden_sizes=[16, 32, 64, 128], embedding_size=16),
    "resnet50": dict(depths=[3, 4, 6, 3], layer_type="bottleneck", hidden_sizes=[64, 128, 256, 512], embedding_size=16),
}


def hugging_face(settings):
    config = transformers.ResNetConfig(**settings)
    model = transformers.ResNetModel(config).eval()
    state = {name: t for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked")}
    for i, (name, t) in enumerate(state.items()):
        x = torch.from_numpy(fill(100 + i, *t.shape))
        one = name.endswith(("normalization.weight", "running_var"))
        t.copy_(x * math.sqrt(3 / t[0].numel()) if t.dim() == 4 else x * 0.2 + one)
    with torch.no_grad():
        features = model(IMAGES).pooler_output.flatten(1)
    return {
        "config": {key: value for key, value in config.to_dict().items() if key in settings}
        | {key: getattr(config, key) for key in ["model_type", "num_channels", "hidden_act",
                                                 "downsample_in_first_stage", "downsample_in_bottleneck"]},
        "tensors": [[name, list(t.shape)] for name, t in state.items()],
        "features": features[:, ::8].flatten().tolist(),
    }


def timm_config():
    """config.json of a ResNet-50 without a classifier, and that its names are torchvision's at every depth."""
    for arch in ["resnet18", "resnet34", "resnet50", "resnet101"]:
        ours = timm.create_model(arch, num_classes=0).state_dict()
        theirs = getattr(torchvision.models, arch)().state_dict()
        assert list(ours) == [name for name in theirs if not name.startswith("fc.")], arch
    with tempfile.TemporaryDirectory() as folder:
        save_for_hf(timm.create_model("resnet50", num_classes=0), folder)
        return json.loads((Path(folder) / "config.json").read_text())


golden = {
    "hugging_face": {name: hugging_face(settings) for name, settings in NETWORKS.items()},
    "timm": timm_config(),
}
(HERE / "exports.json").write_text(json.dumps(golden, indent=None, separators=(",", ":")) + "\n")
