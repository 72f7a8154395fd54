"""Photographs and cut-outs from a folder, decoded once, small, into memory.

A picture with a transparent surround is a cut-out: it gets pasted. Every other is a photograph: crops of it are what
the student looks at. A picture whose thumbnail agrees with an earlier one is left out: wallpapers have several sizes.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

PHOTOGRAPH_SIDE, CUTOUT_SIDE = 640, 160  # pixels of the longest side
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
Image.MAX_IMAGE_PIXELS = None  # wallpapers are large, and come from a package that the user chose


def load_pictures(folder: Path, cache: Path) -> tuple[list[Image.Image], list[Image.Image]]:
    """(photographs, cut-outs) under `folder`; decoded into `cache` the first time, read from it afterwards.

    Raises ValueError where the folder holds no photograph.
    """
    if not cache.is_file():
        photographs, cutouts = decode(folder)
        if not photographs:
            raise ValueError(f"{folder}: no photograph in it; wanted {', '.join(sorted(SUFFIXES))} files")
        torch.save({"photographs": photographs, "cutouts": cutouts}, cache)
    content = torch.load(cache, weights_only=True)
    return tuple([Image.fromarray(x.numpy()) for x in content[key]] for key in ("photographs", "cutouts"))


def decode(folder: Path) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Every picture under `folder` once, as uint8 (H, W, 3) photographs and (H, W, 4) cut-outs, in path order."""
    photographs, cutouts, seen = [], [], set()
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file()):
        try:
            image = Image.open(path)
            image.draft("RGB", (2 * PHOTOGRAPH_SIDE, 2 * PHOTOGRAPH_SIDE))  # a large JPEG decodes at a fraction
            image = image.convert("RGBA")
        except OSError as error:
            print(f"left out {path}: {error}")
            continue
        is_cutout = np.mean(np.asarray(image)[..., 3] < 128) > 0.05
        image = image if is_cutout else image.convert("RGB")
        thumbnail = np.asarray(image.convert("RGB").resize((8, 8), Image.Resampling.BOX)) // 16
        if min(image.size) < 48 or thumbnail.tobytes() in seen:
            continue
        seen.add(thumbnail.tobytes())
        side = CUTOUT_SIDE if is_cutout else PHOTOGRAPH_SIDE
        image = image.crop(image.getbbox()) if is_cutout else image
        if max(image.size) > side:
            image = ImageOps.contain(image, (side, side))
        (cutouts if is_cutout else photographs).append(torch.from_numpy(np.array(image)))
    return photographs, cutouts


def random_crop(photograph: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    """A square of `side` pixels from 1 to 70 % of the photograph's area, a little stretched, perhaps mirrored."""
    area = photograph.width * photograph.height * np.exp(rng.uniform(np.log(0.01), np.log(0.7)))
    aspect = np.exp(rng.uniform(-0.3, 0.3))
    width = min(photograph.width, max(24.0, np.sqrt(area * aspect)))
    height = min(photograph.height, max(24.0, np.sqrt(area / aspect)))
    left, top = rng.uniform(0, photograph.width - width), rng.uniform(0, photograph.height - height)
    crop = photograph.resize((side, side), Image.Resampling.BILINEAR, (left, top, left + width, top + height), 2.0)
    return ImageOps.mirror(crop) if rng.random() < 0.5 else crop
