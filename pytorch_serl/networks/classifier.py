"""Reward classifier: camera frames in, probability of success out.

A frame's way: uint8 (B, H, W, 3) -> one ResNet-10 for all cameras, up to its second block -> (B, 128, 16, 16) -> per
camera `LocalHead` -> (B, 128) -> concatenated -> Dense 256, dropout, LayerNorm, ReLU, Dense 1 -> logit.
In the original, all blocks -> (B, 512, 16) -> per camera `ImageHead` -> (B, 256), the rest as here.
Reference: HIL-SERL (arXiv 2410.21845) networks/reward_classifier.py.
"""

import copy
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pytorch_serl.networks.mlp import LAYER_NORM_EPS, variance_scaling_
from pytorch_serl.networks.resnet import (
    BOTTLENECK_DIM,
    FEATURE_SHAPE,
    LOCAL_SHAPE,
    ImageHead,
    LocalHead,
    ResNet10,
    check_image_keys,
)
from pytorch_serl.networks.shipped import SHIPPED_SHA256, is_shipped, named_state
from pytorch_serl.utils.device import DEVICE
from pytorch_serl.utils.files import load_checkpoint, load_into, save_checkpoint, uncompiled

HIDDEN_DIM = 256
SETTINGS = ("image_keys", "dropout", "trainable_backbone", "local")  # of a checkpoint: what rebuilds the classifier
Tensors = dict[str, torch.Tensor]


def _lecun_dense(in_dim: int, out_dim: int) -> nn.Linear:
    layer = nn.Linear(in_dim, out_dim, dtype=torch.float32)
    variance_scaling_(layer.weight, in_dim)
    nn.init.zeros_(layer.bias)
    return layer


