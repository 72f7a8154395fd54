"""The built-in task, its scripted expert and human."""

import pickle
import time
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from pytorch_serl.envs.human.scripted import ScriptedHuman
from pytorch_serl.envs.tabletop import task
from pytorch_serl.envs.tabletop.expert import TabletopExpert

MODES = task.SETUP_MODES
LEARNED = [mode for mode in MODES if mode.endswith("learned-gripper")]
SINGLE = [mode for mode in MODES if mode.startswith("single")]
EVERY_MODE = pytest.mark.parametrize("mode", MODES)


def make(mode, pictures=True, **kwargs):
    """A small environment; without pictures for the tests that only count successes."""
    env = task.TabletopEnv(mode, image_size=16, **kwargs)
    if not pictures:
        env._observe = lambda: {"state": env._state()}
    return env


def run(env, act, seed):
    """One episode of `act(env)`; returns its last info, steps, interventions and the sum of penalties."""
    env.reset(seed=seed)
    steps, interventions, penalty, over = 0, 0, 0.0, False
    while not over:
        _, _, terminated, truncated, info = env.step(act(env))
        over = terminated or truncated
        steps += 1
        interventions += "intervene_action" in info
        penalty += info["grasp_penalty"]
    return info["succeed"], steps, interventions, penalty


