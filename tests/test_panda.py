"""The simulated arm: gym-hil behind our environment contract, its expert, its demos."""

import os
import pickle
import subprocess
import sys
import warnings
from importlib.util import find_spec

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import record_demos
import train_hybrid
from pytorch_serl.data.demos import read_demos
from pytorch_serl.envs.human.scripted import ScriptedHuman
from pytorch_serl.envs.simulators import panda
from pytorch_serl.training import build
from tests.runs import LEARNED, ROOT, make_demos

HERE = find_spec("gym_hil") is not None
simulated = pytest.mark.skipif(not HERE, reason="gym-hil is not installed: pip install -r requirements/sim.txt")


@pytest.fixture(scope="module")
def env():
    env = panda.PandaPickCubeEnv()
    yield env
    env.close()


@pytest.fixture
def blind(env, monkeypatch):
    """The environment without pictures, which take four fifths of its time."""
    black = np.zeros((128, 128, 3), np.uint8)
    monkeypatch.setattr(env, "_picture", lambda key: black)
    return env


def command(move=(0, 0, 0), turn=(0, 0, 0), gripper=0):
    return np.array([*move, *turn, gripper], np.float32)


def steps(env, count, **kwargs):
    """The same command so many times; returns the last step's result."""
    for _ in range(count):
        result = env.step(command(**kwargs))
    return result


def run(env, act):
    """One episode from where `env` was reset to; returns its last info, steps, interventions and penalties' sum."""
    count, interventions, penalty, over = 0, 0, 0.0, False
    while not over:
        _, reward, terminated, truncated, info = env.step(act())
        over = terminated or truncated
        count, penalty = count + 1, penalty + info["grasp_penalty"]
        interventions += "intervene_action" in info
        assert reward == float(info["succeed"]) and (terminated or not reward) and not (terminated and truncated)
    return info["succeed"], count, interventions, penalty


# Without the simulator


