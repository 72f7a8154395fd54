"""What a running environment may give: the limits of demo files, before a step is recorded, sent or learned from."""

import gzip
import pickle

import numpy as np
import pytest

import train_hybrid
import train_offline
from pytorch_serl.agents.sac import SACHybridAgent
from pytorch_serl.data.episode_files import episode_files, read_episode
from pytorch_serl.networks.classifier import RewardClassifier
from pytorch_serl.networks.resnet import ResNet10
from pytorch_serl.training.actor import Actor
from pytorch_serl.training.evaluate import evaluate
from pytorch_serl.training.limits import limits_of
from pytorch_serl.training.rewards import ClassifierReward, ContractError, executed_action
from tests import test_offline
from tests.runs import content
from tests.test_hybrid import Still, stopped_by, training, words
from tests.tiny_env import LENGTH, TinyEnv

pytestmark = pytest.mark.usefixtures("empty_home")
NAN, INF = float("nan"), float("inf")


class Wrong(TinyEnv):
    """Gives `value` as `what` at its third step."""

    what, value, at = "reward", NAN, 3

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        if self.steps == self.at:
            if self.what in obs:
                obs[self.what] = self.value
            elif self.what == "reward":
                reward = self.value
            elif self.what == "terminated":
                terminated = self.value
            elif self.what == "truncated":
                truncated = self.value
            else:
                info[self.what] = self.value
        return obs, reward, terminated, truncated, info


WRONG = {
    "nan reward": ("reward", NAN, "reward: got float nan, wanted a finite number"),
    "infinite reward": ("reward", np.float32(INF), "reward: got"),
    "reward beyond float32": ("reward", 1e300, "reward: got float 1e+300, wanted a finite number"),
    "two rewards": ("reward", np.zeros(2), "reward: got float64 array of shape (2,), wanted one number"),
    "no reward": ("reward", None, "reward: got None"),
    "half a termination": ("terminated", 0.5, "terminated: got 0.5, wanted 0 or 1"),
    "truncated in words": ("truncated", "no", "truncated: got"),
    "positive penalty": ("grasp_penalty", 0.02, "grasp_penalty: got 0.02, wanted 0 or negative"),
    "nan penalty": ("grasp_penalty", NAN, "grasp_penalty: got float nan"),
    "infinite penalty": ("grasp_penalty", -INF, "grasp_penalty: got float -inf"),
    "success of a half": ("succeed", 0.5, "info['succeed']: got 0.5, wanted 0 or 1"),
    "success in words": ("succeed", "yes", "info['succeed']: got"),
    "nan state": ("state", np.array([0, NAN, 0], np.float32), "observation['state'][1]: got nan"),
    "infinite state": ("state", np.array([0, 0, INF]), "observation['state'][2]: got inf"),
    "a state entry short": ("state", np.zeros(2, np.float32), "observation['state']: got shape (2,), wanted (3,)"),
    "a state in words": ("state", np.array(["a", "b", "c"]), "observation['state']: got"),
    "no state": ("state", None, "observation['state']: got"),
    "a float image": ("image", np.zeros((32, 32, 3), np.float32), "observation['image']: got float32"),
    "another image size": ("image", np.zeros((16, 32, 3), np.uint8), "shape (16, 32, 3), wanted (32, 32, 3)"),
    "a stack of images": ("image", np.zeros((1, 32, 32, 3), np.uint8), "shape (1, 32, 32, 3), wanted (32, 32, 3)"),
    "a grey image": ("image", np.zeros((32, 32), np.uint8), "observation['image']: got shape (32, 32)"),
    "a correction beyond 1": ("intervene_action", [0.5] * 5 + [1.2], "info['intervene_action'] is"),
    "a nan correction": ("intervene_action", [0.5] * 5 + [NAN], "info['intervene_action'] is"),
    "a short correction": ("intervene_action", [0.5] * 5, "info['intervene_action'] is"),
    "a correction of words": ("intervene_action", ["up"] * 6, "info['intervene_action'] is"),
    "a ragged correction": ("intervene_action", [[0.5], [0.5, 0.5]], "info['intervene_action'] is"),
}


