"""Reading demo files: what is accepted, what is refused, and what the refusal says."""

import copy
import pickle

import numpy as np
import pytest

from pytorch_serl.data.actions import in_force
from pytorch_serl.data.checks import DataError
from pytorch_serl.data.demos import SETUP_MODES, num_arms, num_grippers, read_demos

FIXED, LEARNED, DUAL_FIXED, DUAL_LEARNED = SETUP_MODES
SIDE = 8


def make_demos(episodes=2, length=5, action_dim=6, keys=("image",), state_dim=4, grippers=(), seed=0):
    """Transitions in this project's format; each episode's last one succeeds."""
    rng = np.random.default_rng(seed)
    transitions = []
    for _ in range(episodes):
        observations = []
        for _ in range(length + 1):
            obs = {key: rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for key in keys}
            if state_dim:
                obs["state"] = rng.normal(size=state_dim).astype(np.float32)
            observations.append(obs)
        for step in range(length):
            action = rng.uniform(-0.8, 0.8, action_dim).astype(np.float32)
            for column in grippers:
                action[column] = (-1, 0, 1)[step % 3]
            done = step == length - 1
            transitions.append(
                {
                    "observations": observations[step],
                    "actions": action,
                    "next_observations": copy.deepcopy(observations[step + 1]),
                    "rewards": float(done),
                    "dones": done,
                    "masks": 1.0 - done,
                    "grasp_penalty": 0.0,
                }
            )
    return transitions


def to_hil_serl(transitions):
    """The same transitions as HIL-SERL records them: stacking axis, infos, numpy scalars, no masks."""
    result = []
    for transition in copy.deepcopy(transitions):
        for group in ("observations", "next_observations"):
            transition[group] = {key: array[None] for key, array in transition[group].items()}
        transition["actions"] = transition["actions"].astype(np.float64)
        transition["rewards"] = np.float64(transition["rewards"])
        transition["dones"] = np.bool_(transition["dones"])
        transition["infos"] = {"grasp_penalty": np.float64(-0.02), "succeed": True, "left": None}
        del transition["masks"], transition["grasp_penalty"]
        result.append(transition)
    return result


def write(path, value, protocol=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value, protocol))
    return path


def put(*keys_and_value):
    """An edit that sets transitions[3][key]... = value."""
    *keys, last, value = keys_and_value

    def edit(transitions):
        target = transitions[3]
        for key in keys:
            target = target[key]
        target[last] = value

    return edit


def drop(*keys):
    def edit(transitions):
        target = transitions[3]
        for key in keys[:-1]:
            target = target[key]
        del target[keys[-1]]

    return edit


def for_all(change):
    def edit(transitions):
        for transition in transitions:
            change(transition)

    return edit


def zero_episode(transitions):
    for transition in transitions[5:]:
        transition["actions"][:] = 0


def wide(transition):
    transition["next_observations"]["image"] = np.zeros((SIDE, SIDE + 1, 3), np.uint8)


def penalty_in_infos(transitions):
    del transitions[3]["grasp_penalty"]
    transitions[3]["infos"] = {"grasp_penalty": 1}


def late_masks(transitions):
    for transition in transitions[:5]:
        del transition["masks"]


def small_twist(transitions):
    for transition in transitions:
        transition["actions"] *= 0.1


def short_action(length):
    return for_all(lambda transition: transition.update(actions=transition["actions"][:length]))


