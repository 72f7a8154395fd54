"""The acting half of train_hybrid.py: episodes in the environment, and what came of them."""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from pytorch_serl.agents.sac import SACAgent
from pytorch_serl.data.episode_files import EpisodeWriter
from pytorch_serl.training import build
from pytorch_serl.training.evaluate import EVAL_SEED, camera_strip, pictures, save_picture
from pytorch_serl.training.limits import Moment, limits_of
from pytorch_serl.training.pace import Pace
from pytorch_serl.training.rewards import succeeded
from pytorch_serl.training.robot import guarded, robots_in
from pytorch_serl.training.run import CALLED_SUCCESS
from pytorch_serl.utils.files import write_pickle

CALLED_SCENES = 10_000_000  # of frames that a classifier called success: no recording has these numbers
RECENT = 20  # training episodes in the success rates on the progress bar
UNKNOWN = -1.0  # whether the classifier was right, where nobody else judged
HELPED = 10  # of them with help, so many say whether help leads to success
IDLE_CORRECTIONS = 5  # a human gives so many actions of 0 in one episode only if his device reports nothing


class Actor:
    """Runs training episodes.

    Args:
        agent: chooses the actions.
        env: with the human, if there is one.
        seed: training episode i is seeded seed * 100,000 + i, never as an evaluation.
        random_steps: environment steps with random actions at the start.
        sparse: refuse rewards that the critics' clipped targets exclude (`check_sparse`).
        writer: puts every step on disk as it comes.
        views: stored crops of each frame that a human's action led to; of the others there is only the frame itself.
        control_hz: steps per second to keep; None leaves that to the environment.
        max_steps: the episode in which the run makes its last step ends with it, as by a time limit.

    `ends_at`, the same for an earlier step, may be set before each episode.
    """

    has_more = False  # of an episode: its next step is still to be done

    def __init__(
        self,
        agent: SACAgent,
        env: gym.Env,
        *,
        seed: int,
        random_steps: int,
        sparse: bool,
        writer: EpisodeWriter,
        views: int = 1,
        control_hz: float | None = None,
        max_steps: int | None = None,
    ):
        self.agent, self.env, self.seed, self.writer = agent, guarded(env), seed, writer
        self.random_steps, self.limits = random_steps, limits_of(agent, env, sparse)
        self.views, self.crops = views, torch.Generator(agent.device)  # its own: the learner may be elsewhere
        self.ends_at = max_steps or math.inf
        (self.robot,) = robots_in(self.env)
        self.robot.control_hz = control_hz or self.robot.control_hz
        self.episode, self.pace = 0, Pace(self.robot.control_hz)
        # the last training episodes' (solved, helped steps, steps, least closings and openings of a gripper, whether
        # all corrections were 0, whether the classifier's success was right)
        self.recent: list[list[float]] = []

    def start_episode(self) -> None:
        """Reset the environment."""
        seed = (self.seed * 100_000 + self.episode) % EVAL_SEED
        obs, _ = self.env.reset(seed=seed)
        self.crops.manual_seed(seed)
        self.pace.restart()
        self.robot.pace = self.pace  # measured from here on; an evaluation's steps are not
        self.pace.observed()
        self.limits.observation(Moment(f"episode {self.episode}"), "observation", obs)
        self.writer.start(self.episode, obs)
        self.episode += 1
        self.helped, self.transitions, self.corrections = 0, [], []
        self.commands = np.zeros((2, max(1, self.agent.num_grippers)))  # the policy's closings and openings by gripper
        self.stored = build.to_storage(self.agent, obs, views=1)

    def act(self, step: int) -> tuple[dict[str, Any], bool]:
        """Choose and execute one action, a sample of the averaged policy; `step` counts environment steps.

        Returns: the transition as a buffer takes it, and whether a human acted instead.
        Raises ContractError for what the contract with the environment excludes.
        """
        if step < self.random_steps:
            action = self._random_action()
        else:
            action = self.agent.sample_actions(build.acting_view(self.agent, self.stored), averaged=True)
        self.pace.acted()
        next_obs, reward, terminated, truncated, info = self.env.step(action)
        self.pace.observed()
        cut = step + 1 >= self.ends_at and not (terminated or truncated)
        step, verdicts = self.limits.step(self._moment(), action, (next_obs, reward, terminated, truncated, info))
        step["dones"] = step["dones"] or cut
        corrected = "intervene_action" in info
        self.writer.add(step | {"corrected": corrected} | verdicts, next_obs)
        next_stored = build.to_storage(self.agent, next_obs, self.views if corrected else 1, self.crops)
        transition = step | {"observations": self.stored, "next_observations": next_stored}
        if corrected:
            self.helped += 1
            self.pace.disregard()
            self.corrections.append(transition["actions"])
        elif self.agent.num_grippers:
            commands = action.reshape(self.agent.num_grippers, -1)[:, -1]
            self.commands += commands == np.array([[-1], [1]])
        self.in_control = "human" if corrected else "policy"
        self.transitions.append(transition)
        self.stored = next_stored
        if transition["dones"]:
            self.solved = bool(info.get("succeed")) if cut else succeeded(info)
            self.classifier_right = UNKNOWN
            if verdicts.get("classifier_verdict"):
                self.classifier_right = verdicts.get("human_verdict", verdicts.get("env_verdict", UNKNOWN))
                self._show_called_success(next_obs, verdicts["success_probability"])
            self.recent = [*self.recent, self._summary()][-RECENT:]
        return transition, corrected

    def _moment(self) -> Moment:
        return Moment(f"episode {self.episode - 1}", len(self.transitions))

    def _summary(self) -> list[float]:
        idle = len(self.corrections) >= IDLE_CORRECTIONS and not np.any(self.corrections)
        commands = self.commands.T.tolist()  # closings and openings of each gripper
        figures = [float(self.solved), self.helped, len(self.transitions), *commands[0], float(idle)]
        return [*figures, self.classifier_right, *commands[-1]]

    def _show_called_success(self, obs: dict[str, Any], probability: float) -> None:
        """Keep the frames that the classifier called success, to look at and to train on; the name ends in its
        probability."""
        cameras = pictures(obs)
        path = self.writer.folder.parent / CALLED_SUCCESS / f"{self.episode - 1:06d}_{probability:.3f}.png"
        save_picture(path, camera_strip(obs, cameras))
        scene = CALLED_SCENES + self.episode - 1
        write_pickle(path.with_suffix(".pkl"), [{"observations": {k: obs[k] for k in cameras}, "scene": scene}])

    def _random_action(self) -> np.ndarray:
        action = np.random.uniform(-1, 1, self.env.action_space.shape).astype(np.float32)
        grippers = self.agent.num_grippers
        if grippers:
            action.reshape(grippers, -1)[:, -1] = np.random.randint(-1, 2, grippers)
        return action

    def figures(self) -> dict[str, float]:
        """See `recent_figures` and `Pace.figures`; with them whether a camera's frames stay the same or show
        nothing."""
        cameras = {"alarm_cameras": 1.0} if self.robot.watch.raised else {}
        return recent_figures(self.recent) | cameras | self.pace.figures()

    def close(self) -> None:
        """No more training episodes; here nobody has to be told."""