@pytest.fixture(scope="module")
def run(demos, tmp_path_factory):
    return training(demos, tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("name", WRONG)
def test_a_step_beyond_the_limits_is_neither_recorded_nor_sent(name, run, monkeypatch):
    what, value, message = WRONG[name]
    monkeypatch.setattr(Wrong, "what", what), monkeypatch.setattr(Wrong, "value", value)
    actor = run.actor
    monkeypatch.setattr(actor, "env", Wrong())
    actor.start_episode()
    actor.act(0), actor.act(1)
    with pytest.raises(ContractError) as error:
        actor.act(2)
    text = str(error.value)
    assert message in text and f"episode {actor.episode - 1}, step 2: " in text and "\n" not in text, text
    assert len(read_episode(actor.writer.path)) == 2 == len(actor.transitions)


def test_the_observation_at_the_reset_too(run, monkeypatch):
    class Reset(TinyEnv):
        def reset(self, **options):
            obs, info = super().reset(**options)
            return obs | {"state": np.full(3, NAN)}, info

    monkeypatch.setattr(run.actor, "env", Reset())
    with pytest.raises(ContractError, match=r"at its reset: observation\['state'\]\[0\]: got nan"):
        run.actor.start_episode()
    agent = type("Agent", (Still,), {"state_dim": 3})()
    with pytest.raises(ContractError, match=r"the evaluation seeded .*, at its reset: "):
        evaluate(agent, Reset(), 1)


@pytest.mark.parametrize("name", ["nan reward", "success of a half", "nan state"])
def test_evaluations_have_the_same_limits(name, monkeypatch):
    what, value, message = WRONG[name]
    if name == "another image size":  # the environment's guard sees it first
        message = "camera 'image' gave uint8 (16, 32, 3)"
    monkeypatch.setattr(Wrong, "what", what), monkeypatch.setattr(Wrong, "value", value)
    agent = type("Agent", (Still,), {"state_dim": 3})()
    with pytest.raises(ContractError) as error:
        evaluate(agent, Wrong(), 1)
    assert message in str(error.value) and "the evaluation seeded" in str(error.value)


def test_an_evaluation_names_the_camera_and_the_step(monkeypatch):
    what, value, _ = WRONG["another image size"]
    monkeypatch.setattr(Wrong, "what", what), monkeypatch.setattr(Wrong, "value", value)
    agent = type("Agent", (Still,), {"state_dim": 3})()
    message = r"step 2 of the episode: camera 'image' gave uint8 \(16, 32, 3\); its space says uint8 \(32, 32, 3\)"
    with pytest.raises(ContractError, match=message):
        evaluate(agent, Wrong(), 1)


def test_what_files_admit_is_admitted(run, monkeypatch):
    """Numbers of any kind; states in float64 and lists; none of it changes what is stored."""
    monkeypatch.setattr(Wrong, "what", "grasp_penalty"), monkeypatch.setattr(Wrong, "value", np.array([-0.5]))

    class Odd(Wrong):
        def step(self, action):
            obs, reward, terminated, truncated, info = super().step(action)
            obs["state"] = obs["state"].tolist()
            info |= {"succeed": np.bool_(info["succeed"])}
            return obs, np.float64(reward), np.array(terminated), int(truncated), info

    monkeypatch.setattr(run.actor, "env", Odd())
    run.actor.start_episode()
    transitions = [run.actor.act(step)[0] for step in range(LENGTH)]
    assert [t["grasp_penalty"] for t in transitions] == [0.0, 0.0, -0.5, 0.0, 0.0, 0.0]
    assert type(transitions[-1]["dones"]) is bool and transitions[-1]["dones"]


@pytest.mark.parametrize("name", ["a float image", "a state entry short", "no state"])
def test_a_classifier_that_judges_refuses_too(name, monkeypatch):
    what, value, _ = WRONG[name]
    monkeypatch.setattr(Wrong, "what", what), monkeypatch.setattr(Wrong, "value", value)
    classifier = RewardClassifier(["image"], device="cpu")
    classifier.threshold = 0.0
    env = ClassifierReward(Wrong(), classifier, conditions=[(2, "<", 100.0)])
    env.reset(seed=0)
    env.step(np.zeros(6)), env.step(np.zeros(6))
    with pytest.raises(ContractError, match="the environment's observation cannot be judged"):
        env.step(np.zeros(6))


def test_gripper_entries_of_a_correction():
    """As in files: what a space mouse draws near a command is the command; what is near none is refused."""
    action, human = np.zeros(14, np.float32), np.full(14, 0.5)
    human[[6, 13]] = 0.95, -0.9
    taken = executed_action({"intervene_action": human}, action, (6, 13))
    assert taken[[6, 13]].tolist() == [1.0, -1.0] and (np.delete(taken, [6, 13]) == 0.5).all()
    for entry in (6, 13):
        wrong = human.copy()
        wrong[entry] = 0.3
        with pytest.raises(
            ContractError, match=rf"\['intervene_action'\]\[{entry}\] is 0\.3; wanted a gripper command"
        ):
            executed_action({"intervene_action": wrong}, action, (6, 13))


def test_the_entries_that_are_grippers():
    shared = {"state_dim": 3, "backbone": ResNet10(), "device": "cpu"}
    assert limits_of(SACHybridAgent(["image"], 6, 3, **shared), TinyEnv()).grippers == (6,)
    limits = limits_of(SACHybridAgent(["image"], 12, 9, **shared), TinyEnv())
    assert limits.grippers == (6, 13) and limits.action_dim == 14 and limits.image_shapes == {"image": (32, 32, 3)}


@pytest.mark.parametrize("learner", ["inline", pytest.param("process", marks=pytest.mark.slow)])
def test_the_run_saves_and_can_be_resumed(learner, demos, tmp_path, capsys, monkeypatch):
    changes = {"learner": learner, "eval_every": 100, "stop_at": 1.0, "human": "env"}

    def make(args, demos):
        env = Wrong()
        env.at = LENGTH + 1  # never in the evaluation
        return env

    def start(actor):
        begin(actor)
        actor.env.unwrapped.at = 3 if actor.episode == 2 and wrong else LENGTH + 1

    begin, wrong = Actor.start_episode, True
    monkeypatch.setattr(train_hybrid, "make_env", make), monkeypatch.setattr(Actor, "start_episode", start)
    error = stopped_by(demos, tmp_path, capsys, **changes)
    assert "the environment in episode 1, step 2: reward: got float nan" in error
    assert content(tmp_path)["step"] == LENGTH + 2
    wrong = False
    train_hybrid.main(words(demos, tmp_path, resume=True, max_steps=2 * LENGTH, **changes))
    assert content(tmp_path)["step"] == 2 * LENGTH + 2


def test_an_offline_run_saves_too(demos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train_offline.build, "make_env", lambda *_: Wrong())
    with pytest.raises(SystemExit) as stop:
        train_offline.main(test_offline.words(demos, tmp_path / "out", env="Tiny-v0", eval_episodes=1, eval_every=2))
    printed = capsys.readouterr()
    assert stop.value.code == 2 and content(tmp_path / "out")["step"] == 2
    assert "stopped by an error: update 2 is saved in" in printed.out
    assert "error: the environment in the evaluation seeded 1000000000, step 2: reward: got float nan" in printed.err


# ---------------------------------------------------------------- what older runs recorded


def record(folder, number, steps, change):
    """An episode file as an older run wrote it; `change(index, record)` spoils records."""
    obs = {"image": np.zeros((32, 32, 3), np.uint8), "state": np.zeros(3, np.float32)}
    records = [{"observations": obs}]
    for index in range(steps):
        last = index == steps - 1
        step = {"actions": np.full(6, 0.1 * index, np.float32), "rewards": 0.0, "masks": 1.0, "dones": last}
        step |= {"grasp_penalty": 0.0, "corrected": False, "succeed": 0.0}
        state = np.full(3, index, np.float32)
        records.append(step | {"next_observations": {"image": obs["image"] + index, "state": state}})
    for index, each in enumerate(records):
        change(index - 1, each)
    path = folder / "episodes" / f"{number:06d}.pkl.gz"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(gzip.compress(pickle.dumps(record)) for record in records))
    return path


