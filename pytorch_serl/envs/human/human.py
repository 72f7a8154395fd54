"""A human beside the robot, whatever he holds in his hands: takes over, says what succeeded, pauses."""

import copy
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np


class Human(gym.Wrapper):
    """Lets a human take over, judge and pause; `keyboard.py` and `gamepad.py` beside this file know how he says so.

    A verdict ends the episode and overrules the environment's. While the human has taken over, the environment waits
    until he moves something, so that no action without intent is recorded; where he judges instead, the arm stands
    still in that last step. `info["intervene_action"]` is what was executed (float32), `info["human_verdict"]` 1 or 0
    where the human judged.

    Args:
        env: with actions of one block per arm, in a learned-gripper mode its last entry the gripper's.
        device: what the human holds.
        arms: 1 or 2.
        grippers: whether the blocks have a gripper entry.
        judge: "overrule": nothing else; "confirm": where the environment or the classifier reports success, the human
            is asked, and only his yes counts; "alone": the environment's reward and verdict are ignored; "label": his
            verdict ends nothing, `info["label"]` is what it was at last, 1 or 0.
        steer: whether taking over is possible; not in an evaluation.
        say: shows a line, who is in control for one.
    """

    yes_or_no, go_on = "yes or no", "go on"  # how the device says it, for the questions

    def __init__(
        self,
        env: gym.Env,
        device: Any,
        *,
        arms: int,
        grippers: bool,
        judge: str = "overrule",
        steer: bool = True,
        say: Callable[[str], None] = print,
    ):
        super().__init__(env)
        self.device, self.arms, self.grippers, self.judge = device, arms, grippers, judge
        self.steer, self.say = steer, say
        self.block = env.action_space.shape[0] // arms
        self.arm, self.in_control, self.verdict = 0, False, None
        self.leads, self.label, self.discard = False, False, False
        self.unsolved = 0.0  # the environment's reward of a step that it does not call a success

    def steered(self, leads: bool = False) -> "Human":
        """The same environment and device, with taking over; with `leads` he steers from each reset on, alone."""
        human = copy.copy(self)
        human.steer, human.leads = True, leads
        return human

    def wait_until_ready(self) -> None:
        """Between two episodes: the scene is set when the human says so."""
        self.say(f"set the scene; ready? {self.go_on}")
        self._forget()
        self._wait_for_go()

    def reset(self, **options):
        if self.in_control and not self.leads:
            self.say("in control: the policy")
        self.in_control, self.verdict, self.label, self.discard = self.leads, None, False, False
        if self._forget() and not self.leads:  # who records is asked anyway, between two episodes
            self._pause()
        result = self.env.reset(**options)
        if self._forget():  # what was pressed while the robot drove home was not meant for this episode either
            self._pause()
        if self.leads:  # a robot takes its time to drive home, and nobody else says that it is there
            self.say("go: you steer")
        return result

    def step(self, action):
        held, command = self.in_control, self._command()
        judged = self.verdict is not None or self.discard
        # the policy is not to move what he holds, nor what he held while he judged: his device may just have gone
        if command is None and not self.leads and (self.in_control or (held and judged)):
            command = np.zeros(self.env.action_space.shape, np.float32)
        if command is not None:
            action = command
        obs, reward, terminated, truncated, info = self.env.step(np.array(action))  # a copy: it may be changed there
        if command is not None:
            info = info | {"intervene_action": command}
        claimed = self.judge != "alone" and bool(info.get("succeed") or info.get("classifier_verdict"))
        if self.judge == "alone":
            terminated = terminated and not info.get("succeed")
            reward, info = 0.0, info | {"succeed": False}
        elif self.judge == "confirm" and claimed and self.verdict is None:
            self.say(f"success? {self.yes_or_no}")
            self._ask()
        if not claimed:
            self.unsolved = reward
        if self.judge == "label":
            self.label, self.verdict = self._label(), None
            info = info | {"label": float(self.label)}
        if self.discard:
            truncated, info = True, info | {"discard": True}
        elif self.verdict is not None:
            success, self.verdict = self.verdict, None
            terminated = success or (terminated and not claimed)  # no success: as if time had run out
            if success != claimed:  # else the environment has rewarded it
                reward = 1.0 if success else self.unsolved
            truncated = not terminated
            info = info | {"succeed": success, "human_verdict": float(success)}
        return obs, reward, terminated, truncated, info

    def _take_over(self, in_control: bool) -> None:
        self.in_control = in_control
        self.say(f"in control: {'you, ' + self._name() if in_control else 'the policy'}")

    def _change_arm(self) -> None:
        self.arm = 1 - self.arm
        self.say(f"you move the {self._name()}")

    def _name(self) -> str:
        return "arm" if self.arms == 1 else ("left arm", "right arm")[self.arm]

    def close(self):
        self.env.close()
        getattr(self.device, "close", lambda: None)()

    # ---------------------------------------------------------------- what a device adds

    def _command(self) -> np.ndarray | None:
        """The human's action for this step (A,), or None where the policy acts; sets `verdict` where he judges."""
        raise NotImplementedError

    def _ask(self) -> None:
        """Wait for the `verdict`."""
        raise NotImplementedError

    def _wait_for_go(self) -> None:
        """Wait until he wants to go on."""
        raise NotImplementedError

    def _label(self) -> bool:
        """Whether the scene shows success now, by his word."""
        return self.label if self.verdict is None else self.verdict

    def _idle(self) -> bool:
        """Whether there is nothing to do but to wait for him: he is in control and has said nothing."""
        return self.in_control and self.verdict is None and not self.discard

    def _pause(self) -> None:
        """Say so, and wait until he goes on."""
        raise NotImplementedError

    def _forget(self) -> bool:
        """What was pressed before counts for nothing, but for a pause, which has to hold the robot: whether it was."""
