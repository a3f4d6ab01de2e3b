"""The input pipeline of a recipe as torchvision users write it: the peer of `pirl data bench`.

`imagenet-resnet50-jigsaw` of a folder of JPEGs: PIL decodes once; a 224-pixel view and nine 64-pixel
patches of a 255-pixel crop, each with VISSL's colour jitter, photometric set, grey and flip drawn on its
own. `fashion-mnist-resnet18` of the folder of its IDX files, which lie in memory as PIL images: a 28-pixel view
and nine 12-pixel patches of a 36-pixel crop, each with its own brightness, contrast and flip. torch's
DataLoader makes the batches.

Speaks lines, as pirl_torch.py: `ready`, then for each `run` the images a second of one epoch.

    python input_torch.py RECIPE FOLDER WORKERS BATCH (input_pipeline.py starts it; WORKERS 0: in this process)
"""
import gzip
import pathlib
import random
import sys
import time

import numpy
import torch
from PIL import Image, ImageEnhance, ImageOps
from torchvision import transforms as T
from torchvision.transforms import functional as F


def photometric(image):
    """VISSL's img_pil_random_photometric: with probability 0.66 all four."""
    if random.random() >= 0.66:
        return image
    image = ImageOps.posterize(image, random.randint(4, 8))
    image = ImageEnhance.Sharpness(image).enhance(random.uniform(0.1, 1.9))
    image = ImageOps.solarize(image, random.randint(0, 256))
    return ImageOps.autocontrast(image)


class Photographs:
    """`imagenet-resnet50-jigsaw`."""

    augment = T.Compose([
        T.ColorJitter(0.4, 0.4, 0.4, 0.2),
        photometric,
        T.RandomGrayscale(0.2),
        T.RandomHorizontalFlip(0.5),
        T.ToTensor(),
        T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ])
    view = T.RandomResizedCrop(224, scale=(0.08, 1.0))
    whole = T.RandomResizedCrop(255, scale=(0.6, 1.0))
    cell, patch = 85, 64

    def __init__(self, folder):
        self.paths = sorted(pathlib.Path(folder).glob("*.jpg"))

    def __len__(self):
        return len(self.paths)

    def image(self, index):
        with Image.open(self.paths[index]) as file:
            return file.convert("RGB")


class FashionMnist:
    """`fashion-mnist-resnet18`."""

    augment = T.Compose([
        T.RandomApply([T.ColorJitter(0.4, 0.4)], 0.8),
        T.RandomHorizontalFlip(0.5),
        T.ToTensor(),
        T.Normalize([0.286] * 3, [0.353] * 3),
    ])
    view = T.RandomResizedCrop(28, scale=(0.3, 1.0))
    whole = T.RandomResizedCrop(36, scale=(0.6, 1.0))
    cell, patch = 12, 12

    def __init__(self, folder):
        packed = next(pathlib.Path(folder).glob("train-images*")).read_bytes()
        data = gzip.decompress(packed) if packed[:2] == b"\x1f\x8b" else packed
        images = numpy.frombuffer(data, numpy.uint8, offset=16).reshape(-1, 28, 28)[:2000]
        self.images = [Image.fromarray(image) for image in images]

    def __len__(self):
        return len(self.images)

    def image(self, index):
        return self.images[index].convert("RGB")


class Views(torch.utils.data.Dataset):
    def __init__(self, recipe):
        self.recipe = recipe

    def __len__(self):
        return len(self.recipe)

    def __getitem__(self, index):
        image = self.recipe.image(index)
        return self.recipe.augment(self.recipe.view(image)), self.patches(image), index

    def patches(self, image):
        """Nine patches, at random in their cells, in a random order."""
        recipe = self.recipe
        whole = recipe.whole(image)
        room = max(1, recipe.cell - recipe.patch)
        cut = []
        for cell in random.sample(range(9), 9):
            top = cell // 3 * recipe.cell + random.randrange(room)
            left = cell % 3 * recipe.cell + random.randrange(room)
            cut.append(recipe.augment(F.crop(whole, top, left, recipe.patch, recipe.patch)))
        return torch.stack(cut)


def main():
    recipe, folder, workers, batch = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    recipes = {"imagenet-resnet50-jigsaw": Photographs, "fashion-mnist-resnet18": FashionMnist}
    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(
        Views(recipes[recipe](folder)), batch_size=batch, shuffle=True, num_workers=workers, drop_last=True,
        persistent_workers=workers > 0,
    )

    def epoch():
        start, images = time.perf_counter(), 0
        for view, _, _ in loader:
            images += len(view)
        return images / (time.perf_counter() - start)

    epoch()  # workers start, the page cache fills
    print("ready", flush=True)
    for _ in sys.stdin:
        print(epoch(), flush=True)


if __name__ == "__main__":
    main()
