"""The original HIL-SERL's parameters, by name and memory layout, for the networks of this package.

The original is flax: a nested dict of arrays, written here as one flat dict from a path such as
`modules_critic/network/VmapMLP_0/Dense_0/kernel` to a numpy array. A `Table` says for every tensor of a network here
which path it comes from and how its axes are ordered; `translate` applies one and collects everything that does not
fit. A table is also read the other way (tests/parity.py does, to compare gradients), so the mapping is written once.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pytorch_serl.networks.resnet import ResNet10

Shape = tuple[int, ...]
UNUSED_ROOT = "output_head"  # ImageNet's 1000-way classifier, in the published file and used by nobody


@dataclass(frozen=True)
class Layout:
    """How a flax array becomes a torch one, and which flax shape a torch shape wants."""

    to_torch: Callable[[np.ndarray, Shape], np.ndarray]
    flax_shape: Callable[[Shape], Shape]


SAME = Layout(lambda x, s: x, lambda s: s)
CONV = Layout(lambda x, s: x.transpose(3, 2, 0, 1), lambda s: (s[2], s[3], s[1], s[0]))  # HWIO -> OIHW
DENSE = Layout(lambda x, s: x.T, lambda s: s[::-1])  # (in, out) -> (out, in)
MEMBER_VECTOR = Layout(lambda x, s: x[:, None], lambda s: (s[0], s[2]))  # (E, D) -> (E, 1, D)
SHARED = Layout(lambda x, s: np.broadcast_to(x, s), lambda s: s[1:])  # one Dense copied to every ensemble member
SHARED_BIAS = Layout(lambda x, s: np.broadcast_to(x, s), lambda s: s[2:])
EMBEDDINGS = Layout(  # (H, W, C, F) -> (C, H * W, F); the feature map is square
    lambda x, s: x.transpose(2, 0, 1, 3).reshape(s), lambda s: (round(s[1] ** 0.5), round(s[1] ** 0.5), s[0], s[2])
)

Table = dict[str, tuple[str, Layout]]  # name in our state_dict -> (flax path, layout)


def _conv(ours: str, flax: str) -> Table:
    return {f"{ours}.weight": (f"{flax}/kernel", CONV)}


def _dense(ours: str, flax: str) -> Table:
    return {f"{ours}.weight": (f"{flax}/kernel", DENSE), f"{ours}.bias": (f"{flax}/bias", SAME)}


def _norm(ours: str, flax: str, layout: Layout = SAME) -> Table:
    return {f"{ours}.weight": (f"{flax}/scale", layout), f"{ours}.bias": (f"{flax}/bias", layout)}


def under(ours: str, flax: str, table: Table) -> Table:
    """The same table with both sides one level deeper."""
    return {f"{ours}.{name}": (f"{flax}/{path}", layout) for name, (path, layout) in table.items()}


def resnet10_table() -> Table:
    """`ResNet10`."""
    table = _conv("conv_init", "conv_init") | _norm("norm_init", "norm_init")
    for i in range(4):
        block = _conv("conv1", "Conv_0") | _norm("norm1", "MyGroupNorm_0")
        block |= _conv("conv2", "Conv_1") | _norm("norm2", "MyGroupNorm_1")
        if i > 0:
            block |= _conv("conv_proj", "conv_proj") | _norm("norm_proj", "norm_proj")
        table |= under(f"blocks.{i}", f"ResNetBlock_{i}", block)
    return table


def image_head_table() -> Table:
    """`ImageHead`."""
    embeddings: Table = {"embeddings": ("SpatialLearnedEmbeddings_0/kernel", EMBEDDINGS)}
    return embeddings | _dense("bottleneck", "Dense_0") | _norm("norm", "LayerNorm_0")


def encoder_table(image_keys: Iterable[str], has_state: bool, trainable_backbone: bool) -> Table:
    """`ObservationEncoder`: one head per camera, its backbone if that is trained, and the state branch."""
    table = _dense("state_dense", "Dense_0") | _norm("state_norm", "LayerNorm_0") if has_state else {}
    for key in image_keys:
        table |= under(f"heads.{key}", f"encoder_{key}", image_head_table())
        if trainable_backbone:
            table |= under(f"backbones.{key}", f"encoder_{key}", resnet10_table())
    return table


def actor_table() -> Table:
    """`Actor`, without its encoder."""
    network = _dense("0", "Dense_0") | _norm("1", "LayerNorm_0") | _dense("3", "Dense_1") | _norm("4", "LayerNorm_1")
    return under("network", "network", network) | _dense("mean", "Dense_0") | _dense("log_std", "Dense_1")


def critic_table() -> Table:
    """`Critic`: per-member hidden layers; the original's single last Dense goes to every member."""
    table: Table = {"head.weight": ("Dense_0/kernel", SHARED), "head.bias": ("Dense_0/bias", SHARED_BIAS)}
    for i in range(2):
        layer = {"weight": (f"Dense_{i}/kernel", SAME), "bias": (f"Dense_{i}/bias", MEMBER_VECTOR)}
        table |= under(f"network.{3 * i}", "network/VmapMLP_0", layer)
        table |= under("network", "network/VmapMLP_0", _norm(str(3 * i + 1), f"LayerNorm_{i}", MEMBER_VECTOR))
    return table