def recent_figures(recent: list[list[float]]) -> dict[str, float]:
    """Over the last training episodes, as `Actor.recent` has them: success with and without help, the helped shares of
    steps and episodes, whether all corrections of one of them were 0; once HELPED were helped, the share
    of these that succeeded; once there are RECENT episodes, the policy's own gripper commands (of two grippers the
    least); and the share of the classifier's successes that environment or human denied."""
    if not recent:
        return {}
    rows = [[*row, *row[3:5]][:9] for row in recent]  # checkpoints of before have an episode's least, once
    solved, helped, length, closings, openings, idle, right, *others = np.array(rows).T
    least = [min(sum(counts) for counts in pair) for pair in zip((closings, openings), others)]
    watched = dict(zip(("gripper_closes", "gripper_opens"), least)) if len(solved) == RECENT else {}
    if (helped > 0).sum() >= HELPED:
        watched["helped_success"] = solved[helped > 0].mean()
    if (known := right[right != UNKNOWN]).size:
        watched["false_successes"] = 1 - known.mean()
    return watched | {
        "idle_corrections": idle.max(),
        "train_success": solved.mean(),
        "train_success_unaided": (solved * (helped == 0)).mean(),
        "helped_steps": helped.sum() / length.sum(),
        "helped_episodes": (helped > 0).mean(),
    }