IMAGE = np.full((SIDE, SIDE, 3), 7, np.uint8)
OBS = "observations"
WRONG_AT_3 = {  # name: edit of transition 3, what the message says
    "no_observations": (drop(OBS), "observations: got keys 'actions', 'dones'"),
    "no_next": (drop("next_observations"), "next_observations: got keys 'actions'"),
    "no_actions": (drop("actions"), "actions: got keys 'dones'"),
    "no_rewards": (drop("rewards"), "rewards: got keys 'actions'"),
    "no_dones": (drop("dones"), "dones: got keys 'actions'"),
    "no_masks": (drop("masks"), "masks: got keys 'actions'"),
    "no_image": (drop(OBS, "image"), "observations['image']: got keys 'state'"),
    "no_state": (drop(OBS, "state"), "observations['state']: got keys 'image'"),
    "no_next_state": (drop("next_observations", "state"), "next_observations['state']: got keys 'image'"),
    "obs_array": (put(OBS, IMAGE), "observations: got uint8 array of shape (8, 8, 3), wanted a dict"),
    "float_image": (put(OBS, "image", IMAGE / 255), "float64 array of shape (8, 8, 3) in [0.02"),
    "int_image": (put(OBS, "image", IMAGE.astype(int)), "observations['image']: got int64"),
    "bool_image": (put(OBS, "image", IMAGE > 3), "observations['image']: got bool"),
    "list_image": (put(OBS, "image", [1, 2]), "observations['image']: got list"),
    "channel_first": (put(OBS, "image", IMAGE.transpose(2, 0, 1)), "save image.transpose(1, 2, 0)"),
    "grey": (put(OBS, "image", IMAGE[..., 0]), "observations['image']: got shape (8, 8)"),
    "alpha": (put(OBS, "image", np.zeros((8, 8, 4), np.uint8)), "image[..., :3]"),
    "no_rows": (put(OBS, "image", IMAGE[:0]), "got shape (0, 8, 3), wanted uint8 (H, W, 3) in 0..255; the camera gave"),
    "stacked": (put(OBS, "image", np.stack([IMAGE] * 2)), "stacked frames are not supported"),
    "stacked_state": (put(OBS, "state", np.zeros((2, 4))), "stacked frames are not supported"),
    "image_shape": (put(OBS, "image", IMAGE[:4]), "observations['image']: got shape (4, 8, 3), wanted (8,"),
    "state_shape": (put(OBS, "state", np.zeros(5)), "observations['state']: got shape (5,), wanted (4,)"),
    "state_nan": (put(OBS, "state", np.array([0, np.nan, 0, 0])), "observations['state'][1]: got nan"),
    "state_overflow": (put(OBS, "state", np.array([1e300, 0, 0, 0])), "observations['state'][0]: got 1e+300"),
    "state_bool": (put(OBS, "state", np.zeros(4, bool)), "observations['state']: got bool"),
    "state_dict": (put(OBS, "state", {"pose": 1}), "observations['state']: got dict"),
    "action_shape": (put("actions", np.zeros(7)), "actions: got shape (7,), wanted (6,)"),
    "action_scalar": (put("actions", 0.5), "actions: got float 0.5"),
    "action_list": (put("actions", [0.5] * 6), "actions: got list"),
    "action_text": (put("actions", np.array(["a"] * 6)), "actions: got <U1"),
    "action_nan": (put("actions", 2, np.nan), "actions[2]: got nan"),
    "action_inf": (put("actions", 2, -np.inf), "actions[2]: got -inf"),
    "action_range": (put("actions", 4, 1.5), "actions[4]: got 1.5, wanted a value in [-1, 1]"),
    "reward_nan": (put("rewards", float("nan")), "rewards: got float nan"),
    "reward_huge": (put("rewards", 10**400), "rewards: got int"),
    "reward_text": (put("rewards", "1"), "rewards: got str"),
    "reward_none": (put("rewards", None), "rewards: got None"),
    "reward_vector": (put("rewards", np.zeros(2)), "rewards: got float64 array"),
    "done_two": (put("dones", 2), "dones: got 2, wanted 0 or 1"),
    "mask_half": (put("masks", 0.5), "masks: got 0.5, wanted 0 or 1"),
    "mask_early": (put("masks", 0.0), "masks: got mask 0 where dones is False"),
    "penalty_sign": (put("grasp_penalty", 0.02), "grasp_penalty: got 0.02, wanted 0 or negative"),
    "penalty_nan": (put("grasp_penalty", np.nan), "grasp_penalty: got float nan"),
    "penalty_infos": (penalty_in_infos, "infos['grasp_penalty']: got 1"),
    "bytes_keys": (lambda ts: ts.__setitem__(3, {b"rewards": 0}), "observations: got keys b'rewards'"),
    "no_dict": (lambda ts: ts.__setitem__(3, (1, 2)), "transition: got tuple (1, 2), wanted a dict"),
}
WRONG_ELSEWHERE = {  # name: edit, setup mode, where, what the message says
    "next_image_shape": (for_all(wide), FIXED, "transition 0", "next_observations['image']: got shape"),
    "late_masks": (late_masks, FIXED, "transition 5", "masks: got a mask, wanted none"),
    "action_zero": (for_all(lambda t: t["actions"].fill(0)), FIXED, "transitions 0-9", "actions: got 0"),
    "episode_zero": (zero_episode, FIXED, "transitions 5-9", "actions: got 0 in every entry of the"),
    "no_reward": (for_all(lambda t: t.update(rewards=0)), FIXED, "transitions 0-9", "rewards: got 0 through"),
    "no_gripper": (lambda ts: None, LEARNED, "transition 0", "actions[5]: got"),
    "small_twist": (small_twist, LEARNED, "transition 0", "--setup_mode single-arm-fixed-gripper"),
    "odd_dual": (short_action(5), DUAL_FIXED, "transition 0", "actions: got 5 entries, wanted an even"),
    "only_gripper": (short_action(1), LEARNED, "transition 0", "actions: got 1 entries"),
}
WRONG = {name: (edit, FIXED, "transition 3", what) for name, (edit, what) in WRONG_AT_3.items()}
WRONG.update(WRONG_ELSEWHERE)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_demo_file(tmp_path, name):
    edit, mode, where, what = WRONG[name]
    transitions = make_demos()
    edit(transitions)
    path = write(tmp_path / f"{name}.pkl", transitions)
    with pytest.raises(DataError) as error:
        read_demos([path], ["image"], mode)
    message = str(error.value)
    assert message.startswith(f"{path}: {where}: ") and what in message, message
    assert ": got " in message and ", wanted " in message and "; " in message and "\n" not in message


