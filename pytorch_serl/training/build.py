"""From checked data to an agent, filled buffers and environments: what train_offline.py and train_hybrid.py share."""

import ast
import copy
import importlib
import inspect
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import load_env_creator

from pytorch_serl.agents.base import keypoint_maps
from pytorch_serl.agents.sac import CLONE_DROPOUT, SACAgent, SACHybridAgent
from pytorch_serl.data import oddities
from pytorch_serl.data.actions import gripper_columns, in_force
from pytorch_serl.data.demos import Demos, num_grippers
from pytorch_serl.data.replay_buffer import ReplayBuffer
from pytorch_serl.data.rewards import return_bounds
from pytorch_serl.data.waypoints import waypoints
from pytorch_serl.envs import short_names
from pytorch_serl.envs.human.scripted import BURST, PATIENCE, RATE, ScriptedHuman
from pytorch_serl.networks.resnet import FEATURE_SHAPE, ResNet10
from pytorch_serl.networks.waypoint import ENOUGH, MAX_ERROR
from pytorch_serl.training.alarms import Alarms
from pytorch_serl.training.backbone import find_backbone
from pytorch_serl.training.demo_cache import DemoCache
from pytorch_serl.training.humans import scripted_steps
from pytorch_serl.training.robot import Robot, breaches, close_robots, robots_in
from pytorch_serl.utils.device import pick_device
from pytorch_serl.utils.files import load_checkpoint

ENV_NAMES = short_names()  # that --env takes beside Gymnasium ids
ENV_HELP = f"{', '.join(ENV_NAMES)} (docs/simulation.md), or a Gymnasium id, package:Id included"
OWN_BACKBONE = Path("classifier_ckpt/backbone.pt")  # where train_classifier.py --train_backbone leaves one


def make_agent(
    demos: Demos,
    *,
    lr: float,
    discount: float,
    device: torch.device,
    backbone: ResNet10 | None,
    trainable: bool,
    start: str | os.PathLike | None = None,
) -> SACAgent:
    """The agent that fits the demos, every Q at 0: cameras, state and action dimensions are read from them.

    It has a waypoint branch, that of `start` where this is the checkpoint that it is to load, unless the backbone is
    trained, there is no state, or `start` has none.
    """
    grippers = num_grippers(demos.setup_mode)
    settings: dict[str, Any] = dict(
        q_range=q_range(demos),
        lr=lr,
        state_dim=demos.state_dim,
        discount=discount,
        device=device,
        backbone=backbone,
        trainable_backbone=trainable,
        waypoint=bool(demos.image_keys and demos.state_dim) and not trainable and (not start or _waypoint_of(start)),
    )
    if grippers:
        agent = SACHybridAgent(demos.image_keys, demos.continuous_dim, 3**grippers, **settings)
    else:
        agent = SACAgent(demos.image_keys, demos.continuous_dim, **settings)
    agent.zero_q()
    return agent


def _waypoint_of(path: str | os.PathLike) -> list[int] | bool:
    """The branch of a checkpoint's agent (`keypoint_maps`); True for what is no checkpoint, which `load` refuses."""
    content = load_checkpoint(path)
    agent = content.get("agent", content)
    config = agent.get("config") if isinstance(agent, dict) else None
    return keypoint_maps(config) if isinstance(config, dict) else True


def load_agent(path: str | os.PathLike, device: torch.device | str = "cpu") -> SACAgent:
    """The agent of a checkpoint (`best.pt`, `last.pt`, or what `agent.save` wrote), with the sizes that it holds.

    Raises ValueError, naming the file, for anything that is no agent's checkpoint, and for a device that is not here.
    """
    device = pick_device(device) if isinstance(device, str) else device
    content = load_checkpoint(path)
    return restore_agent(content.get("agent", content), device, str(path))


def policy_of(agent: SACAgent, path: str | os.PathLike) -> SACAgent:
    """Of the agent that came from `path` what is to be used: of a run's checkpoint (`last.pt`) the average.

    It acted in the run, and was evaluated; the last update's own parameters solve less. Says so.
    """
    if "agent" not in load_checkpoint(path, mmap=True):  # its weights were read before
        return agent
    print(f"{path} is a run's checkpoint: of its last update the averaged policy is used, as in the run")
    return agent.averaged()


