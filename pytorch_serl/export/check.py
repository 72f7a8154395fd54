"""Whether an exported policy acts as the agent it came from, on recorded and on random observations, and how fast."""

import json
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pytorch_serl.agents.sac import SACAgent
from pytorch_serl.data.checks import Place, read_observation
from pytorch_serl.data.demos import SETUP_MODES, load_recording
from pytorch_serl.data.episode_files import FOLDER, episode_files, read_episode
from pytorch_serl.export.policy import Policy
from pytorch_serl.training.run import SETTINGS

TOLERANCE = 1e-5  # of continuous entries, which span -1..1
# On images unlike any of its training the agent itself is up to 5e-6 off the value in double precision
RANDOM_TOLERANCE = 5e-5
TIE = 1e-5  # gripper commands whose Q are as close as this, next to returns of at most 1, may come out either way
SINGLES, WARM_UP = 100, 5  # observations that come one at a time; the first of them do not count for the latency
BATCH = 10
SHIFT = 4  # pixels
RANDOM_SIZES = ((128, 128), (240, 320))
ROOT = Path(__file__).resolve().parents[2]
Obs = dict[str, np.ndarray]
Runner = Callable[[Obs], tuple[np.ndarray, float]]  # a batch to its actions (B, A) and the seconds that took


class ExportError(Exception):
    """The exported file does not do what the agent does."""


# ---------------------------------------------------------------- observations


def gather(agent: SACAgent, paths: list[str], run_dir: Path, count: int) -> tuple[list[Obs], str, float]:
    """`count` observations, what they are in words, and how far a continuous entry may be off on them.

    Args:
        paths: demo files. Without any, the steps that training recorded in `run_dir` serve, the last episodes first,
            else the demos that its settings name, as far as they can be read. Where these are too few, they come
            again, shifted by a few pixels; where there is nothing, images and states are random.
    Raises ValueError for demo files or steps that cannot be read.
    """
    rng = np.random.default_rng(0)
    if paths or episode_files(run_dir):
        steps = _demo_steps(agent, paths) if paths else _run_steps(agent, run_dir)
        source, found = ", ".join(paths) or str(run_dir / FOLDER), _first(steps, count)
    else:
        paths = _demos_of(run_dir)
        source, found = ", ".join(paths), []
        try:
            found = _first(_demo_steps(agent, paths), count)
        except (ValueError, OSError) as error:  # nobody named them here; they may have been recorded anew since
            print(f"the demos of the run do not serve for the check: {error}")
    if not found:
        return _random(agent, count, rng), "random", RANDOM_TOLERANCE
    again = [_shifted(found[i % len(found)], agent.image_keys, rng) for i in range(count - len(found))]
    words = f"{len(found):,} recorded in {source}" + f", {len(again):,} of them shifted" * bool(again)
    return found + again, words, TOLERANCE


def _first(steps: Iterator[Obs], count: int) -> list[Obs]:
    return [obs for obs, _ in zip(steps, range(count))]


def _demos_of(run_dir: Path) -> list[str]:
    """The demo files that the run was trained on, as far as they are still there."""
    try:
        paths = json.loads((run_dir / SETTINGS).read_text())["demo_paths"]
        return [path for path in paths if Path(path).exists()]
    except (OSError, ValueError, LookupError, TypeError):
        return []


def _demo_steps(agent: SACAgent, paths: list[str]) -> Iterator[Obs]:
    mode = (SETUP_MODES[0], SETUP_MODES[1], SETUP_MODES[3])[agent.num_grippers]  # only its grippers matter here
    for path in paths:
        for index, transition in enumerate(load_recording(path, agent.image_keys, mode)[0]):
            yield _checked(agent, Place(path, index), transition)


def _run_steps(agent: SACAgent, run_dir: Path) -> Iterator[Obs]:
    for path in reversed(episode_files(run_dir).values()):
        for index, transition in enumerate(read_episode(path)):
            yield _checked(agent, Place(str(path), index), transition)


