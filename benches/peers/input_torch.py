"""The input pipeline of `imagenet-resnet50-jigsaw` as torchvision users write it: the peer of `pirl data bench`.

PIL decodes once; a 224-pixel view and nine 64-pixel patches of a 255-pixel crop, each with VISSL's
colour jitter, photometric set, grey and flip drawn on its own; torch's DataLoader makes the batches.

Speaks lines, as pirl_torch.py: `ready`, then for each `run` the images a second of one epoch.

    python input_torch.py FOLDER WORKERS BATCH       (input_pipeline.py starts it; WORKERS 0: in this process)
"""
import pathlib
import random
import sys
import time

import torch
from PIL import Image, ImageEnhance, ImageOps
from torchvision import transforms as T
from torchvision.transforms import functional as F

NORMALIZE = T.Compose([T.ToTensor(), T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])


def photometric(image):
    """VISSL's img_pil_random_photometric: with probability 0.66 all four."""
    if random.random() >= 0.66:
        return image
    image = ImageOps.posterize(image, random.randint(4, 8))
    image = ImageEnhance.Sharpness(image).enhance(random.uniform(0.1, 1.9))
    image = ImageOps.solarize(image, random.randint(0, 256))
    return ImageOps.autocontrast(image)


AUGMENT = T.Compose([
    T.ColorJitter(0.4, 0.4, 0.4, 0.2),
    photometric,
    T.RandomGrayscale(0.2),
    T.RandomHorizontalFlip(0.5),
    NORMALIZE,
])
VIEW = T.RandomResizedCrop(224, scale=(0.08, 1.0))
WHOLE = T.RandomResizedCrop(255, scale=(0.6, 1.0))


def patches(image):
    """Nine patches of 64 pixels, at random in cells of 85, in a random order."""
    whole = WHOLE(image)
    cells = random.sample(range(9), 9)
    cut = []
    for cell in cells:
        top = cell // 3 * 85 + random.randrange(21)
        left = cell % 3 * 85 + random.randrange(21)
        cut.append(AUGMENT(F.crop(whole, top, left, 64, 64)))
    return torch.stack(cut)


class Photographs(torch.utils.data.Dataset):
    def __init__(self, folder):
        self.paths = sorted(pathlib.Path(folder).glob("*.jpg"))

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        with Image.open(self.paths[index]) as file:
            image = file.convert("RGB")
        return AUGMENT(VIEW(image)), patches(image), index


def main():
    folder, workers, batch = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    loader = torch.utils.data.DataLoader(
        Photographs(folder), batch_size=batch, shuffle=True, num_workers=workers, drop_last=True,
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
