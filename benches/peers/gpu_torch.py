#!/usr/bin/env python3
"""The step of ResNet-50 on 224-pixel images and 64-pixel patches in PyTorch on a GPU: the peer of
`pirl doctor --device cuda:0 --skip-checks`, as scripts/gpu/run.sh runs the two in turn.

    python3 benches/peers/gpu_torch.py bf16 32,64,128,256 [--compile]

Prints one JSON object. Channels last, autocast in bf16 and f16 (f16 with scaled gradients), cuDNN's
algorithms measured (`cudnn.benchmark`). The images are on the card already, normalised; ours come from the
host's memory at every step. `memory_mib` is what tensors took at most (`max_memory_allocated`).
"""
import argparse
import json
import time

import torch

from pirl_torch import CASES, step


def measure(case, precision, compiled):
    autocast = {"bf16": torch.bfloat16, "f16": torch.float16}.get(precision)
    torch.cuda.reset_peak_memory_stats()
    run = step(case, "channels_last", autocast, "cuda")
    if compiled:
        run = torch.compile(run)
    for _ in range(3):
        run().item()
    start, done = time.perf_counter(), 0
    while done < 5 or time.perf_counter() - start < 1:
        run().item()  # a training loop reads the loss
        done += 1
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / done
    return case["batch"] / seconds, torch.cuda.max_memory_allocated() >> 20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("precision", choices=["f32", "tf32", "bf16", "f16"])
    parser.add_argument("batch_sizes", type=lambda text: [int(size) for size in text.split(",")])
    parser.add_argument("--compile", action="store_true", help="by torch.compile")
    args = parser.parse_args()
    tf32 = args.precision != "f32"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    steps = []
    for batch in args.batch_sizes:
        found = {"batch_size": batch, "images_per_second": None, "memory_mib": None, "message": None}
        try:
            case = CASES["step"]["resnet50-224-64"] | {"batch": batch}
            found["images_per_second"], found["memory_mib"] = measure(case, args.precision, args.compile)
        except RuntimeError as error:  # out of memory, above all
            found["message"] = str(error).splitlines()[0]
        torch.cuda.empty_cache()
        steps.append(found)
    about = {"torch": torch.__version__, "cudnn": torch.backends.cudnn.version(), "device": torch.cuda.get_device_name()}
    print(json.dumps(about | {"precision": args.precision, "compiled": args.compile, "step": steps}))


if __name__ == "__main__":
    main()
