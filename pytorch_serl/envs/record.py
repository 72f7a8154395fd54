"""Records demonstrations and, of the built-in task, classifier frames with the scripted expert.

    python -m pytorch_serl.envs.record --setup_mode single-arm-learned-gripper --num_demos 20
    python -m pytorch_serl.envs.record --setup_mode dual-arm-fixed-gripper --image_keys image wrist_left
    python -m pytorch_serl.envs.record --env panda --output_dir ./data/panda

It writes to `--output_dir` (./data):
    demos.pkl       a list of transitions of successful episodes, the demo format of the README
    success/*.pkl   classifier frames {'observations': ..., 'labels': 1}, one file per episode
    failure/*.pkl   the same with `labels` 0: the way to success, lost episodes, near misses

Every transition and frame has a `scene`: equal numbers were recorded together, in whichever file, and belong on one
side of a split. `success/episode_007.pkl` and `failure/episode_007.pkl` are scene 7; demos count on from there.
A demo's next observation is the same object as the observation that follows, so a pickle stores a frame once.
An existing recording is left alone (exit code 2) unless `--overwrite` is given.
"""

import argparse
import os
import pickle
import sys
from pathlib import Path

import numpy as np

from pytorch_serl.envs.tabletop import task
from pytorch_serl.utils.output import print_anything

SUCCESS_FRAMES = 8  # classifier frames at and after success, per episode
FAILURE_FRAMES = 8  # classifier frames of an episode's way to success, and as many of a failed one


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--env",
        choices=("built-in", "panda"),
        default="built-in",
        help="the built-in task, or the simulated arm of docs/simulation.md, which is single-arm-learned-gripper",
    )
    parser.add_argument("--setup_mode", choices=task.SETUP_MODES, default="single-arm-learned-gripper")
    parser.add_argument("--num_demos", type=int, default=20, help="successful episodes in demos.pkl (20)")
    parser.add_argument(
        "--num_classifier_episodes",
        type=int,
        help="episodes per class for success/ and failure/ (40; the panda has none, so 0); 0 writes neither",
    )
    parser.add_argument(
        "--noise", type=float, default=0.1, help="standard deviation of the noise on the expert's actions (0.1)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of everything (0)")
    parser.add_argument("--output_dir", default="./data", help="where to write (./data)")
    parser.add_argument("--image_keys", nargs="+", help="cameras to keep (all of the mode)")
    parser.add_argument("--image_size", type=int, default=128, help="side of the pictures in pixels (128)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing recording")
    return parser.parse_args(argv)


def record(
    setup_mode,
    num_demos=20,
    num_classifier_episodes=None,
    noise=0.1,
    seed=0,
    output_dir="./data",
    image_keys=None,
    image_size=128,
    overwrite=False,
    env="built-in",
):
    """Records and writes everything; see the module's docstring for the files.

    Returns:
        dict: `demos` (path) and the counts `transitions`, `episodes`, `attempts`, `classifier_episodes`,
            `success_frames`, `failure_frames`.

    Raises:
        FileExistsError: a recording is there already and `overwrite` is False; nothing is touched.
        ValueError: an unknown camera, an expert too noisy to succeed, or what `env` does not have.
        ImportError, RuntimeError: the simulator is missing, or cannot draw.
    """
    output_dir = Path(output_dir)
    demo_path = output_dir / "demos.pkl"
    outputs = [demo_path, *sorted(output_dir.glob("success/[!.]*.pkl")), *sorted(output_dir.glob("failure/[!.]*.pkl"))]
    existing = [path for path in outputs if path.exists()]
    if existing and not overwrite:
        raise FileExistsError(f"{existing[0]} exists; give --overwrite to replace it, or another --output_dir")
    if num_classifier_episodes is None:
        num_classifier_episodes = 40 if env == "built-in" else 0
    if num_demos < 1 or num_classifier_episodes < 0:
        raise ValueError(
            f"--num_demos is {num_demos}, --num_classifier_episodes {num_classifier_episodes}: "
            "want at least 1 and at least 0"
        )
    env = _make_env(env, setup_mode, image_size, num_classifier_episodes)
    unknown = sorted(set(image_keys or []) - set(env.image_keys))
    if unknown:
        raise ValueError(f"no camera {unknown} in {setup_mode}; it has {env.image_keys}")
    keys = [*(image_keys or env.image_keys), "state"]
    expert = env.scripted_expert(noise, seed=[seed, 0])
    env.reset(seed=seed)

    demos, attempts = [], 0
    for episode in range(num_demos):
        transitions, tries = _successful_episode(env, expert, keys)
        demos += [transition | {"scene": num_classifier_episodes + episode} for transition in transitions]
        attempts += tries
    classes = {"success": [], "failure": []}
    rng = np.random.default_rng([seed, 1])
    for episode in range(num_classifier_episodes):
        success, failure = _classifier_episode(env, expert, keys, rng, episode)
        classes["success"].append(success)
        classes["failure"].append(failure)
    env.close()

    if num_classifier_episodes:
        for label, episodes in classes.items():
            _write_class(output_dir / label, episodes)
    _write(demo_path, demos)
    return {
        "demos": demo_path,
        "transitions": len(demos),
        "episodes": num_demos,
        "attempts": attempts,
        "classifier_episodes": num_classifier_episodes,
        "success_frames": sum(map(len, classes["success"])),
        "failure_frames": sum(map(len, classes["failure"])),
    }