def restore_agent(content: dict[str, Any], device: torch.device | str, source: str) -> SACAgent:
    """The agent of a `state_dict()` that came from `source`. Raises ValueError as `load_agent` does."""
    content = content if isinstance(content, dict) else {}
    if content.get("kind") not in ("SACAgent", "SACHybridAgent") or not isinstance(content.get("config"), dict):
        raise ValueError(f"{source}: not an agent's checkpoint; wanted best.pt of train_hybrid.py or train_offline.py")
    settings = dict(content["config"], waypoint=keypoint_maps(content["config"]), device=device)
    try:
        image_keys, action_dim = settings.pop("image_keys"), settings.pop("action_dim")
        if content["kind"] == "SACHybridAgent":
            commands = len(content["modules"]["online"]["grasp_critic.head.bias"])  # 3 for one gripper, 9 for two
            agent = SACHybridAgent(image_keys, action_dim, commands, **settings)
        else:
            agent = SACAgent(image_keys, action_dim, **settings)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{source}: its settings do not make an agent ({type(error).__name__}: {error})") from error
    agent.load_state_dict(content, source)
    return agent


def q_range(demos: Demos) -> tuple[float, float] | None:
    """(0, 1) where the only reward is 1 on success, which ends the episode: no return can leave that range."""
    sparse = all(t["rewards"] == 0.0 or (t["rewards"] == 1.0 and t["masks"] == 0.0) for t in demos.transitions)
    return (0.0, 1.0) if sparse else None


def all_solved(demos: Demos) -> bool:
    """Whether every episode ends in success, the only reward: none of them is better than another."""
    solved = sum(t["rewards"] == 1.0 for t in demos.transitions)
    return q_range(demos) is not None and solved == len(np.unique(demos.episode_ids))


def check_judged(demos: Demos) -> str | None:
    """A warning where the demos' rewards are not on the scale of a classifier's or a human's verdict, 0 and 1."""
    rewards = np.array([t["rewards"] for t in demos.transitions])
    if np.isin(rewards, (0.0, 1.0)).all():
        return None
    return (
        f"WARNING: the demos' rewards go from {rewards.min():g} to {rewards.max():g}, but what a classifier or a human "
        "judges is rewarded with 1 at success and 0 else: one critic cannot learn two scales; set the demos' rewards "
        "to 1 in the transition that reaches the goal and 0 else, or leave the verdict to the environment"
    )


def check_imitated(demos: Demos) -> str | None:
    """A warning where demos are cloned as they are and some of them failed: those teach to fail."""
    failed = len(np.unique(demos.episode_ids)) - oddities.successes(demos)
    if not failed:
        return None
    return (
        f"WARNING: {failed} demo episodes end without success, and here they are imitated as the others are: leave "
        "them out, or train on both with train_offline.py, whose default weighs good against bad ones"
    )


def make_alarms(demos: Demos, agent: SACAgent) -> Alarms:
    """Alarms that know the demos' rewards and gripper commands."""
    min_return, max_return = q_range(demos) or return_bounds(demos.transitions, agent.discount)
    columns = gripper_columns(demos.action_dim, demos.setup_mode)
    given = [{int(t["actions"][column]) for t in demos.transitions} for column in columns]
    commands = set.intersection(*given) if given else set()  # of two grippers the alarms watch the one that moves less
    return Alarms(max_return, agent.target_entropy, agent.action_dim, commands, min_return)


def choose_backbone(path: str | None, download: bool, trainable: bool) -> tuple[ResNet10 | None, str]:
    """The backbone that the options --backbone, --download_backbone and --train_backbone ask for, and a line."""
    backbone, line = find_backbone(path, own=OWN_BACKBONE, download=download)
    if trainable:
        start = "a random one" if backbone is None else line.removeprefix("backbone: ")
        line = f"backbone: trained with the critics, starting from {start}"
    return backbone, line


def describe_agent(agent: SACAgent) -> str:
    """One line: kind, trainable and frozen parameter counts, target entropy."""
    modules = (agent.online, agent.actor, agent.temperature)
    learned = [p for module in modules for p in module.parameters() if p.requires_grad]
    frozen = sum(p.numel() for p in agent.backbone.parameters()) if agent.backbone is not None else 0
    return (
        f"{type(agent).__name__} on {agent.device}: {sum(p.numel() for p in learned):,} trained parameters, "
        f"{frozen:,} frozen, target entropy {agent.target_entropy:g}"
    )