@pytest.mark.parametrize(
    ("recorded", "dim", "grippers", "asked", "fits", "column"),
    [
        ("one_arm", 7, [6], FIXED, LEARNED, 6),
        ("small_arm", 4, [3], FIXED, LEARNED, 3),
        ("two_arms", 14, [6, 13], DUAL_FIXED, DUAL_LEARNED, 6),
        ("two_as_one", 14, [6, 13], FIXED, DUAL_LEARNED, 6),
        ("two_as_one_learned", 14, [6, 13], LEARNED, DUAL_LEARNED, 6),
        ("twist", 6, [], LEARNED, FIXED, 5),
        ("two_twists", 12, [], DUAL_LEARNED, DUAL_FIXED, 5),
    ],
)
def test_wrong_setup_mode_names_the_one_that_fits(tmp_path, recorded, dim, grippers, asked, fits, column):
    path = write(tmp_path / f"{recorded}.pkl", make_demos(action_dim=dim, grippers=grippers))
    with pytest.raises(DataError, match=f"--setup_mode {fits}") as error:
        read_demos(path, "image", asked)
    assert f"{path}: transition " in str(error.value) and f"actions[{column}]: " in str(error.value)
    assert read_demos(path, "image", fits).action_dim == dim


@pytest.mark.parametrize("unused, used", [(6, 13), (13, 6)])
@pytest.mark.parametrize("asked", [FIXED, LEARNED, DUAL_FIXED])
def test_two_arms_of_which_one_never_uses_its_gripper_are_still_two(asked, unused, used, tmp_path):
    transitions = make_demos(action_dim=14, grippers=[6, 13])
    for transition in transitions:
        transition["actions"][unused] = 0
    path = write(tmp_path / "one_grips.pkl", transitions)
    with pytest.raises(DataError, match=rf"actions\[{used}\]: got gripper commands.*--setup_mode {DUAL_LEARNED}"):
        read_demos(path, "image", asked)
    assert read_demos(path, "image", DUAL_LEARNED).action_dim == 14


@pytest.mark.parametrize("dim, asked, still", [(4, LEARNED, 1), (6, LEARNED, 2), (8, LEARNED, 3), (12, DUAL_FIXED, 5)])
def test_a_direction_that_nobody_uses_is_no_gripper(dim, asked, still, tmp_path):
    transitions = make_demos(action_dim=dim, grippers=[dim - 1] if asked == LEARNED else [])
    for transition in transitions:
        transition["actions"][still] = 0
    assert read_demos(write(tmp_path / "d.pkl", transitions), "image", asked).action_dim == dim