class RewardClassifier(nn.Module):
    """Tells success from failure by the cameras alone; `state` is not read, as in the original.

    Args:
        image_keys: cameras, in the order of the encoding.
        backbone: the ResNet-10 to start from; random when None. A frozen one is used as it is (agent and classifier
            can share it), a trainable one is copied first.
        dropout: rate, on the pooled features and in the last layers; acts in `train()` mode only.
        trainable_backbone: train the ResNet-10 too. There is still one for all cameras.
        local: look at the second block's map, place by place; else at the last one, as the original does, and as
            agents do, for whom a trained backbone may be meant. Default: with a frozen backbone.
        device: where everything lives; default `DEVICE`.

    `threshold` is the probability above which `predict_success` says success. It, `image_shapes` (camera -> (H, W) seen
    in training) and `validation` (a plain dict of figures) are saved with the weights.
    """

    def __init__(
        self,
        image_keys: Iterable[str],
        *,
        backbone: ResNet10 | None = None,
        dropout: float = 0.1,
        trainable_backbone: bool = False,
        local: bool | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__()
        self.image_keys = check_image_keys(image_keys)
        if not self.image_keys:
            raise ValueError("image_keys is empty; wanted one or more camera names")
        self.device = torch.device(device) if device is not None else DEVICE
        dropout, trainable_backbone = float(dropout), bool(trainable_backbone)  # numpy's numbers and tensors, too
        self.dropout, self.trainable_backbone = dropout, trainable_backbone
        self.threshold = 0.5
        self.image_shapes: dict[str, tuple[int, int]] = {}
        self.validation: dict[str, Any] = {}
        self._warned: set[str] = set()

        if backbone is None:
            backbone = ResNet10()
        elif trainable_backbone or any(p.requires_grad for p in backbone.parameters()):  # somebody else may train it
            backbone = copy.deepcopy(backbone)
        self.backbone = backbone.requires_grad_(trainable_backbone)
        self._add_heads(not trainable_backbone if local is None else bool(local))
        self.norm = nn.LayerNorm(HIDDEN_DIM, eps=LAYER_NORM_EPS, dtype=torch.float32)
        self.out = _lecun_dense(HIDDEN_DIM, 1)
        self.to(self.device)

    def _add_heads(self, local: bool) -> None:
        head, dim = (LocalHead, 2 * LocalHead.DIM) if local else (ImageHead, BOTTLENECK_DIM)
        self.local = local
        self.heads = nn.ModuleDict({key: head(self.dropout) for key in self.image_keys}).to(self.device)
        self.dense = _lecun_dense(dim * len(self.image_keys), HIDDEN_DIM).to(self.device)

    @contextmanager
    def heads_of(self, local: bool) -> Iterator[None]:
        """New heads of the other kind, if they are, unless what follows fails."""
        before = self.local, self.heads, self.dense
        if local != self.local:
            self._add_heads(local)
        try:
            yield
        except BaseException:
            self.local, self.heads, self.dense = before
            raise

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What an optimiser gets: everything but a frozen backbone."""
        return [p for p in self.parameters() if p.requires_grad]

    # ---------------------------------------------------------------- from image to logit

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Of one camera's `features`: (128, 16, 16), or the last block's (512, 16)."""
        return LOCAL_SHAPE if self.local else FEATURE_SHAPE

    def features(self, images: Tensors) -> Tensors:
        """uint8 images (B, H, W, 3) per camera -> maps (B, *feature_shape); no gradient into a frozen backbone."""
        see = self.backbone.local if self.local else self.backbone
        with torch.set_grad_enabled(self.trainable_backbone and torch.is_grad_enabled()):
            return {key: see(images[key]) for key in self.image_keys}

    def encode(self, features: Tensors, dropout: bool | None = None) -> torch.Tensor:
        """Maps (B, *feature_shape) per camera -> encoding (B, 128 * cameras), the original's (B, 256 * cameras).

        `dropout` None: as the mode says.
        """
        dropout = self.training if dropout is None else dropout
        heads = [(self.heads[key], features[key]) for key in self.image_keys]
        return torch.cat([head(head.pool(maps), dropout) for head, maps in heads], -1)

    def logits(self, features: Tensors, dropout: bool | None = None) -> torch.Tensor:
        """Maps (B, *feature_shape) per camera -> logits (B,). A frozen backbone's maps need computing only once."""
        dropout = self.training if dropout is None else dropout
        x = F.dropout(self.dense(self.encode(features, dropout)), self.dropout, dropout)  # (B, 256)
        return self.out(F.relu(self.norm(x))).squeeze(-1)

    def forward(self, images: Tensors, dropout: bool | None = None) -> torch.Tensor:
        """uint8 images (B, H, W, 3) per camera -> logits (B,); `dropout` None: in `train()` mode only."""
        return self.logits(self.features(images), dropout)

    # ---------------------------------------------------------------- use

    @torch.no_grad()
    def predict_success(self, obs: dict[str, Any]) -> tuple[float, bool] | tuple[np.ndarray, np.ndarray]:
        """Probability of success and whether it is above `threshold`; without dropout in any mode.

        Nothing of the module is changed, so several threads may ask at the same time.

        Args:
            obs: uint8 images (H, W, 3) or (B, H, W, 3) as numpy arrays or tensors; keys other than the cameras are
                ignored.
        Returns: a float and a bool, or for a batch float64 (B,) and bool (B,) arrays.
        Raises ValueError for a missing camera, a float image, a wrong shape.
        """
        images, single = self._check(obs)
        logits = self(images, dropout=False)  # the mode stays as it is: other threads may be asking, or training
        prob = logits.cpu().double().sigmoid().numpy()  # float64, so that confident frames still differ
        return (float(prob[0]), bool(prob[0] > self.threshold)) if single else (prob, prob > self.threshold)

    def _check(self, obs: dict[str, Any]) -> tuple[Tensors, bool]:
        """The cameras of `obs` as uint8 (B, H, W, 3) on the device, and whether it was a single observation."""
        missing = [key for key in self.image_keys if key not in obs]
        if missing:
            raise ValueError(f"observation lacks the camera {missing}; it has {sorted(map(str, obs))}")
        images = {key: self._image(key, obs[key]) for key in self.image_keys}
        shapes = {key: tuple(image.shape) for key, image in images.items()}
        if len({shape[:-3] for shape in shapes.values()}) > 1:
            raise ValueError(f"cameras differ in batch size: {shapes}; wanted (H, W, 3) each or (B, H, W, 3) each")
        for key, shape in shapes.items():
            seen = self.image_shapes.get(key)
            if seen is not None and tuple(seen) != shape[-3:-1] and key not in self._warned:
                self._warned.add(key)
                warnings.warn(
                    f"camera {key!r} is {shape[-3]}x{shape[-2]}, the classifier was trained on {seen[0]}x{seen[1]} "
                    "(H x W); give it frames cropped and resized as in training",
                    stacklevel=3,
                )
        single = len(shapes[self.image_keys[0]]) == 3
        return {key: (x[None] if single else x).to(self.device) for key, x in images.items()}, single

    @staticmethod
    def _image(key: str, image: Any) -> torch.Tensor:
        if not isinstance(image, torch.Tensor):
            image = np.asarray(image)
        dtype = str(image.dtype).removeprefix("torch.")
        if dtype != "uint8":
            hint = "; a float image in [0, 1] is (image * 255).round() as uint8" if "float" in dtype else ""
            raise ValueError(f"camera {key!r} is {dtype} {tuple(image.shape)}; wanted uint8 in 0..255{hint}")
        if image.ndim not in (3, 4) or image.shape[-1] != 3:
            raise ValueError(f"camera {key!r} is {tuple(image.shape)}; wanted (H, W, 3) or (B, H, W, 3)")
        # a copy: numpy views may have negative strides or be read-only
        return image if isinstance(image, torch.Tensor) else torch.from_numpy(image.copy())

    # ---------------------------------------------------------------- saving

    def checkpoint(self) -> dict[str, Any]:
        """What `save` writes: weights, settings, threshold, validation figures.

        The backbone is among the weights once, or, where it is the frozen shipped one, named by its hash.
        """
        content = {
            "kind": "RewardClassifier",
            "image_keys": self.image_keys,
            "dropout": self.dropout,
            "trainable_backbone": self.trainable_backbone,
            "local": self.local,
            "threshold": float(self.threshold),
            "image_shapes": {key: [int(n) for n in shape] for key, shape in self.image_shapes.items()},
            "validation": self.validation,
            "weights": uncompiled(self.state_dict()),
        }
        if not self.trainable_backbone and is_shipped(self.backbone):
            content["weights"] = {k: v for k, v in content["weights"].items() if not k.startswith("backbone.")}
            content["backbone_sha256"] = SHIPPED_SHA256
        return content

    def load_checkpoint(self, content: dict[str, Any], source: str = "checkpoint") -> None:
        """Take over a `checkpoint()`, with its kind of heads.

        Raises ValueError naming what does not fit; nothing is loaded in part.
        """
        content = _classifier_part(content, source)
        with self.heads_of(content["local"]):
            weights = self._fitting_weights(content, source)
        self.backbone = copy.deepcopy(self.backbone)  # an agent may share the one that was passed in
        load_into(self, weights)
        self.threshold, self.validation = content["threshold"], content["validation"]
        self.image_shapes = {key: tuple(shape) for key, shape in content["image_shapes"].items()}

    def _fitting_weights(self, content: dict[str, Any], source: str) -> Tensors:
        weights, wrong = content["weights"], []
        if "backbone_sha256" in content:
            named = named_state(content["backbone_sha256"], source)
            weights = weights | {f"backbone.{name}": value for name, value in named.items()}
        if content["image_keys"] != self.image_keys:
            wrong.append(f"its image_keys are {content['image_keys']}, here {self.image_keys}")
        states = uncompiled(self.state_dict()), uncompiled(weights)
        ours, theirs = ({k: tuple(v.shape) for k, v in state.items()} for state in states)
        wrong += [
            f"{name} is {theirs.get(name, 'absent')}, here {ours.get(name, 'absent')}"
            for name in sorted(ours.keys() | theirs.keys())
            if ours.get(name) != theirs.get(name)
        ]
        if wrong:
            more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
            raise ValueError(f"{source} does not fit this classifier: " + "; ".join(wrong[:8]) + more)
        return weights

    def save(self, path: str | os.PathLike) -> None:
        """Write `checkpoint()` to `path`, atomically."""
        save_checkpoint(path, self.checkpoint())

    def load(self, path: str | os.PathLike) -> None:
        """Take over what `save` or train_classifier.py wrote, its backbone included."""
        self.load_checkpoint(load_checkpoint(path, self.device), str(path))

    @classmethod
    def from_checkpoint(cls, path: str | os.PathLike, device: torch.device | str | None = None) -> "RewardClassifier":
        """The classifier that `path` holds, in `eval()` mode. Raises ValueError for any other file."""
        content = _classifier_part(load_checkpoint(path), str(path))
        classifier = cls(**{key: content[key] for key in SETTINGS}, device=device)
        classifier.load_checkpoint(content, str(path))
        return classifier.eval()


def _classifier_part(content: dict[str, Any], source: str) -> dict[str, Any]:
    """The classifier in what a file holds: train_classifier.py's last.pt wraps it together with the optimiser."""
    content = content.get("classifier", content)
    wanted = {*SETTINGS, "threshold", "image_shapes", "validation", "weights"} - {"local"}
    if not isinstance(content, dict) or content.get("kind") != "RewardClassifier" or wanted - content.keys():
        raise ValueError(f"{source}: not a reward classifier of this project (it has {sorted(map(str, content))[:6]})")
    content = {"local": False} | content  # as all were, before there were local ones
    kinds = {"image_keys": list, "threshold": (int, float), "image_shapes": dict, "weights": dict}
    wrong = [f"{name} is {content[name]!r:.60}" for name, kind in kinds.items() if not isinstance(content[name], kind)]
    if wrong or not all(isinstance(value, torch.Tensor) for value in content["weights"].values()):
        raise ValueError(f"{source}: a damaged reward classifier: {'; '.join(wrong) or 'weights that are no tensors'}")
    return content
