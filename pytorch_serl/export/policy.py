"""A trained policy as one file that needs nothing of this project: a `torch.export` program, or ONNX.

Input by name: every camera uint8 (B, H, W, 3) of any size, and where the agent has one `state`, float32 (B, D). Output:
`action`, float32 (B, A) in [-1, 1], gripper entries -1, 0 or 1. It is the agent's deterministic action: resizing,
normalisation, encoder, mean of the actor, best gripper command.
"""

import copy
import json
import os
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pytorch_serl.agents.sac import SACAgent, join_actions
from pytorch_serl.networks.resnet import IMAGE_SIZE

FACTS = "pytorch_serl_policy"  # entry of the ONNX file's metadata
FACTS_FILE = "policy.json"  # extra file in the program
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
EXAMPLE_SIZE = (96, 120)  # pixels of the frames that trace the program; others than 128, so that nothing is left out


def resize(images: torch.Tensor) -> torch.Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 128, 128, 3), as `ResNet10.preprocess` resizes: bilinear with antialias.

    Two matrix products, because ONNX's own antialiased Resize is 20 times less exact in onnxruntime, and other
    runtimes lack it. Frames of 128 x 128 come out as they are, to the bit.
    """
    x = images.permute(0, 3, 1, 2).float()
    x = _resampling(x.shape[-2]) @ x @ _resampling(x.shape[-1]).T  # (B, 3, 128, 128)
    return x.permute(0, 2, 3, 1)


def _resampling(size: int) -> torch.Tensor:
    """(128, size) weights: a triangle around each target pixel's centre, as wide as a target pixel where it shrinks."""
    positions = torch.arange(size, dtype=torch.float32) + 0.5
    scale = (positions[-1] + 0.5) / IMAGE_SIZE  # source pixels per target pixel; a tensor, so that it can be traced
    centres = (torch.arange(IMAGE_SIZE, dtype=torch.float32) + 0.5) * scale
    weights = (1 - (positions - centres[:, None]).abs() / scale.clamp(min=1.0)).clamp(min=0.0)
    return weights / weights.sum(1, keepdim=True)


class Policy(nn.Module):
    """A copy, on the CPU, of what an agent acts with; nothing of what it learns with."""

    def __init__(self, agent: SACAgent):
        super().__init__()
        self.image_keys, self.num_grippers = list(agent.image_keys), agent.num_grippers
        self.encoder, self.actor = copy.deepcopy(agent.encoder), copy.deepcopy(agent.actor)
        self.backbone = copy.deepcopy(agent.backbone)  # None where each camera trained its own, inside the encoder
        self.grasp_critic = copy.deepcopy(agent.grasp_critic) if self.num_grippers else None
        self.cpu().eval().requires_grad_(False)

    def encode(self, obs: dict[str, torch.Tensor]) -> torch.Tensor:
        """The encoding (B, D) of an input as in this module's docstring."""
        maps = {key: resize(obs[key]) for key in self.image_keys}
        if self.backbone is not None:
            maps = {key: self.encoder.see(self.backbone, image) for key, image in maps.items()}  # (B, *feature_shape)
        return self.encoder(self.encoder.pool(obs | maps))

    def forward(self, obs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Input as in this module's docstring to actions (B, A)."""
        encoding = self.encode(obs)
        action = torch.tanh(self.actor(encoding)[0])
        if self.grasp_critic is None:
            return action
        return join_actions(action, self.grasp_critic(encoding), self.num_grippers)


def describe(agent: SACAgent) -> dict[str, Any]:
    """What a program on the robot may want to check: cameras in their order, lengths, grippers."""
    return {
        "image_keys": list(agent.image_keys),
        "state_dim": agent.state_dim,
        "action_dim": agent.action_dim + agent.num_grippers,
        "num_grippers": agent.num_grippers,
    }


def make_program(agent: SACAgent) -> torch.export.ExportedProgram:
    """Trace the agent's policy for any batch size and any frame sizes, each camera's its own."""
    batch, dim = torch.export.Dim("batch"), torch.export.Dim
    obs = {key: torch.zeros(2, *EXAMPLE_SIZE, 3, dtype=torch.uint8) for key in agent.image_keys}
    shapes = {
        key: {0: batch, 1: dim(f"height_{i}", min=2), 2: dim(f"width_{i}", min=2)}
        for i, key in enumerate(agent.image_keys)
    }
    if agent.state_dim:
        obs["state"], shapes["state"] = torch.zeros(2, agent.state_dim, dtype=torch.float32), {0: batch}
    program = torch.export.export(Policy(agent), (obs,), dynamic_shapes={"obs": shapes}, strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def save_program(path: Path, program: torch.export.ExportedProgram, facts: dict[str, Any]) -> None:
    """Write the program with `facts` beside it as the extra file FACTS_FILE."""
    with warnings.catch_warnings():  # the backbone's channels-last weights; they are read back to the bit
        warnings.filterwarnings("ignore", "No complete tensor", UserWarning)
        torch.export.save(program, path, extra_files={FACTS_FILE: json.dumps(facts)})


def missing_for_onnx() -> str | None:
    """Why no ONNX file can be written and checked here, with what to do; None where it can."""
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed: python -m pip install -r requirements/export.txt"
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 5):
        return f"PyTorch is {torch.__version__}, wanted 2.5 or newer: python -m pip install -r requirements/export.txt"
    return None


def save_onnx(path: str | os.PathLike, program: torch.export.ExportedProgram, facts: dict[str, Any]) -> None:
    """Write the program as one ONNX file with `facts` as JSON in its metadata, and without paths of this machine."""
    names = [*facts["image_keys"], *["state"] * bool(facts["state_dim"])]
    model = torch.onnx.export(program, input_names=names, output_names=["action"], dynamo=True, verbose=False).model
    for node in model.graph.all_nodes():
        node.metadata_props.clear()  # the exporter's stack traces
    model.metadata_props[FACTS] = json.dumps(facts)
    from onnxscript import ir

    ir.save(model, path)