def test_a_hold_becomes_the_command_that_it_prolongs():
    given = [[0, 0], [-1, 0], [0, 1], [0, 0], [1, -1], [0, 0]]  # left and right
    told, before = [], None
    for left, right in given:
        action = np.array([0.5, left, -0.25, right], np.float32)
        before = in_force(action, before, 2)
        assert before.dtype == np.float32 and before[[0, 2]].tolist() == [0.5, -0.25]
        told.append(before[[1, 3]].tolist())
    assert told == [[0, 0], [-1, 0], [-1, 1], [-1, 1], [1, -1], [1, -1]]
    assert in_force(action, before, 0).tolist() == action.tolist()
    held = np.array([0.5, 0.0], np.float32)
    assert in_force(held, np.array([0.1, 1.0], np.float32), 1).tolist() == [0.5, 1.0] and held.tolist() == [0.5, 0.0]


@pytest.mark.parametrize("value", [0.5, -0.88, 0.2])
def test_gripper_entry_outside_its_commands(tmp_path, value):
    transitions = make_demos(action_dim=7, grippers=[6])
    transitions[4]["actions"][6] = value
    path = write(tmp_path / "grip.pkl", transitions)
    with pytest.raises(DataError, match=r"grip.pkl: transition 4: actions\[6\]: got -?0.*single-arm-fixed-gripper"):
        read_demos(path, "image", LEARNED)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (pickle.dumps([]), "an empty list"),
        (pickle.dumps({"a": 1}), "dict"),
        (pickle.dumps(3.0), "float"),
        (b"", "EOFError"),
        (b"no pickle at all", "whole pickle"),
        (pickle.dumps(make_demos())[:-50], "whole pickle"),
        (b"\x80\x04" + b"(" * 10 + b".", "whole pickle"),
        (b"PK\x03\x04", "whole pickle"),
    ],
)
def test_file_without_transitions(tmp_path, content, text):
    path = tmp_path / "broken.pkl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="broken.pkl") as error:
        read_demos(path, "image", FIXED)
    assert text in str(error.value) and "\n" not in str(error.value)


def test_wrong_arguments(tmp_path):
    path = write(tmp_path / "demos.pkl", make_demos())
    for paths, keys, mode, text in (
        ([path], ["image"], "one-arm", "setup_mode"),
        ([], ["image"], FIXED, "demo_paths"),
        ([path], [], FIXED, "image_keys"),
        ([path], ["image"] * 2, FIXED, "image_keys"),
        ([path, path], ["image"], FIXED, "demo_paths"),
        ([path], ["state"], FIXED, "image_keys"),
        ([tmp_path / "none.pkl"], ["image"], FIXED, "none.pkl: file: got no such file"),
        ([tmp_path], ["image"], FIXED, "a folder"),
        ([path], ["wrist"], FIXED, "keys 'image', 'state', wanted the image key 'wrist'"),
    ):
        with pytest.raises(ValueError, match=text):
            read_demos(paths, keys, mode)


@pytest.mark.parametrize("change", [{"action_dim": 7}, {"state_dim": 3}, {"state_dim": 0}])
def test_second_file_of_another_setup(tmp_path, change):
    first = write(tmp_path / "first.pkl", make_demos())
    second = write(tmp_path / "second.pkl", make_demos(**change))
    with pytest.raises(DataError, match=r"second.pkl: transition 0: .*as in .*first.pkl"):
        read_demos([first, second], "image", FIXED)


def test_own_format(tmp_path):
    transitions = make_demos(episodes=3, keys=("image", "wrist"))
    transitions[4]["masks"] = 1.0  # a time limit
    path = write(tmp_path / "demos.pkl", transitions)
    demos = read_demos([str(path)], ["wrist"], FIXED)
    assert len(demos.transitions) == 15 and demos.image_keys == ["wrist"]
    assert demos.image_shapes == {"wrist": (SIDE, SIDE, 3)}
    assert (demos.state_dim, demos.action_dim, demos.continuous_dim) == (4, 6, 6)
    np.testing.assert_array_equal(demos.episode_ids, np.repeat([0, 1, 2], 5))
    assert demos.episode_ids.dtype == np.int64
    for got, wanted in zip(demos.transitions, transitions, strict=True):
        assert set(got["observations"]) == set(got["next_observations"]) == {"wrist", "state"}
        np.testing.assert_array_equal(got["observations"]["wrist"], wanted["observations"]["wrist"])
        np.testing.assert_array_equal(got["next_observations"]["state"], wanted["next_observations"]["state"])
        np.testing.assert_array_equal(got["actions"], wanted["actions"])
        for key in ("rewards", "dones", "masks", "grasp_penalty"):
            assert got[key] == wanted[key] and type(got[key]) is type(wanted[key])


