#!/usr/bin/env python3
"""Times the input pipelines of `imagenet-resnet50-jigsaw` and of `fashion-mnist-resnet18` against torchvision's, in
turn: A B A B.

    python3 benches/peers/input_pipeline.py              # one core, then two workers

The same images (JPEGs of photographs.py, Fashion-MNIST's), crops, patches and operations on every
view on both sides; ours is `pirl data bench` on a pack of them. A ratio is ours by theirs, of one pair.

Pillow and torchvision come from PyPI into a virtual environment beside the build (target/peers); set
PEERS_PYTHON to use the interpreter of another. Needs cargo, apt-get and dpkg-deb.
"""
import argparse
import json
import statistics
import subprocess
import sys

from compare import HERE, ROOT, Worker, cpu, interpreter

COUNT = 512
BATCHES = {"imagenet-resnet50-jigsaw": 32, "fashion-mnist-resnet18": 128}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=list(BATCHES), choices=list(BATCHES), metavar="RECIPE",
                        help=", ".join(BATCHES))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of one of our runs")
    args = parser.parse_args()
    python = interpreter()
    build = ["cargo", "build", "--release", "--workspace", "--locked", "--bin", "pirl"]
    subprocess.run(build, cwd=ROOT, check=True)
    pirl = str(ROOT / "target" / "release" / "pirl")

    def images(recipe):
        """A folder of images, and a pack of them."""
        if recipe == "fashion-mnist-resnet18":
            folder = str(ROOT / "target" / "fashion-mnist")
            subprocess.run([pirl, "data", "fetch", recipe, "--output", folder], check=True, stdout=sys.stderr)
            source = ["--format", "mnist", "--split", "train"]
        else:
            command = [python, str(HERE / "photographs.py"), "--count", str(COUNT)]
            folder = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
            source = ["--format", "image-folder"]
        pack = f"{folder}-pack"
        command = [pirl, "data", "pack", *source, "--input", folder, "--output", pack]
        subprocess.run(command, check=True, stdout=sys.stderr)
        return folder, pack

    print(f"{cpu()}; pairs: {args.pairs}")
    print("\n| recipe | workers | ours, images/s | torchvision, images/s | ratio |")
    print("| --- | --- | --- | --- | --- |", flush=True)
    for recipe in args.recipes:
        folder, pack = images(recipe)
        batch = BATCHES[recipe]

        def ours(pinned, workers):
            bench = [pirl, "data", "bench", pack, "--json", "--recipe", recipe, "--workers", str(workers)]
            bench += ["--set", f"train.batch_size={batch}", "--seconds", str(args.seconds)]
            out = subprocess.run(pinned + bench, check=True, stdout=subprocess.PIPE, text=True).stdout
            return json.loads(out)

        for name, pinned, workers, theirs in [("one core", ["taskset", "-c", "0"], 1, 0), ("two", [], 2, 2)]:
            script = str(HERE / "input_torch.py")
            peer = Worker(*pinned, python, script, recipe, folder, str(theirs), str(batch))
            pairs = [(ours(pinned, workers), peer.ask("run")) for _ in range(args.pairs)]
            peer.close()
            rates = [(found["images_per_second"], rate) for found, rate in pairs]
            ratios = sorted(a / b for a, b in rates)
            a, b = (statistics.median(side) for side in zip(*rates))
            ratio = f"{statistics.median(ratios):.2f}x ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            print(f"| {recipe} | {name} | {a:,.0f} | {b:,.0f} | {ratio} |", flush=True)
            stages = pairs[-1][0]["stages"]
            print(", ".join(f"{stage} {share:.0%}" for stage, share in stages.items()), file=sys.stderr)


if __name__ == "__main__":
    main()
