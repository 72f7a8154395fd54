"""The frozen ResNet-10 that comes with the repository (docs/backbone.md): its file, its hash, who uses it.

A checkpoint of a policy names this backbone by the hash instead of holding it, which makes it 20 MB smaller.
"""

import hashlib
import io
from pathlib import Path

import torch

from pytorch_serl.networks.resnet import ResNet10
from pytorch_serl.utils.files import uncompiled

SHIPPED_PATH = Path(__file__).with_name("resnet10_shipped.pt")  # float16; made by recipes/backbone/distill.py
SHIPPED_SHA256 = "6c1fdc2ea962335a052258be0fcd34540cfd92f8dcb35493fe9c1b48c1dd8dfe"


def shipped_state() -> dict[str, torch.Tensor]:
    """The shipped weights, float32 on the CPU. Raises ValueError where the file is missing or is not the one meant."""
    restore = "restore it (git checkout, or install the package again), or name another with --backbone"
    try:
        content = SHIPPED_PATH.read_bytes()
    except OSError as error:
        raise ValueError(f"{SHIPPED_PATH}: the shipped backbone cannot be read ({error.strerror}); {restore}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != SHIPPED_SHA256:
        raise ValueError(
            f"{SHIPPED_PATH}: not the shipped backbone, but damaged or of another version: its sha256 is {found} "
            f"({len(content):,} bytes), wanted {SHIPPED_SHA256}; {restore}"
        )
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)["state"]
    return {name: value.float() for name, value in state.items()}


def is_shipped(backbone: ResNet10) -> bool:
    """Whether every weight of `backbone` is the shipped one's, to the bit; False where there is no shipped one."""
    try:
        shipped = shipped_state()
    except ValueError:
        return False
    state = uncompiled(backbone.state_dict())
    return all(torch.equal(value.detach().cpu(), shipped[name]) for name, value in state.items())


def named_state(sha256: str, source: str) -> dict[str, torch.Tensor]:
    """The weights that `source`, a checkpoint, names by their hash. Raises ValueError where they are not here."""
    if sha256 != SHIPPED_SHA256:
        raise ValueError(
            f"{source} does not hold its backbone but names it: sha256 {sha256}. The one shipped with this version of "
            f"the repository is {SHIPPED_SHA256}; use the version that wrote the checkpoint"
        )
    try:
        return shipped_state()
    except ValueError as error:
        raise ValueError(f"{source} names the shipped backbone instead of holding it, and: {error}") from None