def test_hil_serl_recordings_give_the_same(tmp_path):
    transitions = make_demos(action_dim=7, grippers=[6], keys=("side", "wrist"))
    own = read_demos(write(tmp_path / "own.pkl", transitions), ["side", "wrist"], LEARNED)
    theirs = read_demos(write(tmp_path / "hil.pkl", to_hil_serl(transitions)), ["side", "wrist"], LEARNED)
    for transition in own.transitions:
        transition["grasp_penalty"] = -0.02
    for got, wanted in zip(theirs.transitions, own.transitions, strict=True):
        np.testing.assert_equal(got, wanted)
        assert got["actions"].dtype == np.float32 and got["dones"] is wanted["dones"]
    assert theirs.warnings == [] and theirs.continuous_dim == 6


@pytest.mark.parametrize(
    ("mode", "dim", "grippers", "continuous"),
    [
        (FIXED, 3, [], 3),
        (LEARNED, 4, [3], 3),
        (LEARNED, 5, [4], 4),
        (DUAL_FIXED, 12, [], 12),
        (DUAL_LEARNED, 14, [6, 13], 12),
        (DUAL_LEARNED, 8, [3, 7], 6),
    ],
)
def test_continuous_dimensions_come_from_the_data(tmp_path, mode, dim, grippers, continuous):
    demos = read_demos(write(tmp_path / "d.pkl", make_demos(action_dim=dim, grippers=grippers)), "image", mode)
    assert demos.continuous_dim == continuous
    assert (num_arms(mode), num_grippers(mode)) == (1 + mode.startswith("dual"), len(grippers))


def test_without_state_and_several_files(tmp_path):
    paths = [write(tmp_path / f"{i}.pkl", make_demos(state_dim=0, seed=i)[:7]) for i in range(2)]
    demos = read_demos(paths, "image", FIXED)
    assert demos.state_dim == 0 and "state" not in demos.transitions[0]["observations"]
    np.testing.assert_array_equal(demos.episode_ids, [0] * 5 + [1] * 2 + [2] * 5 + [3] * 2)
    assert sum("is not done" in text for text in demos.warnings) == 2


def test_a_state_that_the_first_observation_lacks_is_refused(tmp_path):
    transitions = make_demos()
    del transitions[0]["observations"]["state"]
    path = write(tmp_path / "demos.pkl", transitions)
    with pytest.raises(DataError, match=r"transition 0: observations\['state'\]"):
        read_demos([path], ["image"], FIXED)


def test_one_file_under_two_names_is_refused(tmp_path):
    path = write(tmp_path / "demos.pkl", make_demos())
    with pytest.raises(ValueError, match="none twice"):
        read_demos([path, tmp_path / "." / "x" / ".." / "demos.pkl"], ["image"], FIXED)


def test_numbers_of_every_kind(tmp_path):
    transitions = make_demos()
    for transition in transitions:
        transition["rewards"] = bool(transition["rewards"])
        transition["dones"] = np.int64(transition["dones"])
        transition["masks"] = np.array([transition["masks"]])
    demos = read_demos(write(tmp_path / "d.pkl", transitions), "image", FIXED)
    assert [t["rewards"] for t in demos.transitions[3:5]] == [0.0, 1.0]
    assert demos.transitions[4]["dones"] is True and demos.transitions[4]["masks"] == 0.0


def test_gripper_snapping(tmp_path):
    transitions = make_demos(action_dim=7, grippers=[6])
    commands = [-0.9, 0.0, 0.93, -1.0, 0.05, 1.0, -0.97, 0.0, 0.9, 1.0]
    for transition, command in zip(transitions, commands, strict=True):
        transition["actions"][6] = command
    demos = read_demos(write(tmp_path / "d.pkl", transitions), "image", LEARNED)
    assert [t["actions"][6] for t in demos.transitions] == [-1, 0, 1, -1, 0, 1, -1, 0, 1, 1]
    np.testing.assert_array_equal(demos.transitions[0]["actions"][:6], transitions[0]["actions"][:6])
    assert [text for text in demos.warnings if "5 of 10" in text and "gripper" in text] == demos.warnings


