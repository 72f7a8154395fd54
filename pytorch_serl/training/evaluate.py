"""Evaluation without help: success rate with its Wilson interval, steps to success, pictures of the policy at work."""

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from tqdm import tqdm

from pytorch_serl.data.replay_buffer import ReplayBuffer
from pytorch_serl.training.limits import Limits, Moment, limits_of
from pytorch_serl.training.rewards import succeeded
from pytorch_serl.training.robot import guarded
from pytorch_serl.training.run import save_json, uninterrupted
from pytorch_serl.utils.files import atomic_write

EVAL_SEED = 1_000_000_000  # evaluations during training are seeded from here, training episodes far below
EVALUATION_FILES = ("evaluation.gif", "evaluation.json")  # what `report_evaluation` writes
SCREEN_EPISODES = 20  # after so many, an evaluation that cannot matter any more may end
RECORDED_FRAMES = 60  # of an episode, at most, in an animation; a longer one runs faster there
RECORDED_SIZE = 128, 512  # pixels, all cameras beside each other: larger frames are shrunk when they are taken
LARGE = 128 * 256  # pixels: pictures of no more are drawn twice as large
FINAL_SEED = 1_500_000_000  # the final evaluation: episodes that chose neither the policy nor the checkpoint


@dataclass
class Evaluation:
    """What a run of unaided episodes showed."""

    successes: int
    episodes: int
    steps_to_success: list[int]
    returns: list[float]
    gripper_commands: dict[int, int]
    helped: int = 0
    denied: int = 0  # that a classifier called solved, and the environment's `info["succeed"]` not
    frames: list[np.ndarray] = field(default_factory=list)

    @property
    def success_rate(self) -> float:
        return self.successes / self.episodes

    @property
    def interval(self) -> tuple[float, float]:
        """Of the success rate, as `wilson_interval` has it."""
        return wilson_interval(self.successes, self.episodes)

    def __add__(self, other: "Evaluation") -> "Evaluation":
        """Both as one."""
        commands = {k: n + other.gripper_commands[k] for k, n in self.gripper_commands.items()}
        return Evaluation(
            self.successes + other.successes,
            self.episodes + other.episodes,
            self.steps_to_success + other.steps_to_success,
            self.returns + other.returns,
            commands,
            self.helped + other.helped,
            self.denied + other.denied,
            self.frames + other.frames,
        )

    def __str__(self) -> str:
        low, high = self.interval
        steps = f", {np.mean(self.steps_to_success):.1f} steps to success" if self.steps_to_success else ""
        helped = f"; {self.helped} with a human's help, counted as not solved" if self.helped else ""
        denied = f"; {self.denied} more by the classifier, not by info['succeed']" if self.denied else ""
        if self.denied and not self.successes:
            denied += " (without a sensor that says so, leave it out of the info)"
        return (
            f"{self.successes} of {self.episodes} episodes solved without help ({self.success_rate:.0%}, 95 % "
            f"interval {low:.0%} to {high:.0%}){steps}{helped}{denied}"
        )


