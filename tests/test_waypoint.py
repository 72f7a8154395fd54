"""The waypoint branch: what it reads, how it is fitted, what of it is stored, saved and sent."""

import json
import re

import numpy as np
import pytest
import torch

import train_offline
from pytorch_serl.agents.sac import SACAgent, SACHybridAgent
from pytorch_serl.data.demos import Demos, read_demos
from pytorch_serl.data.replay_buffer import ReplayBuffer
from pytorch_serl.data.waypoints import waypoints
from pytorch_serl.export.policy import Policy
from pytorch_serl.hil_serl.load import load_hil_serl_agent
from pytorch_serl.networks.resnet import ResNet10
from pytorch_serl.networks.waypoint import Waypoint, keypoints, ridge
from pytorch_serl.scaling.parameters import acting_modules, pack, unpack
from pytorch_serl.training import build
from tests.runs import FIXED, command, make_demos, record

LEARNED = "single-arm-learned-gripper"


def make_agent(cameras=("a", "b"), seed=0, **settings):
    torch.manual_seed(seed)
    return SACAgent(cameras, 6, device="cpu", **{"waypoint": True, "state_dim": 3} | settings)


def fitted(agent, seed=0):
    """The agent with a branch that reads something."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((30, 6)) @ rng.standard_normal((6, agent.encoder.waypoint.weight.shape[1]))
    places = (inputs[:, :3] + inputs[:, -3:])[:, None].repeat(2 if agent.num_grippers else 1, 1)
    agent.fit_waypoint(inputs, places, np.ones(places.shape[:2], bool), np.arange(30) // 3)
    return agent


def frames(agent, seed=0, size=48):
    rng = np.random.default_rng(seed)
    obs = {k: rng.integers(0, 256, (size, size, 3), np.uint8) for k in agent.image_keys}
    return obs | {"state": rng.standard_normal(3, dtype=np.float32)}


# ---------------------------------------------------------------- what it reads


def test_the_first_command_is_a_change_where_every_step_says_how_the_gripper_is_to_be():
    commands = np.array([[1, 1, -1, -1], [1, 1, 1, -1]])
    for recorded, firsts in (
        (commands, (2, 3)),
        (np.where(commands == 1, 0, commands), (2, 3)),
        (0 * commands, (3, 3)),
    ):
        transitions = [
            {"actions": np.array([0.5] * 6 + [command], np.float32), "next_observations": {"state": np.full(2, row)}}
            for episode in recorded
            for row, command in enumerate(episode)
        ]
        demos = Demos(transitions, np.arange(8) // 4, [], {}, 2, 7, "single-arm-learned-gripper")
        places, ahead = waypoints(demos)
        assert places[:, 0, 0].tolist() == [firsts[0]] * 4 + [firsts[1]] * 4 and (places[:, 1] == 3).all()
        assert ahead[:, 0].reshape(2, 4).sum(1).tolist() == [first + 1 for first in firsts]


def test_a_keypoint_lies_where_its_channel_answers_whatever_the_light():
    feature_map = torch.zeros(1, 2, 32, 32)
    feature_map[0, 0, 8, 24] = feature_map[0, 1, 31, 0] = 5.0
    points = keypoints(feature_map)
    x, y = points[0, :2], points[0, 2:]
    place = torch.linspace(-1, 1, 32)
    torch.testing.assert_close(x, torch.stack([place[24], place[0]]), atol=1e-4, rtol=0)
    torch.testing.assert_close(y, torch.stack([place[8], place[31]]), atol=1e-4, rtol=0)
    torch.testing.assert_close(keypoints(3.0 * feature_map + 7.0), points, atol=1e-3, rtol=0)
    torch.testing.assert_close(keypoints(torch.ones(1, 2, 4, 4)), torch.zeros(1, 4))  # says nothing: the middle


@pytest.mark.parametrize("rows, columns", [(12, 40), (60, 5)])
def test_ridge_is_the_best_of_all_penalties_over_groups_left_out(rows, columns):
    rng = np.random.default_rng(0)
    x, groups = rng.standard_normal((rows, columns)), np.arange(rows) // 4
    y = x @ rng.standard_normal((columns, 2)) + 0.3 * rng.standard_normal((rows, 2)) + 5.0
    line = ridge(x, y, groups)

    def plain(penalty, rest):  # the penalised least squares of these rows, around their own means
        means = x[rest].mean(0), y[rest].mean(0)
        centred, wanted = x[rest] - means[0], y[rest] - means[1]
        return np.linalg.solve(centred.T @ centred + penalty * np.eye(columns), centred.T @ wanted), *means

    penalties = ((x - x.mean(0)) ** 2).sum() / rows * 10.0 ** np.arange(-5.0, 2.0, 0.5)
    errors = []
    for penalty in penalties:
        left = []
        for g in np.unique(groups):
            weight, x_mean, y_mean = plain(penalty, groups != g)
            left.append((y - y_mean)[groups == g] - (x - x_mean)[groups == g] @ weight)
        errors.append(np.sqrt((np.concatenate(left) ** 2).mean(0)))
    best = int(np.argmin([(error**2).mean() for error in errors]))
    np.testing.assert_allclose(line.error, errors[best], rtol=1e-6)
    np.testing.assert_allclose(line.weight, plain(penalties[best], slice(None))[0], atol=1e-8)
    np.testing.assert_allclose(line.bias, y.mean(0) - x.mean(0) @ line.weight)


@pytest.mark.parametrize("episodes", [6, 20])
def test_what_only_tells_the_episodes_apart_tells_no_place(episodes):
    """Numbers that differ by scene, more of them than rows: every fit to the demos is exact, and none is right."""
    rng = np.random.default_rng(0)
    groups = np.arange(12 * episodes) // 12
    inputs = rng.standard_normal((episodes, 400))[groups] + 0.1 * rng.standard_normal((len(groups), 400))
    inputs = np.concatenate([inputs, rng.standard_normal((len(groups), 2))], 1)  # the state
    displacements = (rng.standard_normal((episodes, 2))[groups] - inputs[:, -2:])[:, None]
    waypoint = Waypoint(400, 2, 1)
    error = waypoint.fit(inputs, displacements, np.ones((len(groups), 1), bool), groups)
    assert error.min() > 0.7 and not waypoint.is_fitted


def test_a_fit_reads_in_standard_deviations_what_is_ahead_and_nothing_that_never_moves():
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((200, 8 + 3)).astype(np.float32)
    inputs[:, -1] = 4.0  # a state's entry that never changes
    end = np.stack([100.0 * inputs[:, 0], 0.01 * inputs[:, 1] + 3.0, np.zeros(200)], 1)
    first, ahead = np.where(np.arange(200)[:, None] % 10 < 4, end, 1e6), np.ones((200, 2), bool)
    ahead[:, 0] = np.arange(200) % 10 < 4
    waypoint = Waypoint(8, 3, 2)
    assert not waypoint.is_fitted
    error = waypoint.fit(inputs, np.stack([first, end], 1), ahead, np.arange(200) // 10)
    assert waypoint.is_fitted and error.shape == (2, 3) and error[:, :2].max() < 0.02 and (error[:, 2] == 1).all()
    read = waypoint.read(torch.from_numpy(inputs)).numpy()
    for part, rows in ((read[:, :3], ahead[:, 0]), (read[:, 3:], ahead[:, 1])):
        x = inputs[rows, 0].astype(np.float64)
        np.testing.assert_allclose(part[rows, 0], (x / x.std()).clip(-3, 3), atol=0.02)
        np.testing.assert_allclose(part[rows, 1], 3.0)  # always the same way, and clipped
        assert not part[:, 2].any()


def test_what_the_frames_do_not_tell_in_other_episodes_is_left_out():
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((80, 300 + 3))  # more numbers than rows: every displacement has an exact fit to them
    inputs[:, :3] *= 30.0
    displacements = np.stack([inputs[:, 0], rng.standard_normal(80), inputs[:, 1]], 1)[:, None]
    waypoint, data = Waypoint(300, 3, 1), (np.ones((80, 1), bool), np.arange(80) // 4)
    error = waypoint.fit(inputs, displacements, *data)[0]
    assert max(error[0], error[2]) < 0.25 < 0.6 < error[1]
    assert waypoint.weight[0].any() and not waypoint.weight[1].any() and waypoint.bias[1] == 0
    displacements[..., 2] = rng.standard_normal((80, 1))  # one number alone is no place
    assert waypoint.fit(inputs, displacements, *data)[0, 0] < 0.25 and not waypoint.is_fitted


@pytest.mark.parametrize("error, fitted", [(0.02, False), (1.0, True)])
def test_where_the_map_tells_the_place_as_well_there_is_no_branch(error, fitted):
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((80, 6 + 2))
    displacements = (inputs[:, :2] + 0.1 * rng.standard_normal((80, 2)))[:, None]
    maps = displacements[:, 0] + error * rng.standard_normal((80, 2))
    waypoint = Waypoint(6, 2, 1)
    told = waypoint.fit(inputs, displacements, np.ones((80, 1), bool), np.arange(80) // 4, maps)
    assert told.max() < 0.25 and waypoint.is_fitted == fitted


# ---------------------------------------------------------------- waypoints of demos


def demos_of(commands, setup_mode):
    """Two episodes alike whose state counts their steps; `commands`: (T, grippers)."""
    arms = len(commands[0]) or 1
    transitions = []
    for _ in range(2):
        for step, told in enumerate(commands):
            blocks = [[0.5] * 2 + ([told[arm]] if told else []) for arm in range(arms)]
            at = [{"state": np.array([step + k], np.float32)} for k in (0, 1)]
            action = np.array(blocks, np.float32).ravel()
            transitions.append({"observations": at[0], "next_observations": at[1], "actions": action})
    return Demos(transitions, np.repeat([0, 1], len(commands)), [], {}, 1, len(action), setup_mode)


@pytest.mark.parametrize(
    "setup_mode, commands, first, ahead",
    [
        (FIXED, [()] * 3, None, None),
        (LEARNED, [(0,), (-1,), (0,), (1,)], 2, [1, 1, 0, 0]),
        (LEARNED, [(0,), (0,)], 2, [1, 1]),  # no command: the end
        ("dual-arm-learned-gripper", [(0, 0), (0, -1), (-1, -1), (0, 0)], 2, [1, 1, 0, 0]),
    ],
)
def test_waypoints_are_the_first_gripper_command_and_the_end(setup_mode, commands, first, ahead):
    places, still_ahead = waypoints(demos_of(commands, setup_mode))
    assert (places[:, -1, 0] == len(commands)).all() and still_ahead[:, -1].all()
    assert places.shape[1] == (1 if first is None else 2)
    if first is not None:
        assert (places[:, 0, 0] == first).all() and still_ahead[:, 0].tolist() == 2 * [bool(a) for a in ahead]


# ---------------------------------------------------------------- in an agent


def test_keypoints_are_stored_beside_the_map_and_those_of_the_whole_frame_in_every_view():
    agent = make_agent()
    obs = frames(agent)
    stored = agent.encode_frames(obs, views=3)
    assert stored["a"].shape == (3, 528, 16) == (3, *agent.feature_shape)
    assert make_agent(waypoint=False).feature_shape == (512, 16)
    assert (stored["a"][:, 512:] == stored["a"][0, 512:]).all()
    assert not np.array_equal(stored["a"][0, :512], stored["a"][1, :512])
    with torch.no_grad():
        maps = agent.backbone(torch.from_numpy(obs["a"])[None])[0]
    np.testing.assert_allclose(stored["a"][0, :512], maps.numpy(), atol=2e-3)
    cropped = agent._features(agent._tensors({k: v[None] for k, v in obs.items()}), augment=True)
    np.testing.assert_allclose(cropped["b"][0, 512:].numpy(), stored["b"][0, 512:], atol=1e-3)


def test_frames_and_what_is_stored_of_them_give_the_same_action_and_the_branch_counts():
    agent = fitted(make_agent())
    obs = frames(agent)
    stored = {k: v if k == "state" else v[0] for k, v in agent.encode_frames(obs).items()}
    action = agent.sample_actions(obs, argmax=True)
    np.testing.assert_allclose(agent.sample_actions(stored, argmax=True), action, atol=2e-3)
    agent.encoder.waypoint.bias.add_(1.0)
    assert np.abs(agent.sample_actions(obs, argmax=True) - action).max() > 1e-3


def test_a_fit_reaches_the_target_at_once_and_no_update_moves_it():
    agent, rng = fitted(make_agent(["a"])), np.random.default_rng(0)
    online, target = (networks["encoder"].waypoint for networks in (agent.online, agent.target))
    read, trained = online.weight.clone(), online.dense.weight.clone()
    assert torch.equal(target.weight, read) and torch.equal(target.bias, online.bias)
    frame = {"a": rng.standard_normal((4, 528, 16), np.float32), "state": rng.standard_normal((4, 3), np.float32)}
    batch = {"observations": frame, "next_observations": frame, "actions": np.full((4, 6), 0.5, np.float32)}
    agent.update(batch | {"rewards": np.ones(4), "masks": np.ones(4)}, clone_weight=1.0)
    assert torch.equal(online.weight, read) and torch.equal(target.weight, read)
    assert not torch.equal(online.dense.weight, trained)


def test_a_saved_policy_reads_as_before_and_an_agent_without_the_branch_refuses_it(tmp_path):
    agent = fitted(make_agent(["a"]))
    agent.save_policy(tmp_path / "best.pt")
    obs = frames(agent)
    loaded = build.load_agent(tmp_path / "best.pt")
    np.testing.assert_array_equal(loaded.sample_actions(obs, argmax=True), agent.sample_actions(obs, argmax=True))
    with pytest.raises(ValueError, match=r"waypoint is \[0, 1\], here False"):
        make_agent(["a"], waypoint=False).load(tmp_path / "best.pt")


def test_a_checkpoint_from_before_the_branch_is_loaded_without_it(tmp_path):
    path = make_demos(tmp_path / "demos.pkl")
    demos = read_demos(path, ["image"], FIXED)
    settings = dict(lr=3e-4, discount=0.95, device="cpu", backbone=ResNet10(), trainable=False)
    old = make_agent(["image"], waypoint=False)
    state = old.state_dict()
    del state["config"]["waypoint"]
    torch.save(state, tmp_path / "old.pt")
    assert build.make_agent(demos, **settings).encoder.waypoint is not None
    agent = build.make_agent(demos, **settings, start=tmp_path / "old.pt")
    agent.load(tmp_path / "old.pt")
    obs = {k: v for k, v in demos.transitions[0]["observations"].items()}
    np.testing.assert_array_equal(agent.sample_actions(obs, argmax=True), old.sample_actions(obs, argmax=True))
    assert build.load_agent(tmp_path / "old.pt").encoder.waypoint is None


def test_a_branch_of_an_older_version_reads_the_maps_that_it_was_fitted_to(tmp_path):
    path = make_demos(tmp_path / "demos.pkl")
    demos = read_demos(path, ["image"], FIXED)
    settings = dict(lr=3e-4, discount=0.95, device="cpu", backbone=ResNet10(), trainable=False)
    old = fitted(make_agent(["image"], waypoint=[1, 3], state_dim=demos.state_dim))
    assert old.feature_shape == (552, 16) and old.encoder.waypoint.weight.shape[1] == 640 + demos.state_dim
    state = old.state_dict()
    state["config"]["waypoint"] = True
    torch.save(state, tmp_path / "old.pt")
    obs = demos.transitions[0]["observations"]
    action = old.sample_actions(obs, argmax=True)
    agent = build.make_agent(demos, **settings, start=tmp_path / "old.pt")
    agent.load(tmp_path / "old.pt")
    for loaded in (agent, build.load_agent(tmp_path / "old.pt")):
        assert loaded.config["waypoint"] == [1, 3]
        np.testing.assert_array_equal(loaded.sample_actions(obs, argmax=True), action)
    with pytest.raises(ValueError, match=r"waypoint is \[1, 3\], here \[0, 1\]"):
        make_agent(["image"], state_dim=demos.state_dim).load(tmp_path / "old.pt")


@pytest.mark.parametrize("maps", [[5], [-1]])
def test_keypoints_of_maps_that_are_not_there(maps):
    with pytest.raises(ValueError, match="wanted some of 0 to 4"):
        make_agent(["a"], waypoint=maps)


@pytest.mark.parametrize("settings", [{"trainable_backbone": True}, {"state_dim": 0}, {"image_keys": []}])
def test_the_branch_wants_frames_a_state_and_a_frozen_backbone(settings):
    with pytest.raises(ValueError, match="waypoint needs cameras, a state_dim above 0 and a frozen backbone"):
        SACAgent(**{"image_keys": ["a"], "action_dim": 6, "state_dim": 3, "waypoint": True, "device": "cpu"} | settings)


def test_the_originals_parameters_are_refused_by_name():
    with pytest.raises(ValueError, match="build the agent without `waypoint`"):
        load_hil_serl_agent(make_agent(["a"]), {})


def test_what_acts_elsewhere_gets_the_fit_with_the_parameters():
    agent, other = fitted(make_agent(["a"])), make_agent(["a"], seed=1)
    unpack(pack(acting_modules(agent)), acting_modules(other))
    assert torch.equal(other.averaged().encoder.waypoint.weight, agent.encoder.waypoint.weight)


def test_an_exported_policy_reads_the_waypoint_too():
    torch.manual_seed(0)
    agent = fitted(SACHybridAgent(["a"], 6, 3, state_dim=3, waypoint=True, device="cpu"))
    obs = {k: torch.from_numpy(v)[None] for k, v in frames(agent, size=128).items()}
    with torch.no_grad():
        action = Policy(agent)(obs)
    np.testing.assert_allclose(action.numpy(), agent.sample_actions(obs, argmax=True), atol=1e-4)


# ---------------------------------------------------------------- from demos


def fit(demos, seed=0):
    """An agent that was fitted to these demos."""
    agent = make_agent(demos.image_keys, seed=seed, state_dim=demos.state_dim)
    return agent, refit(agent, demos)


def refit(agent, demos):
    buffer = ReplayBuffer(2 * len(demos.transitions), agent.image_keys)
    build.add_demos(buffer, demos, agent, views=1)
    build.fit_waypoint(agent, buffer, demos)
    return agent.encoder.waypoint.weight.clone()


def test_demos_fit_the_branch_and_failed_ones_do_not_count(tmp_path, capsys):
    path = record(FIXED, tmp_path / "recorded", num_demos=9, num_classifier_episodes=0)
    demos = read_demos(path, ["image"], FIXED)
    agent, weight = fit(demos)
    said = re.search(r"waypoints: the keypoints tell (\d) of 6 numbers .* within 30% of their", capsys.readouterr().out)
    assert 2 <= int(said[1]) <= weight.any(1).sum()  # and what always ends at the same height
    assert torch.equal(agent.target["encoder"].waypoint.weight, weight)

    for row in np.flatnonzero(demos.episode_ids == 0):
        demos.transitions[row]["rewards"], demos.transitions[row]["masks"] = 0.0, 1.0
    _, fewer = fit(demos)
    assert not torch.equal(fewer, weight)
    demos.transitions[0]["observations"]["image"] = demos.transitions[9]["observations"]["image"]
    assert torch.equal(fit(demos)[1], fewer)
    assert torch.equal(refit(agent, demos), weight)  # fitted already, maybe to another run's demos

    for transition in demos.transitions:
        transition["rewards"], transition["masks"] = 0.0, 1.0
    assert not fit(demos)[1].any()
    assert "waypoints: not learned, which takes two successful demos" in capsys.readouterr().out


@pytest.mark.slow
def test_a_clone_that_sees_by_one_camera_finds_the_place(tmp_path):
    """Solved of 50: more than a third, where a clone without the branch solved 12 of 100, and one with it 53."""
    demos = record(FIXED, tmp_path / "recorded", num_demos=20, num_classifier_episodes=0)
    data = {"demo_paths": demos, "image_keys": "image", "setup_mode": FIXED, "env": "built-in"}
    learning = {"algo": "bc", "max_steps": 1500, "eval_every": 1500, "eval_episodes": 10, "stop_at": 1.0}
    train_offline.main(command(data | learning | {"final_episodes": 50, "save_dir": tmp_path / "run"}))
    result = json.loads((tmp_path / "run" / "evaluation.json").read_text())["deterministic"]
    assert result["episodes"] == 50 and result["successes"] > 17