def test_equal_frames_are_stored_once(tmp_path):
    demos = read_demos(write(tmp_path / "d.pkl", make_demos(episodes=2, length=5)), "image", FIXED)
    for index in (0, 1, 2, 3, 5, 6, 7, 8):
        for key in ("image", "state"):
            following = demos.transitions[index + 1]["observations"][key]
            assert demos.transitions[index]["next_observations"][key] is following
    assert demos.transitions[4]["next_observations"]["image"] is not demos.transitions[5]["observations"]["image"]
    assert demos.memory_bytes == 12 * (SIDE * SIDE * 3 + 4 * 4) + 10 * 6 * 4


def test_rounding_above_one_is_clipped(tmp_path):
    transitions = make_demos()
    transitions[0]["actions"] = np.array([1 + 5e-6, -1 - 5e-6, 0, 0, 0, 0.1])
    action = read_demos(write(tmp_path / "d.pkl", transitions), "image", FIXED).transitions[0]["actions"]
    assert action[0] == 1 and action[1] == -1


def test_clean_demos_have_no_warning_and_a_summary(tmp_path):
    transitions = make_demos(action_dim=7, grippers=[6], length=6)
    transitions[1]["grasp_penalty"] = -0.02
    demos = read_demos(write(tmp_path / "d.pkl", transitions), "image", LEARNED)
    assert demos.warnings == []
    text = demos.summary()
    for part in (
        "2 episodes",
        "12 transitions",
        "2 successful",
        "image 8x8x3",
        "state 4",
        "7 entries, 6 continuous",
        "0.0% no-ops",
        "gripper [6]: close 4, hold 4, open 4",
        "grasp penalties: 1, sum -0.02",
        "GB",
    ):
        assert part in text, text
    first = np.stack([t["actions"] for t in transitions])[:, 0]
    assert f"[0] min {first.min():+.3f}, max {first.max():+.3f}, std {first.std():.3f}" in text


def constant_dimension(transition):
    transition["actions"][1] = 0.25


def no_ops(transitions):
    for index in (0, 6):
        transitions[index]["actions"][:] = 0


def timeout(transitions):
    transitions[9]["rewards"] = 0.0
    for transition in transitions:
        del transition["masks"]


def gap(transitions):
    del transitions[2]


def close_only(transitions):
    for transition in transitions:
        transition["actions"][6] = min(transition["actions"][6], 0)


def no_penalty(transitions):
    for transition in transitions:
        del transition["grasp_penalty"]


ODD = {
    "constant": (for_all(constant_dimension), FIXED, "never change: actions[1] = 0.25"),
    "no_ops": (no_ops, FIXED, "2 of 10 (20.0%) are no-ops"),
    "gap": (gap, FIXED, "in 1 of 9 (11.1%) transitions inside episodes (first: transition 1)"),
    "failed": (lambda ts: ts[9].update(rewards=0), FIXED, "1 of 2 (50.0%) episodes without success"),
    "timeout": (timeout, FIXED, "absent, taken as 1 - dones: 1 episodes end without reward"),
    "success_as_limit": (lambda ts: ts[9].update(masks=1.0), FIXED, "1 episodes end with reward and mask 1"),
    "cut_off": (lambda ts: ts.pop(), FIXED, "the last transition, 8, is not done"),
    "blank": (put(OBS, "image", IMAGE), FIXED, "1 of 10 (10.0%) images are blank (one value throughout; first: tr"),
    "dark": (for_all(lambda t: t[OBS]["image"].__imod__(2)), FIXED, "no pixel above 1 in 10 images"),
    "hanging": (
        for_all(lambda t: t[OBS].update(image=np.arange(192, dtype=np.uint8).reshape(8, 8, 3))),
        FIXED,
        "all 10 images are the same",
    ),
    "never_opens": (close_only, LEARNED, "actions[6]: the gripper never opens (0 of 10 actions are 1)"),
    "no_penalty": (no_penalty, LEARNED, "grasp_penalty: in no transition"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_but_usable_is_a_warning_with_numbers(tmp_path, name):
    edit, mode, text = ODD[name]
    grippers = [6] if mode == LEARNED else []
    transitions = make_demos(action_dim=6 + len(grippers), grippers=grippers)
    edit(transitions)
    path = write(tmp_path / f"{name}.pkl", transitions)
    demos = read_demos(path, "image", mode)
    assert any(line.startswith(f"{path}: ") and text in line for line in demos.warnings), demos.warnings
    assert text in demos.summary()