def to_storage(
    agent: SACAgent, obs: dict[str, Any], views: int, generator: torch.Generator | None = None
) -> dict[str, Any]:
    """What the buffer keeps of an observation: frozen features (`views` crops of each image), else the images.

    Cameras and a state that the agent does not use are left out.
    """
    keys = [*agent.image_keys, *["state"] * bool(agent.state_dim)]
    obs = {k: np.array(obs[k]) for k in keys}  # copies, since an environment may reuse its arrays
    return agent.encode_frames(obs, views, generator) if agent.backbone is not None else obs


def acting_view(agent: SACAgent, stored: dict[str, Any]) -> dict[str, Any]:
    """The observation to act on: the uncropped view of stored features, so that a frame is encoded only once."""
    return {k: v[0] if k in agent.image_keys and agent.backbone is not None else v for k, v in stored.items()}


def stored_transitions(agent: SACAgent, recorded: list[dict[str, Any]], views: int) -> list[dict[str, Any]]:
    """The transitions of an episode file (`read_episode`) as an actor gives them; each frame is encoded once.

    `views`: crops of what a human's action led to; every other frame is stored as it is.
    """
    transitions = []
    for i, record in enumerate(recorded):
        follows = i and record["observations"] is recorded[i - 1]["next_observations"]  # no step between is left out
        obs = transitions[-1]["next_observations"] if follows else to_storage(agent, record["observations"], views=1)
        next_obs = to_storage(agent, record["next_observations"], views if record["corrected"] else 1)
        transitions.append(record | {"observations": obs, "next_observations": next_obs})
    return transitions


def with_views(agent: SACAgent, stored: dict[str, Any], views: int) -> dict[str, Any]:
    """A stored observation as a buffer of `views` views takes it: the first ones of its own, or those again and
    again."""
    if agent.backbone is None:
        return stored
    return {k: v[np.arange(views) % len(v)] if k in agent.image_keys else v for k, v in stored.items()}


def add_demos(
    buffer: ReplayBuffer, demos: Demos, agent: SACAgent, views: int, progress: Any = iter, keep: bool = False
) -> None:
    """Put every demo transition into `buffer`, with the gripper commands that are in force (`in_force`).

    Args:
        progress: wraps the iterable (tqdm).
        keep: read what the backbone makes of the frames from a file beside the demos, or else write it there; the
            buffer and the random numbers are the same without (training/demo_cache.py).
    """
    frames, fresh = _frames_in_order(demos.transitions)
    cache = DemoCache(demos.path, agent, frames, views) if keep and agent.backbone is not None else None
    if cache and cache.path is None:  # nothing is kept of so few or so many
        cache = None
    features = cache.read() if cache else None
    stored = _stored_frames(agent, frames, views, features)
    made, next_obs, action, episode = [], None, None, None
    grippers = num_grippers(demos.setup_mode)
    for transition, is_fresh, number in zip(progress(demos.transitions), fresh, demos.episode_ids):
        obs = next(stored) if is_fresh else next_obs
        next_obs = next(stored)
        action = in_force(transition["actions"], action if number == episode else None, grippers)
        episode = number
        buffer.add(transition | {"observations": obs, "next_observations": next_obs, "actions": action})
        if cache and features is None:
            made += [obs, next_obs] if is_fresh else [next_obs]
    if made:
        cache.write(made)


def fit_waypoint(agent: SACAgent, buffer: ReplayBuffer, demos: Demos) -> None:
    """Fit the agent's waypoint branch to the demos, which are all that `buffer` holds; says how well they tell it.

    Where every reward is for success, failed episodes do not count. An agent that was fitted before stays as it is.
    """
    if agent.encoder.waypoint is None or agent.encoder.waypoint.is_fitted:
        return
    ends = np.append(np.flatnonzero(np.diff(demos.episode_ids)), len(demos.episode_ids) - 1)
    solved = [demos.episode_ids[end] for end in ends if demos.transitions[end]["rewards"] > 0]
    rows = np.isin(demos.episode_ids, solved) if q_range(demos) else np.ones(len(demos.episode_ids), bool)
    if len(np.unique(demos.episode_ids[rows])) < 2:
        print("waypoints: not learned, which takes two successful demos")
        return
    inputs, maps = [], []
    for batch in buffer.in_order(256):
        obs = batch["observations"]
        inputs.append(agent.encoder.waypoint_inputs({key: value.float() for key, value in obs.items()}))
        maps.append(torch.cat([obs[key][:, : FEATURE_SHAPE[0]].flatten(1) for key in agent.image_keys], 1))
    states = np.array([transition["observations"]["state"] for transition in demos.transitions])
    places, ahead = waypoints(demos)
    data = torch.cat(inputs).numpy(), places - states[:, None], ahead, demos.episode_ids, torch.cat(maps).numpy()
    error = agent.fit_waypoint(*(x[rows] for x in data))
    told, best = int((error <= MAX_ERROR).sum()), f"(the best to {error.min():.0%}; in demos left out of the fit)"
    if agent.encoder.waypoint.is_fitted:
        policy = "the policy gets them beside what it sees"
    else:
        policy = "the policy sees as it would without" + ", since the map tells them as well" * (told >= ENOUGH)
    print(
        f"waypoints: the keypoints tell {told or 'none'} of {error.size} numbers of where the arm goes to within "
        f"{MAX_ERROR:.0%} of their spread {best}: {policy}"
    )


