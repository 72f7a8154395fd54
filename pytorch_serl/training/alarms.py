"""What looks wrong in a run's figures, one line each, and what to do where a number is none."""

import math
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from pytorch_serl.training.evaluate import Evaluation
from pytorch_serl.training.run import NAN_BATCH
from pytorch_serl.utils.files import save_checkpoint

Q_SLACK = 0.1  # Q fluctuates: by this share of the range of returns it may exceed the largest
TEMPERATURES = 1e-3, 10.0
ENTROPY_DISTANCE = 1.0  # nats per continuous dimension of the action
SATURATED = 0.5  # share of sampled action entries beyond +-0.99
FALSE_SUCCESSES = 0.1  # share of the classifier's successes that environment or human may deny
HELPED_SUCCESS = 0.5  # share of the helped episodes that should succeed
SAMPLED = "sampled"
SETTLED = 2000  # steps (or updates) after which the entropy should have come near its target


class Alarms:
    """Says what is wrong when it becomes so, and again only when it was right in between.

    Args:
        max_return: the largest return that the rewards allow.
        target_entropy: in nats.
        action_dim: continuous dimensions.
        commands: gripper commands that the demos show, out of -1 (close) and 1 (open).
        min_return: the smallest; with costs alone, -1 a step, the largest is 0 and says nothing of their size.
    """

    def __init__(
        self, max_return: float, target_entropy: float, action_dim: int, commands: set[int], min_return: float = 0.0
    ):
        self.max_return, self.commands = max_return, commands
        self.highest_q = max_return + Q_SLACK * max(max_return - min_return, max_return, -min_return)
        self.target_entropy, self.action_dim = target_entropy, action_dim
        self.raised: set[str] = set()

    def check(self, step: int, figures: dict[str, float]) -> dict[str, float]:
        """Print a line for every alarm that is new at `step`; returns `alarm_<name>`: 1 for each that is on, to log."""
        wrong = self._wrong(step, figures)
        for name in wrong.keys() - self.raised:
            tqdm.write(f"ALARM at step {step:,}: {wrong[name]}")
        self.raised = wrong.keys() | (self.raised & {SAMPLED})  # that one is judged at evaluations
        return {f"alarm_{name}": 1.0 for name in wrong}

    def check_sampled(self, step: int, mode: Evaluation, sampled: Evaluation) -> dict[str, float]:
        """As `check`, of one policy's evaluations: the alarm says that its samples, which act, are surely worse."""
        if mode.interval[0] <= sampled.interval[1]:
            self.raised.discard(SAMPLED)
            return {}
        if SAMPLED not in self.raised:
            tqdm.write(
                f"ALARM at step {step:,}: the policy's mode solves {mode.success_rate:.0%}, its samples, which act in "
                f"training, {sampled.success_rate:.0%}: that is more exploration than the task bears (--clone_std)"
            )
        self.raised.add(SAMPLED)
        return {f"alarm_{SAMPLED}": 1.0}

    def _wrong(self, step: int, figures: dict[str, float]) -> dict[str, str]:
        wrong, low, high = {}, *TEMPERATURES
        q, temperature = figures.get("q_max", -math.inf), figures.get("temperature", low)
        entropy, saturation = figures.get("entropy", self.target_entropy), figures.get("saturation", 0.0)
        if q > self.highest_q:
            wrong["q"] = (
                f"q_max is {q:.2f}, no return can be above {self.max_return:.2f}: the critics overestimate; check "
                "rewards, and masks at time limits"
            )
        if not low <= temperature <= high:
            wrong["temperature"] = f"the temperature is {temperature:.2g}, outside {low:g} to {high:g}"
        learned = "temperature_loss" in figures  # while cloning says how much is explored, it is not
        if learned and step >= SETTLED and abs(entropy - self.target_entropy) > ENTROPY_DISTANCE * self.action_dim:
            wrong["entropy"] = f"the entropy is {entropy:.1f}, its target {self.target_entropy:.1f}"
        if saturation > SATURATED:
            wrong["saturation"] = f"{saturation:.0%} of the sampled action entries are beyond 0.99 of their range"
        for command, name in ((-1, "closes"), (1, "opens")):
            if command in self.commands and figures.get(f"gripper_{name}", 1) == 0:
                wrong[name] = f"in the last episodes the policy never {name} a gripper, as the demos do"
        if figures.get("idle_corrections", 0) > 0:
            wrong["corrections"] = (
                "the human's actions of a whole episode are 0 in every entry: does the device report them?"
            )
        if figures.get("helped_success", 1.0) < HELPED_SUCCESS:
            wrong["help"] = (
                f"only {figures['helped_success']:.0%} of the episodes with help were solved: what does not lead to "
                "success teaches little; can the human reach the goal from where he takes over, and in time (the "
                "episode's limit, --patience)?"
            )
        if figures.get("false_successes", 0.0) > FALSE_SUCCESSES:
            wrong["classifier"] = (
                f"{figures['false_successes']:.0%} of what the classifier called success was none: look at the "
                "pictures in called_success/, train it on the frames beside them, or raise --success_frames; if they "
                "show success, and no sensor says so, leave 'succeed' out of the environment's info"
            )
        return wrong


def check_numbers(info: dict[str, Any], batches: list[dict[str, Any]], save_dir: Path, place: str) -> None:
    """Raise FloatingPointError for a figure that is NaN or infinite, with the batches that led to it saved first."""
    values = torch.stack([torch.as_tensor(value).float() for value in info.values()])
    if torch.isfinite(values).all():  # waits for the device once
        return
    wrong = {name: float(value) for name, value in info.items() if not math.isfinite(value)}
    save_checkpoint(save_dir / NAN_BATCH, {"place": place, "figures": wrong, "batches": batches})
    raise FloatingPointError(
        f"{place}: {wrong}; the batch is in {save_dir / NAN_BATCH}, the last checkpoint is from before; look for odd "
        "values in it, or try a lower --lr"
    )