def grasp_critic_table() -> Table:
    """`GraspCritic`; its second Dense has no LayerNorm."""
    network = _dense("0", "Dense_0") | _norm("1", "LayerNorm_0") | _dense("3", "Dense_1")
    return under("network", "network", network) | _dense("head", "Dense_0")


def classifier_head_table() -> Table:
    """`RewardClassifier`'s last layers."""
    return _dense("dense", "Dense_0") | _norm("norm", "LayerNorm_0") | _dense("out", "Dense_1")


def flatten(params: dict[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """A nested or flat dict of arrays as one flat dict by path, without a leading `params/`."""
    flat: dict[str, np.ndarray] = {}
    for key, value in params.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = np.asarray(value)
    return flat if prefix else {path.removeprefix("params/"): value for path, value in flat.items()}


def translate(
    params: dict[str, np.ndarray], table: Table, shapes: dict[str, Shape], unused: Iterable[str] = ()
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Our state_dict (float32) out of the original's flat parameters, and every problem in words.

    Args:
        params: flat, from `flatten`.
        shapes: wanted shape of every tensor of ours.
        unused: paths in `params` that are known and not wanted.
    """
    assert table.keys() == shapes.keys()
    paths = {path for path, _ in table.values()}
    problems = [f"{path}: unknown" for path in sorted(params.keys() - paths - set(unused))]
    state = {}
    for name, (path, layout) in table.items():
        wanted = layout.flax_shape(shapes[name])
        if path not in params:
            problems.append(f"{path}: missing, wanted {wanted}")
        elif params[path].shape != wanted:
            problems.append(f"{path}: shape is {params[path].shape}, wanted {wanted}")
        elif params[path].dtype.kind not in "fiu" or not np.isfinite(params[path]).all():
            problems.append(f"{path}: {params[path].dtype} values that are not all finite numbers")
        else:
            state[name] = torch.tensor(layout.to_torch(params[path], shapes[name]), dtype=torch.float32)
    return state, problems


def resnet10_state(params: dict[str, Any]) -> dict[str, torch.Tensor]:
    """`ResNet10`'s state_dict out of the published `resnet10_params.pkl` (nested dict), wrapped or not.

    A level called `params` or `pretrained_encoder` is unwrapped, the ImageNet classifier beside the backbone ignored.
    Raises ValueError that lists every missing, unknown or misshapen entry.
    """
    flat = flatten(params)
    flat = {path.split("pretrained_encoder/", 1)[-1].removeprefix("params/"): v for path, v in flat.items()}
    shapes = {name: tuple(v.shape) for name, v in ResNet10().state_dict().items()}
    unused = [path for path in flat if path.split("/")[0] == UNUSED_ROOT]
    state, problems = translate(flat, resnet10_table(), shapes, unused)
    if problems:
        raise ValueError("not the parameters of HIL-SERL's ResNet-10: " + "; ".join(problems))
    return state