def clone_dropout(agent: SACAgent) -> float:
    """CLONE_DROPOUT where frames tell waypoints, else 0: then the clone has only the maps to see by, and needs them."""
    waypoint = agent.encoder.waypoint
    return CLONE_DROPOUT if waypoint is not None and waypoint.is_fitted else 0.0


def _frames_in_order(transitions: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[bool]]:
    """The observations to store, each once, and of each transition whether its first one is not the last one before."""
    frames, fresh = [], []
    for transition in transitions:
        obs = transition["observations"]
        fresh.append(not frames or any(frames[-1][key] is not obs[key] for key in obs))
        frames += [obs] * fresh[-1] + [transition["next_observations"]]
    return frames, fresh


def _stored_frames(
    agent: SACAgent, frames: list[dict[str, Any]], views: int, features: np.ndarray | None
) -> Iterator[dict[str, Any]]:
    """`to_storage` of each frame, in order; `features` (frames, cameras, views, C, 16) are what it would make."""
    for number, frame in enumerate(frames):
        if features is None:
            yield to_storage(agent, frame, views)
        else:
            state = {"state": np.array(frame["state"])} if agent.state_dim else {}
            yield dict(zip(agent.image_keys, features[number])) | state


def env_id(name: str) -> str:
    """The Gymnasium id that `--env` means: a short name's, or the name itself."""
    return ENV_NAMES.get(name, name)


def registered(name: str) -> type | None:
    """The class that `--env` means, without making one; None where its package is not here, or says no class."""
    package, _, own_id = env_id(name).rpartition(":")
    try:
        if package:
            importlib.import_module(package)
        entry_point = gym.spec(own_id).entry_point
        task = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    except Exception:  # the package is the user's, and may be for the robots' machines alone
        return None
    return task if isinstance(task, type) else None


def says(task: Any, name: str, default: Any) -> Any:
    """What an environment says of itself, in an attribute or else in `metadata`.

    Args:
        task: the environment, wrapped or not, or its class; None says nothing.
    """
    task = task if task is None or isinstance(task, type) else task.unwrapped
    return getattr(task, name, (getattr(task, "metadata", None) or {}).get(name, default))


def is_simulated(task: Any) -> bool:
    """Whether the environment says that it waits for whoever acts and can be made as often as wanted; see `says`."""
    return bool(says(task, "simulated", False))


def eval_copies(task: Any) -> int:
    """How many episodes of an evaluation run at once: 1, or what a simulated environment says; see `says`."""
    return max(1, int(says(task, "eval_copies", 1))) if is_simulated(task) else 1


def has_expert(task: Any) -> bool:
    """Whether the environment has a `scripted_expert(noise, seed)`; see `says`."""
    return callable(says(task, "scripted_expert", None))


def steps_per_second(task: Any, control_hz: float | None = None) -> float:
    """The rate of the environment: `render_fps` where it says that (Gymnasium), else `control_hz`, else 10.

    In a simulation a step is so much simulated time, however fast `control_hz` lets it run.
    """
    fps = says(task, "render_fps", None)
    return float(fps) if isinstance(fps, int | float) and 0 < fps < math.inf else control_hz or RATE