def test_without_the_simulator_the_error_says_what_to_install(monkeypatch, tmp_path, capsys):
    for name in ("mujoco", "gym_hil", "gym_hil.envs"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install -r requirements/sim.txt"):
        panda.PandaPickCubeEnv()
    for name in ("panda", "pytorch_serl.envs:pytorch_serl/PandaPickCube-v0"):
        with pytest.raises(ValueError, match=rf"--env {name} cannot be made.*pip install -r requirements/sim.txt"):
            build.make_env(name, LEARNED)
    with pytest.raises(SystemExit) as error:
        record_demos.main(["--env", "panda", "--output_dir", str(tmp_path)])
    assert error.value.code == 2 and "requirements/sim.txt" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_simulator_is_imported_only_where_it_is_used():
    code = (
        "import sys, train_hybrid, pytorch_serl.envs.simulators.panda, record_demos\n"
        "assert not {'mujoco', 'gym_hil'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@simulated
def test_the_recorder_refuses_what_the_task_does_not_have(tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        record_demos.main(["--env", "panda", "--output_dir", str(tmp_path), "--setup_mode", "dual-arm-fixed-gripper"])
    assert error.value.code == 2 and "is single-arm-learned-gripper" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_scripts_know_its_expert(tmp_path):
    options = ["--demo_paths", str(tmp_path), "--image_keys", "image", "--setup_mode", LEARNED, "--env", "panda"]
    assert train_hybrid.parse_args([*options, "--human", "scripted"]).human == "scripted"


# The environment


@simulated
def test_check_env_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = gym.make("pytorch_serl.envs:pytorch_serl/PandaPickCube-v0", image_size=32, render_mode="rgb_array")
        check_env(made.unwrapped)
        made.reset(seed=0)
        assert made.render().shape == (32, 64, 3)
    made.close()


@simulated
def test_same_seed_same_episode(env):
    def trace(env, seed):
        expert = env.scripted_expert(noise=0.3, seed=seed)
        out = [env.reset(seed=seed)] + [env.step(expert.act()) for _ in range(8)]
        return pickle.dumps([[*step[0].values(), *map(str, step[1:])] for step in out])

    other = panda.PandaPickCubeEnv()
    assert trace(env, 1) == trace(other, 1) == trace(env, 1)  # in another environment, and after an episode
    assert trace(env, 2) != trace(env, 1)
    other.close()


@simulated
def test_the_cube_is_randomised_over_its_range_and_by_our_generator_only(blind):
    np.random.seed(0)
    before = np.random.get_state()[1].tobytes()
    places = np.array([(blind.reset(seed=seed), blind.privileged_state()["object"])[1] for seed in range(60)])
    blind.step(command())
    assert np.random.get_state()[1].tobytes() == before
    low, high = panda.CUBE_RANGE
    assert (places[:, :2] >= low).all() and (places[:, :2] <= high).all()
    assert (np.ptp(places[:, :2], axis=0) > 0.85 * (high - low)).all()
    assert places[:, 2] == pytest.approx(panda.CUBE_HALF, abs=1e-6)
    blind.reset(seed=3)
    first = blind.privileged_state()["object"]
    blind.reset()  # goes on from the seed
    assert np.abs(blind.privileged_state()["object"] - first).max() > 0.001


@simulated
def test_the_cube_is_in_the_pictures_and_not_in_the_state(env):
    state = env.reset(seed=0, options={"object_xy": (0.4, 0.0)})[0]["state"]
    away = env.reset(seed=0, options={"object_xy": (-1.5, 0.0)})[0]
    (low_x, low_y), (high_x, high_y) = panda.CUBE_RANGE
    hidden = 0
    for x in np.linspace(low_x, high_x, 3):
        for y in np.linspace(low_y, high_y, 3):
            obs, _ = env.reset(seed=0, options={"object_xy": (x, y)})
            assert np.array_equal(obs["state"], state)
            seen = {
                key: int((np.abs(obs[key].astype(int) - away[key])[..., 0] > 60).sum()) for key in env.image_keys
            }  # red: the table is blue
            assert seen["wrist"] > 100, (x, y, seen)
            hidden += seen["image"] < 100
    assert hidden <= 1  # from the front the hand hides the place behind it


@simulated
def test_frames_are_new_arrays(env):
    first, _ = env.reset(seed=0)
    copy = first["image"].copy()
    steps(env, 3, move=(0, 1, 0))
    assert np.array_equal(first["image"], copy)


@simulated
@pytest.mark.parametrize("axis, sign", [(0, -1), (0, 1), (1, -1), (1, 1), (2, 1)])
def test_a_translation_moves_the_tool_by_its_metres(blind, axis, sign):
    blind.reset(seed=0, options={"object_xy": (0.3, 0.15)})
    start = blind.privileged_state()["tip"]
    move = np.zeros(3)
    move[axis] = 0.5 * sign
    steps(blind, 4, move=move)
    steps(blind, 6)  # the arm comes after the set point
    wanted = 4 * panda.STEP * move
    assert blind.privileged_state()["tip"] - start == pytest.approx(wanted, abs=0.0015)


@simulated
def test_rotations_are_ignored_and_actions_clipped(blind):
    def state(**kwargs):
        blind.reset(seed=0)
        return steps(blind, 3, **kwargs)[0]["state"]

    assert np.array_equal(state(move=(0, 1, 0), turn=(1, -1, 1)), state(move=(0, 3, 0)))


@simulated
def test_state_tells_pose_speed_lag_and_fingers(blind):
    state = blind.reset(seed=0)[0]["state"]
    truth = blind.privileged_state()
    low, high = panda.WORKSPACE
    assert (low + (state[:3] + 1) / 2 * (high - low)) == pytest.approx(truth["tip"], abs=1e-6)
    assert state[3:] == pytest.approx([0] * 6 + [1, 1], abs=1e-3)
    state, truth = steps(blind, 6, move=(0, 1, 0), gripper=-1)[0]["state"], blind.privileged_state()
    assert state[3:6] == pytest.approx(truth["velocity"] / 0.25, abs=1e-6) and 0.7 < state[4] < 1
    assert state[6:9] == pytest.approx((truth["target"] - truth["tip"]) / 0.025, abs=1e-5) and 0.7 < state[7] < 1
    assert state[9] == pytest.approx(0, abs=0.03) and state[10] == 0
    assert blind.observation_space["state"].contains(state)


@simulated
def test_gripper_conventions_and_penalty(blind, monkeypatch):
    from gym_hil.wrappers.hil_wrappers import GripperPenaltyWrapper

    theirs = []

    class Watched(GripperPenaltyWrapper):
        def step(self, action):
            result = super().step(action)
            theirs.append(result[4]["discrete_penalty"])
            return result

    monkeypatch.setattr(blind, "_sim", Watched(blind._sim, penalty=-0.02))
    blind.reset(seed=0, options={"object_xy": (0.3, 0.15)})

    def step(gripper):
        *_, info = blind.step(command(gripper=gripper))
        assert info["grasp_penalty"] == theirs[-1]
        return info["grasp_penalty"], blind.privileged_state()["open"]

    def angle(count):
        steps(blind, count)
        return blind.privileged_state()["angle"]

    assert step(1) == (0.0, True)  # open already
    assert step(-0.4) == (0.0, True)  # rounds to hold
    assert angle(2) < 0.05
    assert step(-0.6) == (-0.02, False)
    assert angle(8) > 0.75  # hold keeps closing
    assert step(-1) == (0.0, False)
    assert angle(1) > 0.75
    assert step(1) == (-0.02, True)
    assert angle(8) < 0.05
    blind.step(command(gripper=-1))
    blind.reset(seed=0)
    assert blind.privileged_state()["open"] and blind.privileged_state()["angle"] == 0


@simulated
def test_time_limit_truncates(blind, monkeypatch):
    monkeypatch.setattr(blind, "max_episode_steps", 3)
    blind.reset(seed=0)
    flags = [blind.step(command())[2:4] for _ in range(3)]
    assert flags == [(False, False), (False, False), (False, True)]


@simulated
def test_a_cube_out_of_range_ends_the_episode_without_success(blind):
    blind.reset(seed=0, options={"object_xy": (0.56, 0.0)})
    _, reward, terminated, truncated, info = blind.step(command())
    assert (reward, terminated, truncated, info["succeed"]) == (0.0, True, False, False)


# Rendering


@simulated
@pytest.mark.parametrize("key", panda.PandaPickCubeEnv.image_keys)
@pytest.mark.parametrize("fault", ["blank", "frozen"])
def test_bad_pictures_are_found_at_the_start(key, fault, monkeypatch):
    picture = panda.PandaPickCubeEnv._picture
    bad = np.full((32, 32, 3), 7, np.uint8)
    if fault == "frozen":
        bad[:16] = 200
    monkeypatch.setattr(panda.PandaPickCubeEnv, "_picture", lambda env, k: bad if k == key else picture(env, k))
    with pytest.raises(RuntimeError, match=rf"camera '{key}' is {fault}.*libegl1 .*MUJOCO_GL=egl"):
        panda.PandaPickCubeEnv(image_size=32)


@simulated
def test_without_opengl_the_error_says_what_to_install():
    code = "from pytorch_serl.training.build import make_env; make_env('panda', '')"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"MUJOCO_GL": "none-such"},
    )
    assert "--env panda cannot be made" in result.stderr and "apt install libegl1" in result.stderr, result.stderr


@simulated
def test_it_runs_without_settings_beside_torch_and_leaves_quietly():
    code = (  # the optimizer loads PyTorch's compiler, which has an LLVM of its own, as has Mesa
        "import torch, gymnasium as gym\n"
        "env = gym.make('pytorch_serl.envs:pytorch_serl/PandaPickCube-v0', image_size=32)\n"
        "print(sorted(env.reset(seed=0)[0]))\n"
        "torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])\n"
    )
    unset = {k: v for k, v in os.environ.items() if k != "MUJOCO_GL"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False, env=unset
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "['image', 'state', 'wrist']\n", "")


@simulated
def test_close_frees_the_renderer_once():
    env = panda.PandaPickCubeEnv(image_size=32)
    env.close()
    env.close()
    with pytest.raises(RuntimeError):
        env.reset()


# Expert and human


@simulated
def test_expert_succeeds(env):
    expert = env.scripted_expert(seed=0)
    for seed in range(2_000_000, 2_000_004):
        env.reset(seed=seed)
        solved, count, _, penalty = run(env, expert.act)
        assert solved and count < 30 and penalty == panda.GRASP_PENALTY


@simulated
@pytest.mark.slow
def test_expert_succeeds_in_a_hundred_episodes(blind):
    expert = blind.scripted_expert(seed=0)
    results = []
    for seed in range(2_000_000, 2_000_100):
        blind.reset(seed=seed)
        results.append(run(blind, expert.act))
    solved, count, _, penalty = np.mean(results, axis=0)
    print(f"{solved:.0%} solved, {count:.1f} steps, penalties {penalty:.3f}")
    assert solved >= 0.95 and count < 20 and penalty == pytest.approx(panda.GRASP_PENALTY, abs=0.004)


@simulated
def test_expert_actions_suit_a_tanh_policy(blind):
    calm, expert, actions = blind.scripted_expert(noise=0), blind.scripted_expert(seed=0), []
    for seed in range(6):
        blind.reset(seed=seed)
        run(blind, lambda: (actions.append([calm.act(), expert.act()]), actions[-1][1])[1])
    calm, noisy = np.array(actions).transpose(1, 0, 2)
    assert np.abs(calm[:, :6]).max() == pytest.approx(0.8) and not calm[:, 3:6].any()
    assert expert.act().dtype == np.float32 and np.abs(noisy).max() <= 1 and (np.abs(noisy[:, :6]) == 1).mean() < 0.03
    assert set(np.unique(noisy[:, 6])) == {-1, 0}


@simulated
def test_expert_recovers_from_anything(blind):
    expert, rng = blind.scripted_expert(seed=0), np.random.default_rng(0)
    solved = lost = 0
    for seed in range(24):
        near = (0.49, 0.0) + rng.uniform(-0.03, 0.03, 2)  # below the hand, so that it lands on it, knocks it, closes
        blind.reset(seed=seed, options={"object_xy": near} if seed % 2 else None)
        drift = rng.uniform(-1, 1, 7) * ([0.3, 0.3, 1, 1, 1, 1, 1] if seed % 2 else 1)
        drift[2] = -abs(drift[2])
        results = [blind.step(np.clip(drift + 0.5 * rng.standard_normal(7), -1, 1)) for _ in range(12)]
        if any(result[2] for result in results):
            lost += 1  # solved, or the cube was pushed away
            continue
        blind._steps = 0
        solved += run(blind, expert.act)[0]
    assert lost <= 3 and solved >= 24 - lost - 1


@simulated
def test_human_helps_the_useless_and_leaves_the_expert_alone(blind):
    env = ScriptedHuman(blind)
    for seed in range(4):
        env.reset(seed=seed)
        solved, count, interventions, _ = run(env, command)
        assert solved and interventions > count / 3
        expert = blind.scripted_expert(noise=0.05, seed=0)
        env.reset(seed=seed)
        solved, _, interventions, _ = run(env, expert.act)
        assert solved and interventions == 0


@simulated
def test_the_scripts_make_it_with_its_human(tmp_path):
    made = build.make_env("panda", LEARNED)
    demos = make_demos(tmp_path / "demos.pkl", action_dim=7, gripper=True, keys=("image", "wrist"), size=128)
    demos = read_demos([demos], ["image", "wrist"], LEARNED)
    with pytest.raises(ValueError, match=r"'state' is \(11,\), in the demos \(3,\)"):
        build.check_env(made, demos, "panda")
    env = build.add_human(made, "scripted", seed=0)
    env.reset(seed=0)
    infos = [env.step(command())[4] for _ in range(7)]
    assert [("intervene_action" in info) for info in infos] == [False] * 4 + [True] * 3
    made.close()


# Demos


@simulated
def test_recorded_demos_are_read_and_fit(env, tmp_path, capsys):
    options = ["--num_demos", "2", "--num_classifier_episodes", "1"]
    record_demos.main(["--env", "panda", "--output_dir", str(tmp_path), *options])
    assert {"demos.pkl", "success", "failure"} <= {path.name for path in tmp_path.iterdir()}
    assert "2 episodes" in capsys.readouterr().out
    demos = read_demos([tmp_path / "demos.pkl"], env.image_keys, LEARNED)
    build.check_env(env, demos, "panda")
    assert sum(t["rewards"] for t in demos.transitions) == 2
    assert all((t["masks"] == 0) == t["dones"] == (t["rewards"] == 1) for t in demos.transitions)
    assert build.q_range(demos) == (0.0, 1.0)
    assert sum(t["grasp_penalty"] for t in demos.transitions) == pytest.approx(-0.04)