def _make_env(name, setup_mode, image_size, num_classifier_episodes):
    if name == "built-in":
        return task.TabletopEnv(setup_mode, image_size=image_size)
    if setup_mode != "single-arm-learned-gripper":
        raise ValueError(f"--env {name} is single-arm-learned-gripper, --setup_mode says {setup_mode}")
    if num_classifier_episodes:
        raise ValueError(f"--env {name} has no classifier frames; --num_classifier_episodes must be 0")
    from pytorch_serl.envs.simulators.panda import PandaPickCubeEnv

    return PandaPickCubeEnv(image_size)


def _successful_episode(env, expert, keys):
    """The expert's next successful episode as transitions, and how many attempts it took."""
    for attempt in range(1, 101):
        transitions = _episode(env, expert, keys)
        if transitions[-1]["rewards"] == 1.0:
            return transitions, attempt
    raise ValueError(f"the expert failed 100 times in a row with --noise {expert.noise}; choose a smaller one")


def _episode(env, expert, keys):
    obs, _ = env.reset()
    obs, transitions, over = _keep(obs, keys), [], False
    while not over:
        action = expert.act()
        next_obs, reward, terminated, truncated, info = env.step(action)
        next_obs, over = _keep(next_obs, keys), terminated or truncated
        transitions.append(
            {
                "observations": obs,
                "actions": action,
                "next_observations": next_obs,
                "rewards": float(reward),
                "dones": bool(over),
                "masks": 1.0 - float(terminated),
                "grasp_penalty": float(info["grasp_penalty"]),
            }
        )
        obs = next_obs
    return transitions


def _classifier_episode(env, expert, keys, rng, episode):
    """Frames of one episode: those at and around success, and those of the way there and of a failure."""
    transitions, _ = _successful_episode(env, expert, keys)
    success = [transitions[-1]["next_observations"]]
    for _ in range(3 * SUCCESS_FRAMES):
        obs, _, _, _, info = env.step(_wiggle(env, rng))
        if info["succeed"]:
            success.append(_keep(obs, keys))
        if len(success) == SUCCESS_FRAMES:
            break
    way = [t["observations"] for t in transitions]
    failure = _some(way[:-3], rng, FAILURE_FRAMES - 3) + way[-3:]  # the last ones are the hard ones
    lost = _random_frames(env, keys, rng) if episode % 2 else _near_miss_frames(env, keys, rng)
    return _label(success, 1, episode), _label(failure + _some(lost, rng, FAILURE_FRAMES), 0, episode)