def constructor_args(words: list[str]) -> dict[str, Any]:
    """What --env_args gives an environment's constructor: KEY=VALUE, the value as Python writes it, else a text.

    Raises ValueError for a word without `=`.
    """
    settings = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key.isidentifier() or not equals:
            raise ValueError(f"--env_args: got {word!r}, wanted KEY=VALUE")
        try:
            settings[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            settings[key] = value
    return settings


def make_env(name: str, setup_mode: str, settings: dict[str, Any] | None = None) -> Robot:
    """The environment of a Gymnasium id (`package:Id` included) or short name, in a `Robot`; who makes it closes it.

    The built-in one takes the setup mode.

    Args:
        settings: further arguments of its constructor.
    Raises ValueError, naming the id and what went wrong in the package, when it cannot be made.
    """
    settings = ({"setup_mode": setup_mode} if env_id(name) == ENV_NAMES["built-in"] else {}) | (settings or {})
    made: Any = env_id(name)
    try:
        if "max_episode_steps" in settings and (task := registered(name)):
            if "max_episode_steps" in inspect.signature(task).parameters:  # gym.make keeps its argument to itself
                made = copy.deepcopy(gym.spec(made.rpartition(":")[2]))
                made.kwargs["max_episode_steps"] = settings["max_episode_steps"]
        return Robot(gym.make(made, **settings))
    except Exception as error:  # the package is the user's: anything can be wrong in it
        there_is = f"; wanted {ENV_HELP}" if _is_unknown(name, error) else ""
        raise ValueError(f"--env {name} cannot be made: {type(error).__name__}: {error}{there_is}") from error


def _is_unknown(name: str, error: Exception) -> bool:
    """Whether `error` says that nobody has registered an environment of this name, or that its package is missing."""
    if isinstance(error, ModuleNotFoundError):  # Gymnasium's, or of something that the package itself imports
        missing = getattr(error.__cause__ or error, "name", None)
        return f"{env_id(name).rpartition(':')[0]}.".startswith(f"{missing}.")
    return isinstance(error, gym.error.UnregisteredEnv) or type(error) is gym.error.Error


def side_by_side(env: gym.Env, name: str, setup_mode: str, settings: dict[str, Any] | None = None) -> list[gym.Env]:
    """The environment that `make_env` made, and more alike up to its `eval_copies`: episodes at once.

    They have the first one's rate and limit, and are the caller's to close.
    """
    envs = [env]
    try:
        while len(envs) < eval_copies(env):
            envs.append(make_env(name, setup_mode, settings))
            for robot, like in zip(robots_in(envs[-1]), robots_in(env)):
                robot.control_hz, robot.limit, robot.cameras = like.control_hz, like.limit, like.cameras
    except BaseException:
        close_robots(envs[1:])
        raise
    return envs


def add_human(
    env: gym.Env,
    human: str,
    seed: int,
    patience: float = PATIENCE / RATE,
    burst: tuple[float, float] = (BURST[0] / RATE, BURST[1] / RATE),
    noise: float = 0.1,
) -> gym.Env:
    """The environment for training: with the human beside it, or as it is where it has a human of its own.

    `patience`, `burst`: of `ScriptedHuman`, in seconds, which become steps of this environment.
    """
    if human == "env":
        return env
    if human != "scripted":
        return env.steered()
    rate = steps_per_second(env, next((robot.control_hz for robot in robots_in(env)), None))
    return ScriptedHuman(env, seed=seed, noise=noise, **scripted_steps(patience, burst, rate))


def check_env(env: gym.Env, demos: Demos, env_id: str) -> None:
    """Raise ValueError where the environment's spaces, or its `setup_mode` if it has one, do not fit the demos, or a
    camera does not give uint8."""
    spaces = getattr(env.observation_space, "spaces", {})
    wanted = {**demos.image_shapes, **({"state": (demos.state_dim,)} if demos.state_dim else {})}
    wrong = [
        f"observation {k!r} is {spaces[k].shape if k in spaces else 'missing'}, in the demos {tuple(shape)}"
        for k, shape in wanted.items()
        if k not in spaces or spaces[k].shape != tuple(shape)
    ]
    if env.action_space.shape != (demos.action_dim,):
        wrong.append(f"actions are {env.action_space.shape}, in the demos ({demos.action_dim},)")
    own = getattr(env.unwrapped, "setup_mode", demos.setup_mode)
    if own != demos.setup_mode:
        wrong.append(f"the environment is {own}, --setup_mode {demos.setup_mode}: give its own, and demos of it")
    wrong += breaches(env, demos.image_shapes)
    if wrong:
        raise ValueError(f"--env {env_id} does not fit the demos: " + "; ".join(wrong))