def command(env, arm=0, move=(0, 0, 0), turn=(0, 0, 0), gripper=0):
    """An action that moves one arm, in units of action, and leaves the other alone."""
    action = np.zeros((env.num_arms, env.action_space.shape[0] // env.num_arms), np.float32)
    action[arm, :3], action[arm, 3:6] = move, turn
    if env.learned_gripper:
        action[arm, 6] = gripper
    return action.ravel()


def put_tool(env, arm=0, offset=(0, 0), z=0.017, rpy=(0, 0, 0)):
    """Places the tool beside the arm's object, offset in m."""
    env._tip[arm] = [*(env._object[arm, :2] + offset), z]
    env._rpy[arm] = rpy


# The environment


@EVERY_MODE
def test_check_env_without_a_warning(mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make("pytorch_serl.envs:pytorch_serl/Tabletop-v0", setup_mode=mode, render_mode="rgb_array")
        check_env(env.unwrapped)


@EVERY_MODE
def test_spaces(mode):
    env = task.TabletopEnv(mode)
    arms, block = (2 if mode.startswith("dual") else 1), (7 if mode in LEARNED else 6)
    assert env.action_space.shape == (arms * block,)
    cameras = ["image", "wrist"] if arms == 1 else ["image", "wrist_left", "wrist_right"]
    assert env.image_keys == cameras
    obs, info = env.reset(seed=0)
    assert set(obs) == {*cameras, "state"} and all(obs[key].shape == (128, 128, 3) for key in cameras)
    assert obs["state"].shape == (arms * (block + (mode in LEARNED)),) and obs["state"].dtype == np.float32
    assert info == {"succeed": False, "grasp_penalty": 0.0}


def test_unknown_mode_is_named():
    with pytest.raises(ValueError, match=r"one-arm.*single-arm-fixed-gripper"):
        task.TabletopEnv("one-arm")


@EVERY_MODE
def test_same_seed_same_everything(mode):
    def trace(seed):
        env = make(mode)
        expert = TabletopExpert(env, noise=0.3, seed=seed)
        out = [env.reset(seed=seed)]
        for _ in range(12):
            out.append(env.step(expert.act()))
        return pickle.dumps([[*step[0].values(), *map(str, step[1:])] for step in out])

    assert trace(1) == trace(1)
    assert trace(1) != trace(2)


@EVERY_MODE
def test_states_stay_inside_the_space(mode):
    env = make(mode)
    env.reset(seed=0)
    env.action_space.seed(0)
    for direction in (1, -1):
        for _ in range(25):
            action = np.sign(env.action_space.sample() + 0.7 * direction)
            obs, *_ = env.step(action)
            assert env.observation_space.contains(obs)


@EVERY_MODE
def test_object_is_in_the_pictures_and_not_in_the_state(mode):
    env = task.TabletopEnv(mode)
    near = env.centres + np.array([0.03, 0.02])
    a, _ = env.reset(seed=5, options={"object_xy": near})
    b, _ = env.reset(seed=5, options={"object_xy": near + 0.004})
    assert np.array_equal(a["state"], b["state"])
    for key in env.image_keys:  # 4 mm can be seen by every camera
        assert np.abs(a[key].astype(int) - b[key]).max() > 30, key


@EVERY_MODE
def test_height_and_tilt_are_in_the_pictures(mode):
    env = task.TabletopEnv(mode)
    before, _ = env.reset(seed=5)
    for kwargs in ({"move": (0, 0, 0.3)}, {"turn": (0, 0.5, 0)}, {"turn": (0, 0, 0.5)}):
        after, *_ = env.step(command(env, **kwargs))
        for key in env.image_keys[:2]:
            assert np.abs(before[key].astype(int) - after[key]).max() > 20, (key, kwargs)
        before = after


def test_light_varies_mildly_between_episodes():
    env = task.TabletopEnv()
    means = [env.reset(seed=seed)[0]["image"].mean((0, 1)) for seed in range(20)]
    spread = np.ptp(means, axis=0) / np.mean(means, axis=0)
    assert (spread > 0.02).all() and (spread < 0.2).all()


def test_pictures_are_cheap():
    env = task.TabletopEnv("single-arm-learned-gripper")
    env.reset(seed=0)
    best = min(_timed(env._observe) for _ in range(50))
    assert best < 0.004, f"two cameras took {1e3 * best:.2f} ms"


def _timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def test_render_shows_all_cameras():
    env = task.TabletopEnv("dual-arm-fixed-gripper", image_size=32, render_mode="rgb_array")
    env.reset(seed=0)
    assert env.render().shape == (32, 96, 3)


# Physics


@pytest.mark.parametrize("mode", LEARNED)
def test_gripper_conventions_and_penalty(mode):
    env = make(mode)
    env.reset(seed=0)
    last = env.num_arms - 1
    put_tool(env, last)
    opening, held = 8 * last + 6, 8 * last + 7

    def step(**kwargs):
        obs, _, _, _, info = env.step(command(env, arm=last, **kwargs))
        return obs["state"][opening], obs["state"][held], info["grasp_penalty"]

    assert step() == (1, 0, 0.0)
    assert step(gripper=1) == (1, 0, 0.0)  # open already: no change, no penalty
    assert step(gripper=-0.4) == (1, 0, 0.0)  # rounds to hold
    assert step(gripper=-0.6) == (0, 1, -0.02)
    assert step(gripper=-1, move=(0, 0, 1)) == (0, 1, 0.0)
    assert env.privileged_state()["object"][last, 2] > task.CUBE_HALF  # the cube goes up with the tool
    assert step(gripper=1) == (1, 0, -0.02)
    assert env.privileged_state()["object"][last, 2] == task.CUBE_HALF  # and drops to the table
    if env.num_arms == 2:
        both = command(env, arm=0, gripper=-1) + command(env, arm=1, gripper=-1)
        assert env.step(both)[4]["grasp_penalty"] == pytest.approx(-0.04)


@pytest.mark.parametrize(
    "kwargs, grasped",
    [
        ({}, True),
        ({"offset": (0.0095, -0.0095)}, True),
        ({"offset": (0.0105, 0)}, False),
        ({"offset": (0, -0.0105)}, False),
        ({"z": 0.026}, False),
        ({"rpy": (0, 0, 0.29)}, True),
        ({"rpy": (0.31, 0, 0)}, False),
        ({"rpy": (0, -0.31, 0)}, False),
        ({"rpy": (0, 0, 0.31)}, False),
    ],
)
def test_what_a_grasp_needs(kwargs, grasped):
    env = make("single-arm-learned-gripper")
    env.reset(seed=0)
    put_tool(env, **kwargs)
    obs, *_ = env.step(command(env, gripper=-1))
    assert obs["state"][7] == grasped
    for _ in range(4):
        *_, terminated, _, info = env.step(command(env, move=(0, 0, 1)))
    assert terminated == info["succeed"] == grasped


def test_fingers_land_on_the_cube():
    env = make("single-arm-learned-gripper")
    env.reset(seed=0)
    put_tool(env, offset=(0.02, 0), z=0.06)
    for _ in range(3):
        env.step(command(env, move=(0, 0, -1)))
    assert env.privileged_state()["tip"][0, 2] == 2 * task.CUBE_HALF


@pytest.mark.parametrize(
    "kwargs, enters",
    [({"offset": (0.0045, 0)}, True), ({"offset": (0.0055, 0)}, False), ({"rpy": (0.31, 0, 0)}, False)],
)
def test_a_peg_enters_only_the_hole(kwargs, enters):
    env = make("single-arm-fixed-gripper")
    env.reset(seed=0)
    put_tool(env, z=0.01, **kwargs)
    for _ in range(3):
        _, reward, terminated, _, info = env.step(command(env, move=(0, 0, -1)))
    assert (reward == 1.0) == terminated == info["succeed"] == enters
    assert enters or env.privileged_state()["tip"][0, 2] == 0
    assert info["grasp_penalty"] == 0.0


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode.startswith("dual")])
def test_two_arms_must_succeed_together(mode):
    env = make(mode)
    env.reset(seed=0)
    for arm in range(2):
        put_tool(env, arm, z=0.017 if env.learned_gripper else -0.001)
    up = 1 if env.learned_gripper else -1
    succeeded = []
    for arm in range(2):
        if env.learned_gripper:
            env.step(command(env, arm, gripper=-1))
        for _ in range(4):
            succeeded.append(env.step(command(env, arm, move=(0, 0, up)))[4]["succeed"])
    assert not any(succeeded[:4]) and succeeded[-1]


def test_truncation_is_not_termination():
    env = make("single-arm-fixed-gripper", max_episode_steps=3)
    env.reset(seed=0)
    flags = [env.step(command(env))[2:4] for _ in range(3)]
    assert flags == [(False, False), (False, False), (False, True)]


# How hard it is


@EVERY_MODE
def test_random_policy_fails(mode):
    env = make(mode, pictures=False)
    env.action_space.seed(0)
    assert sum(run(env, lambda e: e.action_space.sample(), seed)[0] for seed in range(200)) < 4


@EVERY_MODE
def test_expert_succeeds(mode):
    env = make(mode, pictures=False)
    expert = TabletopExpert(env, seed=0)
    results = [run(env, lambda _: expert.act(), seed) for seed in range(100)]
    assert sum(r[0] for r in results) >= 98
    assert np.mean([r[1] for r in results]) < 20
    expected = task.GRASP_PENALTY * env.num_arms if env.learned_gripper else 0.0
    assert np.mean([r[3] for r in results]) == pytest.approx(expected, abs=0.002)  # closes once per arm


@EVERY_MODE
def test_expert_actions_suit_a_tanh_policy(mode):
    env = make(mode, pictures=False)
    expert, actions = TabletopExpert(env, seed=0), []
    for seed in range(20):
        run(env, lambda _: actions.append(expert.act()) or actions[-1], seed)
    blocks = np.reshape(actions, (len(actions), env.num_arms, -1))
    assert actions[0].dtype == np.float32 and np.abs(blocks).max() <= 1
    assert (np.abs(blocks[..., :6]) == 1).mean() < 0.02
    if env.learned_gripper:
        assert set(np.unique(blocks[..., 6])) <= {-1, 0, 1}


@EVERY_MODE
def test_expert_recovers_from_anything(mode):
    env = make(mode, pictures=False)
    expert, rng = TabletopExpert(env, seed=0), np.random.default_rng(0)
    solved = 0
    for seed in range(40):
        env.reset(seed=seed)
        drift = rng.uniform(-1, 1, env.action_space.shape)
        drift[2] = -1
        if seed % 2:  # over the object, so that it lands on it or holds it
            put_tool(env, offset=rng.uniform(-0.03, 0.03, 2) * (seed % 4 - 1), z=0.05)
        for _ in range(15):
            env.step(np.clip(drift + 0.5 * rng.standard_normal(drift.shape), -1, 1))
        env._steps = 0
        for _ in range(50):
            *_, terminated, truncated, _ = env.step(expert.act())
            if terminated or truncated:
                break
        solved += terminated
    assert solved >= 39


def sweep(env, guesses):
    """The best search without eyes: try one guessed place after the other, lift when the fingers feel a cube.

    Uses the arm's own pose and its gripper's reading only, as a policy that ignores the pictures would.
    """
    hover, bottom = task.SLOW_ZONE + 0.001, 0.018 if env.learned_gripper else task.HOLE_BOTTOM

    def act(move, gripper=0):
        turn = -env._rpy[0] / task.ROTATION_STEP
        return np.clip(command(env, move=np.array(move) / task.TRANSLATION_STEP, turn=turn, gripper=gripper), -1, 1)

    for guess in guesses:
        while env._tip[0, 2] < task.SLOW_ZONE:
            yield act([0, 0, hover - env._tip[0, 2]])
        arrived = False
        while not arrived:  # sideways at full speed, and down in the same step where the way is short
            way = guess - env._tip[0, :2]
            arrived = np.abs(way).max() <= task.TRANSLATION_STEP
            yield act([*way, -task.TRANSLATION_STEP if arrived else hover - env._tip[0, 2]])
        last = np.inf
        while env._tip[0, 2] < last and env._tip[0, 2] > bottom + 0.004:
            last = env._tip[0, 2]
            yield act([0, 0, bottom - last])
        if env.learned_gripper:
            yield act([0, 0, 0], gripper=-1)
            while env._held[0]:
                yield act([0, 0, 1])
            yield act([0, 0, 0], gripper=1)
    while True:
        yield act([0, 0, 0])


@pytest.mark.parametrize("mode", SINGLE)
@pytest.mark.parametrize("search", ["centre", "nearest first"])
def test_blind_policy_fails(mode, search):
    env = make(mode, pictures=False)
    axis = np.arange(-0.11, 0.111, 0.022)
    grid = [np.array([x, y]) for i, x in enumerate(axis) for y in axis[:: 1 if i % 2 else -1]]
    solved, episodes = 0, 300
    for seed in range(episodes):
        env.reset(seed=seed)
        if search == "centre":
            guesses = [np.zeros(2)]
        else:
            guesses = sorted(grid, key=lambda g: np.abs(g - env._tip[0, :2]).max())
        for action in sweep(env, guesses):
            *_, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                break
        solved += terminated
    assert solved / episodes < 0.05


def test_the_sweep_would_succeed_if_it_could_see():
    for mode in SINGLE:  # so that the test above cannot pass because the search itself is broken
        env = make(mode, pictures=False)
        for seed in range(20):
            env.reset(seed=seed)
            for action in sweep(env, [env._object[0, :2].copy()]):
                *_, terminated, truncated, _ = env.step(action)
                if terminated or truncated:
                    break
            assert terminated, (mode, seed)


# The scripted human


@EVERY_MODE
def test_human_helps_the_useless_and_leaves_the_expert_alone(mode):
    env = ScriptedHuman(make(mode, pictures=False))
    idle = np.zeros(env.action_space.shape, np.float32)
    results = np.array([run(env, lambda _: idle, seed)[:3] for seed in range(40)])
    assert results[:, 0].mean() >= 0.95
    assert results[:, 2].sum() / results[:, 1].sum() > 0.5
    expert = TabletopExpert(env, noise=0.05, seed=0)
    results = np.array([run(env, lambda _: expert.act(), seed)[:3] for seed in range(40)])
    assert results[:, 0].all() and results[:, 2].sum() == 0


def test_human_reports_the_action_that_was_executed():
    env = ScriptedHuman(make("single-arm-learned-gripper", pictures=False))
    executed = []
    inner = env.env.step
    env.env.step = lambda action: executed.append(action) or inner(action)
    env.reset(seed=0)
    seen = 0
    for _ in range(15):
        mine = np.full(env.action_space.shape, 0.01, np.float32)
        info = env.step(mine)[4]
        theirs = info.get("intervene_action")
        seen += theirs is not None
        assert np.array_equal(executed[-1], mine if theirs is None else theirs)
        assert theirs is None or (theirs.dtype == np.float32 and env.action_space.contains(theirs))
    assert seen > 3


def test_human_is_seeded_and_may_look_away():
    def interventions(attention, seed=3):
        env = ScriptedHuman(make("single-arm-fixed-gripper", pictures=False), attention=attention)
        env.reset(seed=seed)
        infos = [env.step(np.zeros(6, np.float32))[4] for _ in range(20)]
        return [info.get("intervene_action", np.zeros(0)).tolist() for info in infos]

    assert interventions(1.0) == interventions(1.0)
    assert interventions(1.0) != interventions(1.0, seed=4)
    assert not any(interventions(0.0))