def _wiggle(env, rng):
    """A small random action that neither opens a gripper nor leaves the hole: the success goes on."""
    action = np.zeros((env.num_arms, env.action_space.shape[0] // env.num_arms), np.float32)
    action[:, :6] = rng.normal(0, 0.3, (env.num_arms, 6))
    action[:, 2] = np.abs(action[:, 2]) if env.learned_gripper else -np.abs(action[:, 2])
    return np.clip(action, -1, 1).ravel()


def _random_frames(env, keys, rng):
    """An episode of a useless policy: random, but drifting, so that it gets about."""
    obs, _ = env.reset()
    frames, drift, over = [_keep(obs, keys)], rng.uniform(-1, 1, env.action_space.shape), False
    while not over:
        drift = np.clip(0.9 * drift + 0.4 * rng.standard_normal(drift.shape), -1, 1)
        obs, _, terminated, over, _ = env.step(drift)
        if terminated:
            break
        frames.append(_keep(obs, keys))
    return frames


def _near_miss_frames(env, keys, rng):
    """The whole routine beside the object: closed on nothing and lifted, or pressed on the table.

    With two arms, one of them may do it right: the task is done only when both have.
    """
    start, _ = env.reset()
    truth = env.privileged_state()["object"][:, :2]
    angle = rng.uniform(0, 2 * np.pi, env.num_arms)
    beside = np.column_stack([np.cos(angle), np.sin(angle)]) * rng.uniform(1.6, 4.5, (env.num_arms, 1)) * env.tolerance
    wrong = np.ones(env.num_arms, bool)
    if env.num_arms == 2 and rng.random() < 0.5:
        wrong[rng.integers(2)] = False
    target = np.where(wrong[:, None], truth + beside, truth)
    frames = [_keep(start, keys)]
    for action in routine(env, target):
        obs, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            break
        frames.append(_keep(obs, keys))
    return frames[-FAILURE_FRAMES:]  # the end: low, closed, lifted


def routine(env, target_xy):
    """Yields the actions of the whole task done at `target_xy` (A, 2), m, whatever is there."""
    bottom = 0.012 if env.learned_gripper else task.HOLE_BOTTOM
    above = np.column_stack([target_xy, np.full(env.num_arms, task.SLOW_ZONE + 0.008)])
    below = np.column_stack([target_xy, np.full(env.num_arms, bottom)])
    stages = [(above, 0, 14), (below, 0, 6)]
    if env.learned_gripper:
        stages += [(below, -1, 1), (above + np.array([0, 0, 0.02]), 0, 6)]
    for goal, gripper, steps in stages:
        for _ in range(steps):
            state = env.privileged_state()  # the arms' own poses only
            move, turn = (goal - state["tip"]) / task.TRANSLATION_STEP, -state["rpy"] / task.ROTATION_STEP
            columns = [move, turn] + ([np.full((env.num_arms, 1), gripper)] if env.learned_gripper else [])
            yield np.clip(np.concatenate(columns, axis=1), -1, 1).astype(np.float32).ravel()
            if gripper == 0 and max(np.abs(move).max(), np.abs(turn).max()) < 0.2:
                break


def _some(frames, rng, count):
    chosen = np.sort(rng.choice(len(frames), min(count, len(frames)), replace=False))
    return [frames[i] for i in chosen]


def _label(frames, label, scene):
    return [{"observations": frame, "labels": label, "scene": scene} for frame in frames]


def _keep(obs, keys):
    return {key: obs[key] for key in keys}


def _write_class(folder, episodes):
    """Writes one pickle per episode; an earlier recording's files of the same name pattern go."""
    paths = [folder / f"episode_{index:03d}.pkl" for index in range(len(episodes))]
    for path, frames in zip(paths, episodes, strict=True):
        _write(path, frames)
    for old in set(folder.glob("episode_*.pkl")) - set(paths):
        old.unlink()


def _write(path, content):
    """Writes a pickle whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        pickle.dump(content, file, protocol=4)
    os.replace(part, path)


def main(argv=None):
    print_anything()
    args = parse_args(argv)
    try:
        summary = record(**vars(args))
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        print(f"record: {error}", file=sys.stderr)
        return 2
    size = summary["demos"].stat().st_size / 1e6
    counts = f"{summary['transitions']} transitions of {summary['episodes']} successful episodes"
    print(f"{summary['demos']}: {counts} ({summary['attempts']} attempts), {size:.1f} MB")
    for label in ("success", "failure") if summary["classifier_episodes"] else ():
        print(
            f"{Path(args.output_dir) / label}: {summary[label + '_frames']} frames, {summary['classifier_episodes']} "
            f"files"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
