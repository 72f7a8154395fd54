"""The work that the benchmarks time: a hybrid agent as HIL-SERL has it, its two buffers, and random observations.

One arm with a learned gripper (6 + 1 actions), 128 x 128 cameras, a state of 18 entries. What a network computes on
takes the same time whatever the picture shows.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pytorch_serl.agents.sac import SACHybridAgent
from pytorch_serl.data.replay_buffer import ReplayBuffer
from pytorch_serl.networks.augment import crop_offsets, random_crop
from pytorch_serl.networks.resnet import FEATURE_SHAPE, IMAGE_SIZE, ResNet10
from pytorch_serl.training import build
from pytorch_serl.training.learner import Learner, Schedule
from pytorch_serl.training.limits import limits_for

BACKBONES = ("stored", "frozen", "trainable")  # frozen with stored features, frozen on stored frames, trained
STAGES = (
    "sample",
    "transport",
    "augment",
    "backbone",
    "encode",
    "critic",
    "grasp",
    "actor",
    "temperature",
    "backward",
    "optimiser",
    "target",
)
STATE_DIM, ARM_ACTIONS, GRIPPER_COMMANDS = 18, 6, 3
EPISODE_STEPS = 100
DEMO_VIEWS = 8  # stored crops of each demo frame, the scripts' default
NUM_FRAMES = 8  # different ones; filling is not the subject
SAMPLE_SIZE = 256  # transitions, where sampling alone is timed
LEARNER_TRANSITIONS = 2000  # in each of a learner's two buffers, at most


def camera_names(cameras: int) -> list[str]:
    """Image keys."""
    return [f"camera{i}" for i in range(cameras)]


def make_agent(backbone: str, cameras: int, device: torch.device, ensemble_size: int = 2) -> SACHybridAgent:
    """The agent of one arm with a learned gripper; `backbone` is one of BACKBONES."""
    torch.manual_seed(0)
    return SACHybridAgent(
        camera_names(cameras),
        ARM_ACTIONS,
        GRIPPER_COMMANDS,
        state_dim=STATE_DIM,
        q_range=(0.0, 1.0),
        ensemble_size=ensemble_size,
        trainable_backbone=backbone == "trainable",
        device=device,
    )


def backbones_of(agent: SACHybridAgent) -> list[ResNet10]:
    """Every ResNet-10 of an agent, its targets' included."""
    roots = [agent.online, agent.target] + [agent.backbone] * (agent.backbone is not None)
    return [module for root in roots for module in root.modules() if isinstance(module, ResNet10)]


def random_observations(cameras: int, features: bool = False, size: int = IMAGE_SIZE) -> list[dict[str, np.ndarray]]:
    """NUM_FRAMES observations: `state` and for each camera a frame, uint8 (size, size, 3), or with `features` what is
    stored of one, float16 (1, 512, 16)."""
    rng = np.random.default_rng(0)

    def image() -> np.ndarray:
        if features:
            return rng.random((1, *FEATURE_SHAPE), np.float32).astype(np.float16)
        return rng.integers(0, 256, (size, size, 3), np.uint8)

    return [
        {key: image() for key in camera_names(cameras)} | {"state": rng.normal(size=STATE_DIM).astype(np.float32)}
        for _ in range(NUM_FRAMES)
    ]


def random_transitions(observations: list[dict[str, np.ndarray]], count: int) -> Iterator[dict[str, Any]]:
    """`count` transitions through these observations, in episodes of EPISODE_STEPS steps."""
    rng = np.random.default_rng(0)
    place = 0
    for step in range(count):
        done = (step + 1) % EPISODE_STEPS == 0
        action = rng.uniform(-1, 1, ARM_ACTIONS + 1).astype(np.float32)
        action[-1] = rng.integers(-1, 2)
        yield {
            "observations": observations[place],
            "next_observations": observations[(place + 1) % NUM_FRAMES],
            "actions": action,
            "rewards": float(done),
            "masks": 1.0 - done,
            "dones": done,
            "grasp_penalty": 0.0,
        }
        place = (place + 1 + done) % NUM_FRAMES  # an episode starts at another frame than the last one ended


def make_learner(agent: SACHybridAgent, backbone: str, transitions: int) -> Learner:
    """A learner whose buffers of demos and of online experience hold that many transitions each; it saves nothing."""
    schedule = Schedule(
        batch_size=64, cta_ratio=2, cycles_per_step=1, pretrain_steps=0, clone_weight=0.0, clone_steps=1
    )
    learner = Learner(
        agent,
        Path(),
        {},
        schedule,
        capacity=transitions,
        demo_capacity=transitions,
        views=DEMO_VIEWS,
        seed=0,
        limits=limits_for(agent, {}),
    )
    observations = random_observations(len(agent.image_keys))
    for buffer, views in ((learner.online, 1), (learner.demo, DEMO_VIEWS)):
        stored = observations
        if backbone == "stored":
            stored = [build.to_storage(agent, obs, views) for obs in observations]
        for transition in random_transitions(stored, transitions):
            buffer.add(transition)
    return learner


def draw(buffer: ReplayBuffer, crop: bool) -> None:
    """A sample of SAMPLE_SIZE transitions; `crop`: with random crops of all its frames, as the agent makes them."""
    batch = buffer.sample(SAMPLE_SIZE)
    for obs in (batch["observations"], batch["next_observations"]) if crop else ():
        offsets = crop_offsets(SAMPLE_SIZE, "cpu")
        for key in buffer.image_keys:
            random_crop(obs[key], offsets, IMAGE_SIZE)


def act(agent: SACHybridAgent, backbone: str, obs: dict[str, np.ndarray]) -> np.ndarray:
    """The action for one observation, as training takes it: with stored features a frame is encoded only once."""
    if backbone == "stored":
        obs = build.acting_view(agent, build.to_storage(agent, obs, views=1))
    return agent.sample_actions(obs)