def _checked(agent: SACAgent, place: Place, transition: dict[str, Any]) -> Obs:
    obs = read_observation(place, "observations", transition, agent.image_keys, bool(agent.state_dim))
    if agent.state_dim and len(obs["state"]) != agent.state_dim:
        wanted = f"{agent.state_dim} entries, as the agent has"
        raise place.error("state", f"{len(obs['state'])} entries", wanted, "give the demos that it was trained on")
    return obs


def _shifted(obs: Obs, image_keys: list[str], rng: np.random.Generator) -> Obs:
    """All cameras shifted by up to SHIFT pixels, edges repeated, as the crops in training do it."""
    down, right = rng.integers(0, 2 * SHIFT + 1, 2)
    result = dict(obs)
    for key in image_keys:
        height, width = obs[key].shape[:2]
        padded = np.pad(obs[key], ((SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="edge")
        result[key] = padded[down : down + height, right : right + width]
    return result


def _random(agent: SACAgent, count: int, rng: np.random.Generator) -> list[Obs]:
    """Images of 8 x 8 blocks of random colours, in two sizes, and normal states."""
    observations = []
    for i in range(count):
        height, width = RANDOM_SIZES[i % len(RANDOM_SIZES)]
        rows, columns = np.arange(height) * 8 // height, np.arange(width) * 8 // width
        obs = {key: rng.integers(0, 256, (8, 8, 3), np.uint8)[rows][:, columns] for key in agent.image_keys}
        if agent.state_dim:
            obs["state"] = rng.standard_normal(agent.state_dim).astype(np.float32)
        observations.append(obs)
    return observations


def _sizes(obs: Obs) -> list[tuple[int, ...]]:
    return [value.shape for value in obs.values()]


def batches(observations: list[Obs]) -> list[Obs]:
    """The first SINGLES as batches of one, as on a robot; then those of equal frame sizes together, BATCH at most."""
    groups = [[obs] for obs in observations[:SINGLES]]
    for _, alike in groupby(sorted(observations[SINGLES:], key=_sizes), key=_sizes):
        alike = list(alike)
        groups += [alike[i : i + BATCH] for i in range(0, len(alike), BATCH)]
    return [{key: np.stack([obs[key] for obs in group]) for key in group[0]} for group in groups]


# ---------------------------------------------------------------- who acts


def run_agent(agent: SACAgent) -> Runner:
    return _timed(lambda obs: agent.sample_actions(obs, argmax=True))


def run_program(path: Path) -> Runner:
    """The program as a robot with PyTorch loads it."""
    program = torch.export.load(path).module()
    return _timed(lambda obs: program({key: torch.from_numpy(value) for key, value in obs.items()}).numpy())


def _timed(act: Callable[[Obs], np.ndarray]) -> Runner:
    def run(obs: Obs) -> tuple[np.ndarray, float]:
        start = time.perf_counter()
        action = act(obs)
        return action, time.perf_counter() - start

    return run


class OnnxProcess:
    """The ONNX file in a process that has onnxruntime and no PyTorch; use it as a Runner, in a `with` block."""

    def __init__(self, path: Path):
        command = [
            sys.executable,
            "-m",
            "pytorch_serl.export.onnx_run",
            str(path.resolve()),
            str(torch.get_num_threads()),
        ]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    def __call__(self, obs: Obs) -> tuple[np.ndarray, float]:
        try:
            pickle.dump(obs, self.process.stdin)
            self.process.stdin.flush()
            return pickle.load(self.process.stdout)
        except (OSError, EOFError) as error:  # it has ended
            lines = self.process.stderr.read().decode(errors="replace").strip().splitlines()
            raise ExportError(f"onnxruntime could not run the file: {(lines or [error])[-1]}") from None

    def __enter__(self) -> "OnnxProcess":
        return self

    def __exit__(self, *_) -> None:
        with suppress(BrokenPipeError):
            self.process.communicate()


# ---------------------------------------------------------------- the comparison


@dataclass
class Comparison:
    """What one file did beside the agent, over all observations.

    largest: largest difference of a continuous entry, fine up to `tolerance`. grippers: observations with another
    gripper command; tied: those of them whose two best commands the agent values within TIE of each other.
    milliseconds: of single observations.
    """

    tolerance: float
    largest: float = 0.0
    grippers: int = 0
    tied: int = 0
    milliseconds: list[float] = field(default_factory=list)

    @property
    def same(self) -> bool:
        return self.largest <= self.tolerance and self.grippers == self.tied

    def add(self, action: np.ndarray, wanted: np.ndarray, is_gripper: np.ndarray, near_tie: np.ndarray) -> None:
        """Count a batch: both actions (B, A); is_gripper (A,) and near_tie (B,) bool."""
        difference = np.abs(action - wanted)
        largest = difference[:, ~is_gripper].max()
        self.largest = max(self.largest, float(largest)) if np.isfinite(largest) else float("inf")
        other = (action != wanted)[:, is_gripper].any(1)  # (B,)
        self.grippers += int(other.sum())
        self.tied += int((other & near_tie).sum())


def gripper_gaps(agent: SACAgent, policy: Policy, obs: Obs) -> np.ndarray:
    """By how much Q of the best gripper command is above that of the next, (B,); infinite without a gripper."""
    count = len(next(iter(obs.values())))
    if not agent.num_grippers:
        return np.full(count, np.inf)
    encoding = policy.encode({key: torch.from_numpy(value) for key, value in obs.items()})
    best = policy.grasp_critic(encoding).topk(2).values  # (B, 2)
    return (best[:, 0] - best[:, 1]).numpy()


def compare(
    agent: SACAgent, runners: dict[str, Runner], observations: list[Obs], tolerance: float, progress: Any = iter
) -> tuple[dict[str, Comparison], np.ndarray]:
    """Run agent and files on every observation; the time of the single ones is kept.

    Args:
        runners: by name; `agent` is added. tolerance: of a continuous entry. progress: wraps the batches (tqdm).
    Returns: a Comparison by name, and `gripper_gaps` of every observation (N,).
    Raises FloatingPointError where the agent's own action is NaN, ExportError where a file cannot be run.
    """
    runners, policy = {"agent": run_agent(agent)} | runners, Policy(agent)
    results, gaps = {name: Comparison(tolerance) for name in runners}, []
    block = agent.action_dim // max(1, agent.num_grippers) + 1  # an arm's entries, its gripper last
    is_gripper = np.arange(agent.action_dim + agent.num_grippers) % block == block - 1
    for obs in progress(batches(observations)):
        gaps.append(gripper_gaps(agent, policy, obs))
        wanted = None
        for name, run in runners.items():
            action, seconds = run(obs)
            wanted = action if wanted is None else wanted  # the agent's
            results[name].add(action, wanted, is_gripper, gaps[-1] < TIE)
            results[name].milliseconds += [1000 * seconds] if len(action) == 1 else []
    return results, np.concatenate(gaps)


def report(results: dict[str, Comparison], gaps: np.ndarray, source: str) -> str:
    """Several lines: differences from the agent, milliseconds of single observations, near-ties of the gripper."""
    lines = [
        f"checked on {len(gaps):,} observations ({source}), threads each: {torch.get_num_threads()}",
        f"  {'':12} largest difference   other gripper command   ms p50   p95",
    ]
    for name, result in results.items():
        times = result.milliseconds[WARM_UP:] or result.milliseconds or [float("nan")]
        figures = (f"{result.largest:18.1e}", f"{result.grippers:23}") if name != "agent" else (" " * 18, " " * 23)
        lines.append(f"  {name:12} {' '.join(figures)} {np.median(times):8.1f} {np.percentile(times, 95):5.1f}")
    if np.isfinite(gaps).all():
        lines.append(
            f"  the gripper's two best values are {gaps.min():.1e} apart or more; near-ties (below {TIE:g}), in which "
            f"another command is no error: {int((gaps < TIE).sum())}"
        )
    return "\n".join(lines)
