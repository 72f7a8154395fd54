"""Agents and reward classifiers trained with the original HIL-SERL (JAX), loaded into ours.

From the original, with jax at hand, once:

    flat = flax.traverse_util.flatten_dict(agent.state.params, sep="/")  # likewise agent.state.target_params
    np.savez("agent.npz", **{path: np.asarray(value) for path, value in flat.items()})

Here, without jax:

    load_hil_serl_agent(agent, read_hil_serl_params("agent.npz"))  # the reader is in training/backbone.py

Deviation: the original has one last Dense for all Q-functions; it is copied into each of ours.
"""

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

from pytorch_serl.agents.sac import SACAgent
from pytorch_serl.hil_serl.names import (
    SAME,
    Shape,
    Table,
    actor_table,
    classifier_head_table,
    critic_table,
    encoder_table,
    flatten,
    grasp_critic_table,
    resnet10_table,
    translate,
    under,
)
from pytorch_serl.networks.classifier import RewardClassifier

FROZEN = "pretrained_encoder"
AVERAGING_DRIFT = {"rtol": 1e-3, "atol": 1e-5}  # the original averages frozen weights, too, and rounding moves them


def _frozen_camera(params: dict[str, np.ndarray], image_keys: list[str], encoder_path: str) -> str:
    """The camera that the shared frozen backbone sits under: alphabetically first in the original's own files."""
    for key in sorted(image_keys):
        if any(path.startswith(f"{encoder_path}/encoder_{key}/{FROZEN}/") for path in params):
            return key
    return min(image_keys)


def agent_table(agent: SACAgent, params: dict[str, np.ndarray]) -> Table:
    """Where each tensor of `agent` (named `module.tensor`) comes from in the original's flat `params`."""
    path = "modules_actor/encoder"
    trainable = agent.backbone is None
    table = under("online.encoder", path, encoder_table(agent.image_keys, bool(agent.state_dim), trainable))
    if not trainable:
        camera = _frozen_camera(params, agent.image_keys, path)
        table |= under("backbone", f"{path}/encoder_{camera}/{FROZEN}", resnet10_table())
    table |= under("actor", "modules_actor", actor_table())
    table |= under("online.critic", "modules_critic", critic_table())
    if agent.num_grippers:
        table |= under("online.grasp_critic", "modules_grasp_critic", grasp_critic_table())
    return table | {"temperature.lagrange": ("modules_temperature/lagrange", SAME)}


def modules(agent: SACAgent) -> dict[str, nn.Module]:
    """The modules that an import fills, besides the target."""
    named = {"online": agent.online, "actor": agent.actor, "temperature": agent.temperature}
    return named | ({"backbone": agent.backbone} if agent.backbone is not None else {})


def shapes_of(named: dict[str, nn.Module]) -> dict[str, Shape]:
    """Shape of every tensor, by `module.tensor`."""
    return {f"{name}.{k}": tuple(v.shape) for name, module in named.items() for k, v in module.state_dict().items()}


def _part(state: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(f"{name}."): v for k, v in state.items() if k.startswith(f"{name}.")}


def load_hil_serl_agent(agent: SACAgent, params: dict[str, Any], target: dict[str, Any] | None = None) -> None:
    """Replace every parameter of `agent` by the original's; the optimisers start afresh.

    Args:
        params: the original's `agent.state.params`, flat ('/'-joined paths) or nested, numpy arrays.
        target: the original's `agent.state.target_params`; default `params`.
    Raises ValueError that lists every missing, unknown or misshapen entry, or for an agent with a waypoint branch; then
    nothing is loaded.
    """
    if agent.encoder.waypoint is not None:
        raise ValueError("HIL-SERL's agents have no waypoint branch: build the agent without `waypoint`")
    online = flatten(params)
    averaged = online if target is None else flatten(target)
    table, shapes = agent_table(agent, online), shapes_of(modules(agent))
    state, problems = translate(online, table, shapes)
    target_state, target_problems = translate(averaged, agent_table(agent, averaged), shapes)
    if target is not None:
        problems += [f"target {problem}" for problem in target_problems]
        problems += [
            f"target {table[name][0]}: differs from the online one, and a frozen backbone has no average"
            for name in state.keys() & target_state.keys()
            if name.startswith("backbone.") and not torch.allclose(state[name], target_state[name], **AVERAGING_DRIFT)
        ]
    if problems:
        raise ValueError("these HIL-SERL parameters do not fit this agent: " + "; ".join(problems))
    if agent.backbone is not None:
        agent.backbone = copy.deepcopy(agent.backbone)  # a classifier may share the one that was passed in
    for name, module in modules(agent).items():
        module.load_state_dict(_part(state, name))
    agent.target.load_state_dict(_part(target_state, "online"))
    agent.average_actor.load_state_dict(_part(target_state, "actor"))
    for optimizer in agent.optimizers.values():
        optimizer.state.clear()


def classifier_table(classifier: RewardClassifier, params: dict[str, np.ndarray]) -> Table:
    """Where each tensor of `classifier` comes from in the original's flat `params`."""
    path = "encoder_def"
    camera = _frozen_camera(params, classifier.image_keys, path)
    backbone = under("backbone", f"{path}/encoder_{camera}/{FROZEN}", resnet10_table())
    heads = encoder_table(classifier.image_keys, has_state=False, trainable_backbone=False)
    return (
        backbone
        | {name: (f"{path}/{flax}", layout) for name, (flax, layout) in heads.items()}
        | classifier_head_table()
    )


def load_hil_serl_classifier(classifier: RewardClassifier, params: dict[str, Any]) -> None:
    """Replace every parameter of `classifier` by the original's `classifier.params`, flat or nested.

    Its heads become the original's kind.

    Raises ValueError that lists every missing, unknown or misshapen entry; then nothing is loaded.
    """
    flat = flatten(params)
    with classifier.heads_of(local=False):
        shapes = {name: tuple(v.shape) for name, v in classifier.state_dict().items()}
        state, problems = translate(flat, classifier_table(classifier, flat), shapes)
        if problems:
            raise ValueError("these HIL-SERL parameters do not fit this classifier: " + "; ".join(problems))
    classifier.backbone = copy.deepcopy(classifier.backbone)  # an agent may share the one that was passed in
    classifier.load_state_dict(state)