SPOILED = {
    "reward": (lambda step: step.update(rewards=NAN), [2]),
    "penalty": (lambda step: step.update(grasp_penalty=0.5), [2]),
    "action": (lambda step: step.update(actions=np.full(6, 1.5, np.float32)), [2]),
    "short action": (lambda step: step.update(actions=np.zeros(5, np.float32)), [2]),
    "state": (lambda step: step["next_observations"].update(state=np.full(3, NAN)), [2, 3]),
    "short state": (lambda step: step["next_observations"].update(state=np.zeros(2)), [2, 3]),
    "image": (lambda step: step["next_observations"].update(image=np.zeros((8, 8, 3), np.uint8)), [2, 3]),
}


@pytest.mark.parametrize("name", SPOILED)
def test_recovery_leaves_out_what_is_beyond_the_limits(name, run, tmp_path, monkeypatch, capsys):
    spoil, dropped = SPOILED[name]
    path = record(tmp_path, 0, 6, lambda index, step: spoil(step) if index == 2 else None)
    monkeypatch.setattr(run.learner, "save_dir", tmp_path), monkeypatch.setattr(run.actor, "episode", 0)
    added = []
    monkeypatch.setattr(run.learner, "add", lambda transition, to_demos: added.append(transition))
    assert run.recover(0) == 6 - len(dropped)
    kept = [index for index in range(6) if index not in dropped]
    assert [round(float(10 * t["actions"][0])) for t in added] == kept
    assert [t["observations"]["state"][0] for t in added] == [max(0, index - 1) for index in kept]
    said = capsys.readouterr()
    assert f"{len(dropped)} of the 6 steps recorded in {path} are left out: {path}: transition 2: " in (
        said.out + said.err
    )
    assert added[-1]["dones"] and not added[-1]["observations"]["image"].dtype == np.uint8


def test_an_episode_that_ends_in_a_wrong_step_ends_before_it(run, tmp_path, monkeypatch):
    record(tmp_path, 0, 3, lambda index, step: step.update(rewards=INF) if index == 2 else None)
    record(tmp_path, 1, 2, lambda index, step: step.update(rewards=INF) if index >= 0 else None)
    monkeypatch.setattr(run.learner, "save_dir", tmp_path), monkeypatch.setattr(run.actor, "episode", 0)
    added = []
    monkeypatch.setattr(run.learner, "add", lambda transition, to_demos: added.append(transition))
    assert run.recover(0) == 2 and [t["dones"] for t in added] == [False, True]
    assert [t["masks"] for t in added] == [1.0, 1.0] and run.actor.episode == 2 and len(episode_files(tmp_path)) == 2
