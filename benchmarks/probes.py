"""What a frozen backbone's features are good for, read from them by ridge regression: fast, and no seed in it.

Used by benchmarks/features.py and benchmarks/compare_backbones.py.
"""

import time

import numpy as np
import torch

from pytorch_serl.networks import waypoint
from pytorch_serl.networks.resnet import ResNet10
from pytorch_serl.networks.shipped import SHIPPED_PATH
from pytorch_serl.training.backbone import PUBLISHED_PATH, find_backbone, read_backbone, shipped_backbone

PASS = 16  # frames


def named_backbones(names: list[str] | None, seed: int = 0) -> dict[str, ResNet10]:
    """The backbones by name: random, shipped, published, or a file; None: those that are here."""
    published = PUBLISHED_PATH.expanduser()
    if names is None:
        names = ["random", "shipped", *["published"] * published.is_file()]
    backbones = {}
    for name in names:
        if name == "random":
            torch.manual_seed(seed)
            backbones[name] = ResNet10().requires_grad_(False).eval()
        elif name == "shipped":
            backbones[name] = shipped_backbone()
        else:
            backbones[name] = read_backbone(published)[0] if name == "published" else find_backbone(name)[0]
    return backbones


def as_option(name: str) -> str:
    """What --backbone of the scripts has to be for one of `named_backbones`."""
    return str({"shipped": SHIPPED_PATH, "published": PUBLISHED_PATH.expanduser()}.get(name, name))


@torch.no_grad()
def features(backbone: ResNet10, frames: np.ndarray) -> tuple[np.ndarray, float]:
    """uint8 (N, H, W, 3) to float64 (N, 8192), rounded to float16 as replay stores them, and ms per frame."""
    backbone(torch.from_numpy(frames[:PASS]))  # the first pass is slower
    start = time.perf_counter()
    maps = [backbone(torch.from_numpy(frames[i : i + PASS])) for i in range(0, len(frames), PASS)]
    milliseconds = (time.perf_counter() - start) / len(frames) * 1e3
    return torch.cat(maps).half().flatten(1).double().numpy(), milliseconds


def ridge(x: np.ndarray, y: np.ndarray, others: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """What a linear function, fitted to x (N, D) and y (N, K), says about `others` (M, D): (M, K).

    Frames of one episode are like each other and belong into one group (N,); without `groups` each is alone.
    """
    line = waypoint.ridge(x, y, np.arange(len(x)) if groups is None else groups)
    return others @ line.weight + line.bias


def auc(scores: np.ndarray, labels: np.ndarray) -> float:
    """The share of (success, failure) pairs in which the success scores higher; ties count half."""
    success, failure = scores[labels == 1], np.sort(scores[labels == 0])
    below = np.searchsorted(failure, success, "left") + np.searchsorted(failure, success, "right")
    return float(below.mean() / 2 / len(failure))


def recall(scores: np.ndarray, labels: np.ndarray, max_fpr: float = 0.01) -> float:
    """The share of successes above the lowest threshold at which at most `max_fpr` of the failures are."""
    failure = np.sort(scores[labels == 0])
    allowed = int(max_fpr * len(failure))
    return float((scores[labels == 1] > failure[len(failure) - 1 - allowed]).mean())


def interval(values: np.ndarray) -> str:
    """Mean and its 95 % interval by normal approximation over independent values."""
    values = np.asarray(values, float)
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return f"{values.mean():.2f} ± {half:.2f}"