def wilson_interval(successes: int, episodes: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % Wilson score interval of a success rate (Wilson 1927); sound at 0 and at 100 %, too."""
    if episodes == 0:
        return 0.0, 1.0
    p, n = successes / episodes, episodes
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


class _Episode:
    """An unaided episode on its way."""

    def __init__(self, env: gym.Env, seed: int, recorded: list[str], limits: Limits):
        """`recorded`: the cameras of which pictures are kept, if any; `limits`: of what the environment may give."""
        self.env, self.recorded, self.seed, self.limits = env, recorded, seed, limits
        self.total, self.steps, self.done, self.alone = 0.0, 0, False, True
        self.solved, self.denied = False, False
        self.obs, _ = env.reset(seed=seed, options={"evaluation": True})  # nobody may help
        limits.observation(Moment(f"the evaluation seeded {seed}"), "observation", self.obs)
        self.frames: list[np.ndarray] = []
        self.every = 1  # steps from one picture to the next

    def step(self, action: np.ndarray) -> None:
        if self.recorded and self.steps % self.every == 0:
            self._record()
        self.obs, reward, terminated, truncated, info = self.env.step(action)
        place = Moment(f"the evaluation seeded {self.seed}", self.steps)
        result = self.limits.outcome(place, (self.obs, reward, terminated, truncated, info))
        reward, terminated, truncated, _ = result
        self.total, self.steps, self.done = self.total + reward, self.steps + 1, terminated or truncated
        self.alone = self.alone and "intervene_action" not in info
        if self.done:
            success = succeeded(info)
            self.solved, self.denied = success and self.alone, not success and bool(info.get("classifier_verdict"))
            if self.recorded:
                self.frames += [recorded_strip(self.obs, self.recorded, border=self.solved)] * 4

    def _record(self) -> None:
        self.frames.append(recorded_strip(self.obs, self.recorded))
        if len(self.frames) > RECORDED_FRAMES:
            self.frames, self.every = self.frames[::2], 2 * self.every


def evaluate(
    agent: Any,
    env: gym.Env | list[gym.Env],
    episodes: int,
    *,
    argmax: bool = True,
    seed: int = EVAL_SEED,
    record_episodes: int = 0,
    screen: float = 0.0,
) -> Evaluation:
    """Run unaided episodes seeded seed, seed + 1, ..., with a progress bar of them and of the longest one's steps.

    Args:
        agent: anything with `sample_actions(obs, argmax)`, and `image_keys` when episodes are recorded.
        env: `info["succeed"]` says at the end whether the episode succeeded, `info["intervene_action"]` that a human
            acted, in which case the episode does not count as solved. In several alike as many episodes run side by
            side, and the agent acts in all of them at once.
        argmax: the policy's mode, else samples.
        record_episodes: keep pictures of so many first episodes (all cameras side by side).
        screen: end after SCREEN_EPISODES episodes where fewer than this share of them succeeded.
    Raises ContractError when the environment does not report success, and as `Robot` does. What ends it too early, an
        interrupt included, carries what was seen until then: `evaluation`.
    """
    envs = [guarded(e) for e in (env if isinstance(env, list) else [env])]
    grippers, commands = getattr(agent, "num_grippers", 0), {-1: 0, 0: 0, 1: 0}
    finished, limits = [], limits_of(agent, envs[0])
    try:
        with tqdm(total=episodes, desc="evaluating", unit="episode", mininterval=1, leave=False) as bar:
            while (first := len(finished)) < episodes:
                numbers = range(first, min(first + len(envs), episodes))
                recorded = [agent.image_keys if n < record_episodes else [] for n in numbers]
                group = [_Episode(e, seed + n, keys, limits) for e, n, keys in zip(envs, numbers, recorded)]
                while running := [episode for episode in group if not episode.done]:
                    for episode, action in zip(running, _actions(agent, [episode.obs for episode in running], argmax)):
                        for command in action.reshape(grippers, -1)[:, -1] if grippers else ():
                            commands[int(command)] += 1
                        episode.step(action)
                    bar.set_postfix(step=max(episode.steps for episode in group), refresh=False)
                    bar.update(sum(episode.done for episode in running))
                finished += group
                screened = sum(episode.solved for episode in finished[:SCREEN_EPISODES])
                if first < SCREEN_EPISODES <= len(finished) and screened < screen * SCREEN_EPISODES:
                    break
    except BaseException as stop:
        # of episodes side by side those that are over first are the solved ones: only whole groups count
        stop.evaluation = _summary(finished, commands if grippers else {})
        raise
    return _summary(finished, commands if grippers else {})


def _summary(finished: list[_Episode], commands: dict[int, int]) -> Evaluation:
    solved = [episode.steps for episode in finished if episode.solved]
    return Evaluation(
        len(solved),
        len(finished),
        solved,
        [episode.total for episode in finished],
        commands,
        sum(not episode.alone for episode in finished),
        sum(episode.denied for episode in finished),
        [frame for episode in finished for frame in episode.frames],
    )


def _actions(agent: Any, observations: list[dict[str, np.ndarray]], argmax: bool) -> Iterable[np.ndarray]:
    """One action for each observation, from one pass."""
    if len(observations) == 1:
        return [agent.sample_actions(observations[0], argmax=argmax)]
    batch = {key: np.stack([obs[key] for obs in observations]) for key in observations[0]}
    return agent.sample_actions(batch, argmax=argmax)


def evaluate_to_stop(
    agent: Any,
    env: gym.Env | list[gym.Env] | None,
    episodes: int,
    stop_at: float,
    screen: float = 0.0,
    run: Callable[..., Evaluation] | None = None,
) -> tuple[Evaluation, bool]:
    """An evaluation during training; one that reaches `stop_at` goes on over twice as many other episodes.

    The first ones are the same every time: among many evaluations one reaches `stop_at` on them by luck.

    `run`, if given, does what `evaluate` does, elsewhere.
    Returns: what it showed, and whether training may stop: the success rate over all of them reaches `stop_at`, too.
    """
    run = run or evaluate
    first = run(agent, env, episodes, seed=EVAL_SEED, screen=screen)
    if first.success_rate < stop_at:
        return first, False
    both = first + run(agent, env, 2 * episodes, seed=EVAL_SEED + episodes)
    return both, both.success_rate >= stop_at


def differs(result: Evaluation, episodes: int) -> str:
    """Why an evaluation during training took more or fewer than the `episodes` that it was asked for, or ""."""
    if result.episodes > episodes:
        return (
            f"; {result.episodes}, since the first {episodes} reached --stop_at: {result.episodes - episodes} others "
            "followed, and all of them count"
        )
    if result.episodes < episodes:
        return f"; {result.episodes} of {episodes}, since these were too far below --stop_at"
    return ""


def held_out_errors(agent: Any, buffer: ReplayBuffer, batch_size: int = 256) -> dict[str, float]:
    """How far the policy's mode is from the recorded actions of `buffer`; a distance, not a success rate.

    Returns: `held_out_error`, mean |difference| of the continuous entries (actions span -1..1); with grippers also
        `held_out_gripper`, the share of commands hit, and `held_out_gripper_moves`, the same over the recorded
        closings and openings alone, which are rare (left out where there are none): commands other than the one before.
    """
    errors, hits, commands, ends = [], [], [], []
    blocks = max(1, agent.num_grippers)
    for batch in buffer.in_order(batch_size):
        recorded = batch["actions"].numpy()
        chosen = agent.sample_actions(batch["observations"], argmax=True)
        recorded, chosen = (x.reshape(len(x), blocks, -1) for x in (recorded, chosen))  # (B, G, A / G)
        arm = recorded.shape[-1] - (agent.num_grippers > 0)
        errors.append(np.abs(chosen - recorded)[..., :arm].reshape(len(recorded), -1).mean(-1))
        hits.append((chosen == recorded)[..., arm:])
        commands.append(recorded[..., arm:])
        ends.append(batch["dones"].numpy() > 0)
    figures = {"held_out_error": float(np.concatenate(errors).mean())}
    hits, commands, ends = np.concatenate(hits), np.concatenate(commands), np.concatenate(ends)
    before = np.roll(commands, 1, axis=0)
    before[np.roll(ends, 1) | (np.arange(len(ends)) == 0)] = 0  # an episode's start
    moves = (commands != 0) & (commands != before)
    if hits.size:
        figures["held_out_gripper"] = float(hits.mean())
    if moves.any():
        figures["held_out_gripper_moves"] = float(hits[moves].mean())
    return figures


def pictures(obs: dict[str, Any]) -> list[str]:
    """The keys of an observation's camera frames uint8 (H, W, 3); depth and the like are left out."""
    return [k for k, x in obs.items() if np.ndim(x) == 3 and np.shape(x)[2] == 3 and np.asarray(x).dtype == np.uint8]


def camera_strip(obs: dict[str, np.ndarray], image_keys: list[str], border: bool = False) -> np.ndarray:
    """All cameras of one observation side by side, uint8 (H, W, 3); a green border marks success."""
    height = max(obs[k].shape[0] for k in image_keys)
    images = [np.pad(obs[k], ((0, height - obs[k].shape[0]), (0, 0), (0, 0))) for k in image_keys]
    strip = np.concatenate(images, axis=1)
    if border:
        strip[:3], strip[-3:], strip[:, :3], strip[:, -3:] = ((40, 200, 80),) * 4
    return strip


def recorded_strip(obs: dict[str, np.ndarray], image_keys: list[str], border: bool = False) -> np.ndarray:
    """`camera_strip` of frames shrunk by one whole number until they keep to RECORDED_SIZE."""
    from PIL import Image

    height, width = max(obs[k].shape[0] for k in image_keys), sum(obs[k].shape[1] for k in image_keys)
    factor = math.ceil(max(height / RECORDED_SIZE[0], width / RECORDED_SIZE[1]))
    if factor > 1:
        obs = {k: np.asarray(Image.fromarray(obs[k]).reduce(factor)) for k in image_keys}
    return camera_strip(obs, image_keys, border)


def save_animation(path: str | os.PathLike, frames: list[np.ndarray], fps: int = 10, scale: int | None = None) -> None:
    """Write frames uint8 (H, W, 3) as an animated GIF, each pixel `scale` wide; None: 2, of large frames 1."""
    from PIL import Image

    images = [Image.fromarray(_enlarged(f, scale)).quantize(128) for f in frames]
    with atomic_write(path) as file:
        images[0].save(file, "GIF", save_all=True, append_images=images[1:], duration=1000 // fps, loop=0)


def save_picture(path: str | os.PathLike, frame: np.ndarray, scale: int | None = None) -> None:
    """Write a frame uint8 (H, W, 3) as PNG, each pixel `scale` wide; None: 2, of large frames 1."""
    from PIL import Image

    with atomic_write(path) as file:
        Image.fromarray(_enlarged(frame, scale)).save(file, "PNG")


def _enlarged(frame: np.ndarray, scale: int | None) -> np.ndarray:
    scale = scale or (2 if frame.shape[0] * frame.shape[1] <= LARGE else 1)
    return frame.repeat(scale, 0).repeat(scale, 1)


def report_evaluation(
    agent: Any,
    env: gym.Env | list[gym.Env] | None,
    episodes: int,
    save_dir: Path | None,
    seed: int = FINAL_SEED,
    run: Callable[..., Evaluation] | None = None,
    sampled: bool = True,
) -> dict[str, Evaluation]:
    """Evaluate deterministically, then with `sampled` actions, too, and print it.

    With `save_dir` write evaluation.json and evaluation.gif.
    One that is interrupted, or ended by an error, leaves the episodes that ran until then.
    `run`, if given, does what `evaluate` does, elsewhere.
    """
    results, run = {}, run or evaluate
    try:
        for name, argmax in (("deterministic", True), ("sampled", False))[: 1 + sampled]:
            results[name] = run(agent, env, episodes, argmax=argmax, seed=seed, record_episodes=5 if argmax else 0)
            print(f"{name:>13}: {results[name]}", flush=True)
    except BaseException as stop:
        seen = getattr(stop, "evaluation", None)
        if seen is not None and seen.episodes:
            results[name] = seen
            print(f"{name:>13}, ended after {seen.episodes} of {episodes} episodes: {seen}", flush=True)
        if save_dir is not None and results:
            with uninterrupted():
                save_evaluation(results, episodes, seed, save_dir)
        raise
    if save_dir is not None:
        save_evaluation(results, episodes, seed, save_dir)
    return results


def save_evaluation(results: dict[str, Evaluation], wanted: int, seed: int, save_dir: Path) -> None:
    """Write evaluation.json, where an evaluation of fewer than the `wanted` episodes says so, and evaluation.gif."""
    figures = {
        name: {
            "successes": r.successes,
            "episodes": r.episodes,
            "seed": seed,
            "gripper_commands": r.gripper_commands,
            "wilson_95": r.interval,
            "mean_steps_to_success": float(np.mean(r.steps_to_success)) if r.steps_to_success else None,
            **({"wanted_episodes": wanted} if r.episodes < wanted else {}),
        }
        for name, r in results.items()
    }
    save_json(save_dir / "evaluation.json", figures)
    save_animation(save_dir / "evaluation.gif", results["deterministic"].frames)
    print(f"wrote {save_dir / 'evaluation.json'} and {save_dir / 'evaluation.gif'}", flush=True)
