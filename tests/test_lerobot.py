"""LeRobot datasets as demos, and demos as LeRobot datasets."""

import json
import pickle
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from pytorch_serl.data.checks import DataError
from pytorch_serl.data.demos import read_demos
from pytorch_serl.data.episode_files import EpisodeWriter
from pytorch_serl.data.lerobot import reader
from pytorch_serl.data.lerobot import writer as lerobot_writer
from pytorch_serl.data.lerobot.files import resized
from pytorch_serl.networks.resnet import ResNet10
from tests.runs import FIXED, LEARNED, make_demos

MISSING = [name for name in ("pyarrow", "av") if find_spec(name) is None]
reading = pytest.mark.skipif(
    bool(MISSING), reason=f"no {', '.join(MISSING)}: pip install -r requirements/lerobot-data.txt"
)
EPISODES, LENGTH, FPS = 3, 7, 30
OWN = ("final", "mask", "grasp_penalty", "corrected", "next.done")  # columns that a dataset of others need not have


def picture(episode, frame, size=(48, 64)):
    """Smooth enough for a codec, and another one in each frame."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    red = 128 + 100 * np.sin(rows / 9 + frame)
    return np.stack([red, 128 + 100 * np.cos(columns / 11), np.full(size, 40.0 * episode)], -1).astype(np.uint8)


def transitions(gripper=(-1, 0, 1)):
    result = []
    rng = np.random.default_rng(0)
    for episode in range(EPISODES):
        obs = [{"front": picture(episode, i), "state": rng.random(3, np.float32)} for i in range(LENGTH + 1)]
        for i in range(LENGTH):
            done = i == LENGTH - 1
            result.append(
                {
                    "observations": obs[i],
                    "next_observations": obs[i + 1],
                    "rewards": float(done),
                    "dones": done,
                    "actions": np.array([0.1 * i + 0.05, -0.2, gripper[i % 3]], np.float32),
                    "masks": 1.0 - done,
                    "grasp_penalty": -0.02 * (i == 1),
                }
            )
    return result


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Demos as a pickle and as this project's dataset."""
    folder = tmp_path_factory.mktemp("lerobot")
    (folder / "demos.pkl").write_bytes(pickle.dumps(transitions()))
    options = ["--demo_paths", str(folder / "demos.pkl"), "--fps", str(FPS), "--output_dir", str(folder / "own")]
    assert lerobot_writer.main(options) == 0
    return folder


@pytest.fixture
def foreign(source, tmp_path):
    """A dataset as others write it: a frame per step, no columns of this project, no mapping."""
    import pyarrow.compute as pc
    from pyarrow import parquet

    root = tmp_path / "foreign"
    for path in (source / "own").rglob("*"):
        if path.is_file() and path.name != reader.MAPPING:
            (root / path.relative_to(source / "own")).parent.mkdir(parents=True, exist_ok=True)
            (root / path.relative_to(source / "own")).write_bytes(path.read_bytes())
    table = parquet.read_table(root / "data/chunk-000/file-000.parquet")
    table = table.filter(pc.invert(table["final"])).drop_columns(list(OWN))
    table = table.set_column(table.schema.get_field_index("index"), "index", [list(range(len(table)))])
    parquet.write_table(table, root / "data/chunk-000/file-000.parquet")
    episodes = parquet.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    for i, episode in enumerate(episodes):
        episode["dataset_from_index"], episode["dataset_to_index"] = i * LENGTH, (i + 1) * LENGTH
    import pyarrow as pa

    parquet.write_table(pa.Table.from_pylist(episodes), root / "meta/episodes/chunk-000/file-000.parquet")
    info = json.loads((root / reader.INFO).read_text())
    info["features"] = {name: feature for name, feature in info["features"].items() if name not in OWN}
    info["features"]["action"]["names"] = ["x", "y", "gripper"]
    (root / reader.INFO).write_text(json.dumps(info))
    return root


def describe(root, **mapping):
    (root / reader.MAPPING).write_text(json.dumps({"image_size": None} | mapping))
    return root


COMMANDS = {"close": -1, "hold": 0, "open": 1}


@reading
def test_what_is_written_is_read_again(source):
    """Bit for bit, but the pictures, which are closer to their own frame than to any other."""
    wanted = read_demos(source / "demos.pkl", "front", LEARNED)
    got = read_demos(source / "own", "front", LEARNED)
    assert np.array_equal(wanted.episode_ids, got.episode_ids) and got.image_shapes == wanted.image_shapes
    for a, b in zip(wanted.transitions, got.transitions, strict=True):
        assert all(a[key] == b[key] for key in ("rewards", "dones", "masks", "grasp_penalty"))
        assert np.array_equal(a["actions"], b["actions"])
        for key in ("observations", "next_observations"):
            assert np.array_equal(a[key]["state"], b[key]["state"])
            assert np.abs(a[key]["front"].astype(int) - b[key]["front"]).mean() < 3
    shown = [w.removeprefix(str(source / "own")) for w in got.warnings]
    assert shown == [w.removeprefix(str(source / "demos.pkl")) for w in wanted.warnings]


@reading
def test_a_runs_episodes_are_written(tmp_path):
    for number in range(2):
        episode = EpisodeWriter(tmp_path / "run", ["image", "state"])
        obs = [{"image": picture(number, i, (33, 31)), "state": np.ones(2, np.float32) * i} for i in range(4)]
        episode.start(number, obs[0])
        for i in range(3):
            episode.add(
                {
                    "actions": np.full(6, 0.1 * (i + 1), np.float32),
                    "rewards": float(i == 2 and number == 0),
                    "dones": i == 2,
                    "masks": float(i < 2 or number == 1),
                    "grasp_penalty": 0.0,
                    "corrected": i == 1,
                },
                obs[i + 1],
            )
    options = ["--run_dir", str(tmp_path / "run"), "--fps", "10", "--output_dir", str(tmp_path / "set")]
    assert lerobot_writer.main(options) == 0
    demos = read_demos(tmp_path / "set", "image", FIXED)
    assert [t["masks"] for t in demos.transitions] == [1, 1, 0, 1, 1, 1] and demos.image_shapes["image"] == (33, 31, 3)
    assert [t["dones"] for t in demos.transitions] == [False, False, True] * 2
    assert demos.transitions[-1]["next_observations"]["state"][0] == 3


@reading
def test_a_dataset_of_others(foreign):
    """Without this project's columns: the last step's result was not recorded; success ends the episode."""
    demos = read_demos(describe(foreign, gripper=COMMANDS), "front", LEARNED)
    wanted = transitions()
    assert len(demos.transitions) == len(wanted) and demos.state_dim == 3
    for got, want in zip(demos.transitions, wanted):
        assert np.array_equal(got["actions"], want["actions"]) and got["masks"] == want["masks"]
        assert np.array_equal(got["observations"]["state"], want["observations"]["state"])
        assert np.abs(got["observations"]["front"].astype(int) - want["observations"]["front"]).mean() < 3
    default = read_demos(describe(foreign, gripper=COMMANDS, image_size=128), "front", LEARNED)
    assert default.image_shapes == {"front": (128, 128, 3)}


@reading
def test_without_rewards_every_episode_ends_well(foreign):
    info = json.loads((foreign / reader.INFO).read_text())
    del info["features"]["next.reward"]
    (foreign / reader.INFO).write_text(json.dumps(info))
    demos = read_demos(describe(foreign, gripper=COMMANDS), "front", LEARNED)
    assert sum(t["rewards"] for t in demos.transitions) == EPISODES
    assert "no next.reward: every episode counts as a success at its end" in demos.warnings[0]


@reading
@pytest.mark.parametrize("combine, first", [("mean", 0.15), ("sum", 0.45), ("last", 0.25)])
def test_subsampling(combine, first, foreign):
    """30 frames a second to 10: 3, 3 and 1 steps; the first one's picture, rewards summed, the gripper's command."""
    mapping = {"gripper": COMMANDS, "control_hz": 10, "combine": combine, "low": [-2, -2], "high": [2, 2]}
    demos = read_demos(describe(foreign, **mapping), "front", LEARNED)
    part = demos.transitions[:3]
    assert len(demos.transitions) == 3 * EPISODES and part[0]["actions"][0] == pytest.approx(first / 2)
    assert [t["rewards"] for t in part] == [0, 0, 1] and [t["actions"][2] for t in part] == [1, 1, -1]
    wanted = [transitions()[i]["observations"] for i in (0, 3, 6)]
    for got, want in zip(part, wanted):
        assert np.array_equal(got["observations"]["state"], want["state"])
        assert np.abs(got["observations"]["front"].astype(int) - want["front"]).mean() < 3
    assert np.array_equal(part[0]["next_observations"]["state"], wanted[1]["state"])


@reading
def test_after_a_subsampled_success_stands_the_last_frame(foreign):
    """Not the frame before the last control step's action: that step took several of the dataset's frames."""
    mapping = {"gripper": COMMANDS, "combine": "mean", "control_hz": 15}  # 2, 2, 2 and 1 steps
    ends = [t for t in read_demos(describe(foreign, **mapping), "front", LEARNED).transitions if t["dones"]]
    assert all(np.array_equal(t["next_observations"]["state"], t["observations"]["state"]) for t in ends)
    mapping["control_hz"] = 5  # 6 and 1
    assert len(read_demos(describe(foreign, **mapping), "front", LEARNED).transitions) == 2 * EPISODES
    mapping["control_hz"] = 6  # 5 and 2: the last control step has two frames
    last = read_demos(describe(foreign, **mapping), "front", LEARNED).transitions[1]
    wanted = [transitions()[i]["observations"]["state"] for i in (5, 6)]
    assert np.array_equal([last["observations"]["state"], last["next_observations"]["state"]], wanted)


@reading
def test_entries_ranges_and_names(foreign):
    mapping = {
        "cameras": {"top": "observation.images.front"},
        "state": ["observation.state", "next.reward"],
        "entries": ["y", 0, "gripper"],
        "low": [-0.4, 0.0],
        "high": [0.0, 1.0],
        "gripper": COMMANDS,
    }
    demos = read_demos(describe(foreign, **mapping), "top", LEARNED)
    assert demos.state_dim == 4 and demos.transitions[0]["actions"] == pytest.approx([0.0, -0.9, -1.0], abs=1e-6)


@reading
def test_gripper_conventions(foreign):
    """The file's -1, 0, 1 taken for other conventions: the other way round, and for positions."""
    turned = read_demos(describe(foreign, gripper={"close": 1, "hold": 0, "open": -1}), "front", LEARNED)
    assert [t["actions"][2] for t in turned.transitions[:4]] == [1, 0, -1, 1]
    positions = read_demos(describe(foreign, gripper={"closed": -1, "open": 1.5}), "front", LEARNED)
    assert [t["actions"][2] for t in positions.transitions[:8]] == [0, 0, 1, -1, 0, 1, -1, 0]


@reading
@pytest.mark.parametrize(
    "mapping, message",
    [
        (
            {},
            'gripper: got no convention, wanted what closes and what opens it; write into pytorch_serl.json {"gripper"',
        ),
        ({"gripper": {"close": 0, "hold": 1, "open": 2}}, "gripper: got -1, wanted one of"),
        ({"gripper": COMMANDS, "action": "actoin"}, "actoin: got the columns"),
        ({"gripper": COMMANDS, "entries": ["x", "z"]}, "wanted entries among"),
        ({"gripper": COMMANDS, "low": [0], "high": [1]}, "low, high: got"),
        ({"gripper": COMMANDS, "control_hz": 7}, "control_hz: got 7, wanted a whole fraction of the 30 frames"),
        ({"gripper": COMMANDS, "control_hz": 10}, "say in pytorch_serl.json mean for velocities"),
        ({"gripper": COMMANDS, "cameras": {"front": "observation.images.side"}}, "camera 'front': got the features"),
        ({"colour": 1}, "pytorch_serl.json: got the entry 'colour', wanted some of"),
        ({"state": "observation.state"}, "pytorch_serl.json: state: got str"),
        ({"state": [["observation.state"]]}, "pytorch_serl.json: state: got list ['observation.state'] in it"),
        ({"low": ["a"]}, "pytorch_serl.json: low: got str 'a' in it, wanted int or float"),
        ({"cameras": {"front": 1}}, "pytorch_serl.json: cameras: got int 1 in it, wanted str"),
        ({"image_size": 0}, "pytorch_serl.json: image_size: got 0"),
        ({"gripper": {"close": "zero", "open": 1}}, "wanted what closes and what opens it"),
    ],
)
def test_what_the_mapping_gets_wrong_is_named(mapping, message, foreign):
    with pytest.raises(DataError, match="foreign: ") as error:
        read_demos(describe(foreign, **mapping), "front", LEARNED)
    assert message in str(error.value)


@reading
def test_damaged_and_older_datasets_are_named(foreign):
    describe(foreign, gripper=COMMANDS)
    video = foreign / "videos/observation.images.front/chunk-000/file-001.mp4"
    video.write_bytes(b"nothing")
    with pytest.raises(DataError, match="file-001.mp4: got"):
        read_demos(foreign, "front", LEARNED)
    info = json.loads((foreign / reader.INFO).read_text())
    (foreign / reader.INFO).write_text(json.dumps(info | {"codebase_version": "v2.1"}))
    with pytest.raises(DataError, match="codebase_version: got v2.1, wanted v3.x"):
        read_demos(foreign, "front", LEARNED)


@reading
def test_the_writer_refuses(source, tmp_path, capsys):
    options = ["--demo_paths", str(source / "demos.pkl"), "--fps", "10", "--output_dir"]
    assert lerobot_writer.main([*options, str(source / "own")]) == 2
    assert "own exists" in capsys.readouterr().err
    demos = transitions()
    demos[2]["next_observations"] = demos[0]["observations"]
    (tmp_path / "leap.pkl").write_bytes(pickle.dumps(demos))
    options = ["--demo_paths", str(tmp_path / "leap.pkl"), "--fps", "10", "--output_dir", str(tmp_path / "set")]
    assert lerobot_writer.main(options) == 2
    assert "transition 2: next_observations: got another picture or state" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["leap.pkl"]
    for change in ({"state": np.zeros(3, np.float32)}, {"side": demos[0]["observations"]["front"]}):
        other = [t | {k: t[k] | change for k in ("observations", "next_observations")} for t in transitions()]
        for key in ("observations", "next_observations"):
            for transition in other if "state" in change else ():
                transition[key] = {"front": transition[key]["front"]}
        (tmp_path / "other.pkl").write_bytes(pickle.dumps(other))
        assert (
            lerobot_writer.main([options[0], str(source / "demos.pkl"), str(tmp_path / "other.pkl"), *options[2:]]) == 2
        )
        assert "other.pkl" in (error := capsys.readouterr().err) and "wanted ['front', 'state'], as before" in error
    (tmp_path / "other.pkl").unlink()
    (tmp_path / "leap.pkl").write_bytes(pickle.dumps([demos[0], {}]))
    assert lerobot_writer.main(options) == 2 and "transition 1: observations: got no keys" in capsys.readouterr().err


@reading
def test_penalties_are_written_wherever_the_first_is(tmp_path):
    demos = transitions()
    for transition in demos:
        transition.pop("grasp_penalty", None)
    demos[4]["grasp_penalty"] = -0.02
    (tmp_path / "demos.pkl").write_bytes(pickle.dumps(demos))
    options = ["--demo_paths", str(tmp_path / "demos.pkl"), "--fps", str(FPS), "--output_dir", str(tmp_path / "set")]
    assert lerobot_writer.main(options) == 0
    got = read_demos(tmp_path / "set", "front", LEARNED).transitions
    assert [t["grasp_penalty"] for t in got] == [-0.02 * (i == 4) for i in range(len(got))]


@reading
def test_a_depth_camera_is_left_out(tmp_path, capsys):
    """It stands in no video; that is said, and the others are written."""
    demos = transitions()
    for t in demos:
        for key in ("observations", "next_observations"):
            t[key] = t[key] | {"depth": np.ones((48, 64, 1), np.float32), "side": t[key]["front"]}
    (tmp_path / "demos.pkl").write_bytes(pickle.dumps(demos))
    options = ["--demo_paths", str(tmp_path / "demos.pkl"), "--fps", str(FPS), "--output_dir"]
    for more, cameras in (([], ["front", "side"]), (["--image_keys", "side"], ["side"])):
        root = tmp_path / cameras[0]
        assert lerobot_writer.main([*options, str(root), *more]) == 0
        assert sorted(json.loads((root / reader.MAPPING).read_text())["cameras"]) == cameras
        assert ("'depth' is left out: float32 array of shape (48, 64, 1)" in capsys.readouterr().out) == (not more)
    assert lerobot_writer.main([*options, str(tmp_path / "none"), "--image_keys", "depth"]) == 2
    assert "observations['depth']: got float32 array" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        lerobot_writer.main([*options, str(tmp_path / "none"), "--image_keys", "side", "--run_dir", str(tmp_path)])


def test_without_the_packages_the_error_says_what_to_install(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "meta").mkdir()
    (tmp_path / reader.INFO).write_text("{}")
    with pytest.raises(ValueError, match="pip install -r requirements/lerobot-data.txt"):
        read_demos(tmp_path, "front", FIXED)
    demos = make_demos(tmp_path / "demos.pkl")
    options = ["--demo_paths", str(demos), "--fps", "10", "--output_dir", str(tmp_path / "set")]
    assert lerobot_writer.main(options) == 2 and "requirements/lerobot-data.txt" in capsys.readouterr().err


def test_resizing_is_the_encoders():
    image = picture(1, 2, (150, 200))
    encoder = ResNet10().preprocess
    import torch

    difference = encoder(torch.from_numpy(image)[None]) - encoder(torch.from_numpy(resized(image, 128))[None])
    assert difference.abs().max() < 0.51 / 255 / 0.22  # half a grey level


@pytest.mark.parametrize(
    "names, wanted",
    [
        (["x", "y", "gripper"], ["x", "y", "gripper"]),
        ({"y": 1, "gripper": 2, "x": 0}, ["x", "y", "gripper"]),
        ({"x": 0, "gripper": 2.0}, ["x", "", "gripper"]),
        ({"motors": ["x", "y"], "hand": ["gripper"]}, ["x", "y", "gripper"]),
        ({"arm": {"y": 1, "x": 0}, "hand": ["gripper"]}, ["x", "y", "gripper"]),
        ([["x", "y"], "gripper"], ["x", "y", "gripper"]),
        ("x", ["x"]),
        (None, []),
        (7, []),
    ],
)
def test_names_of_entries(names, wanted):
    assert reader.entry_names(names) == wanted


def edit_info(root, edit):
    info = json.loads((root / reader.INFO).read_text())
    edit(info)
    (root / reader.INFO).write_text(json.dumps(info))


def edit_table(root, folder, edit):
    import pyarrow as pa
    from pyarrow import parquet

    path = root / folder / "chunk-000/file-000.parquet"
    rows = parquet.read_table(path).to_pylist()
    parquet.write_table(pa.Table.from_pylist(edit(rows) or rows), path)


@reading
@pytest.mark.parametrize("names", [{"y": 1, "gripper": 2, "x": 0}, {"motors": ["x", "y"], "hand": {"gripper": 0}}])
def test_names_as_others_write_them(names, foreign):
    edit_info(foreign, lambda info: info["features"]["action"].update(names=names))
    demos = read_demos(describe(foreign, gripper=COMMANDS, entries=["y", "x", "gripper"]), "front", LEARNED)
    assert demos.transitions[0]["actions"] == pytest.approx([-0.2, 0.05, -1])
    with pytest.raises(DataError, match="foreign: entries: got .*'z'.*, wanted entries among"):
        read_demos(describe(foreign, gripper=COMMANDS, entries=["z"]), "front", LEARNED)


@reading
@pytest.mark.parametrize("gripper", [COMMANDS, {"closed": -1, "open": 1.5}])
def test_a_gripper_without_a_number_closes_nothing(gripper, foreign):
    edit_table(foreign, "data", lambda rows: rows[9].update(action=[0.1, 0.1, float("nan")]))
    with pytest.raises(DataError, match="foreign: transition 9: gripper: got nan, wanted a finite number"):
        read_demos(describe(foreign, gripper=gripper), "front", LEARNED)


@reading
def test_several_tasks_are_said_to_be_read_as_one(foreign):
    edit_table(foreign, "data", lambda rows: [row | {"task_index": row["episode_index"]} for row in rows])
    demos = read_demos(describe(foreign, gripper=COMMANDS), "front", LEARNED)
    assert "3 tasks (task_index), read as one" in demos.warnings[0]


@reading
@pytest.mark.parametrize("range_, wanted", [({}, "-1 to 1"), ({"low": [-2, -2], "high": [2, 2]}, "-2 to 2")])
def test_an_action_out_of_range_is_named_with_the_range(range_, wanted, foreign):
    """By its row in the table: the number of the transition is another one after subsampling."""
    edit_table(foreign, "data", lambda rows: rows[10].update(action=[0.1, 7.5, 0.0]))
    mapping = {"gripper": COMMANDS, "control_hz": 15, "combine": "last"} | range_
    message = f"foreign: row 9: action, entry 1: got 7.5, wanted {wanted}; give low and high .* in pytorch_serl.json"
    with pytest.raises(DataError, match=message):
        read_demos(describe(foreign, **mapping), "front", LEARNED)


@reading
def test_success_is_read_where_rewards_were_never_written(foreign):
    def of_success(rows):
        return [row | {"next.reward": 0.0, "next.success": row["next.reward"] > 0} for row in rows]

    edit_table(foreign, "data", of_success)
    edit_info(foreign, lambda info: info["features"].update({"next.success": {"dtype": "bool", "shape": [1]}}))
    demos = read_demos(describe(foreign, gripper=COMMANDS), "front", LEARNED)
    assert sum(t["rewards"] for t in demos.transitions) == EPISODES and demos.transitions[LENGTH - 1]["masks"] == 0
    assert "next.reward is 0 throughout: next.success is read instead" in demos.warnings[0]


@reading
def test_a_camera_that_the_mapping_does_not_name_has_its_own_name(foreign):
    mapping = {"gripper": COMMANDS, "cameras": {"top": "observation.images.front"}}
    demos = read_demos(describe(foreign, **mapping), ["top", "front"], LEARNED)
    assert np.array_equal(*(demos.transitions[3]["observations"][key] for key in ("top", "front")))


@reading
def test_a_mask_of_others_means_something_else(foreign):
    """Without `final` beside it, it is no column of this project."""
    edit_table(foreign, "data", lambda rows: [row | {"mask": 1.0} for row in rows])
    edit_info(foreign, lambda info: info["features"].update(mask={"dtype": "float32", "shape": [1]}))
    demos = read_demos(describe(foreign, gripper=COMMANDS), "front", LEARNED)
    assert [t["masks"] for t in demos.transitions[:LENGTH]] == [1] * (LENGTH - 1) + [0]


@reading
def test_a_column_that_nobody_reads_may_hold_anything(foreign):
    ragged = [[0.0], [0.0, 1.0], None]
    edit_table(foreign, "data", lambda rows: [row | {"touch": ragged[i % 3]} for i, row in enumerate(rows)])
    edit_info(foreign, lambda info: info["features"].update(touch={"dtype": "float32", "shape": [2]}))
    assert len(read_demos(describe(foreign, gripper=COMMANDS), "front", LEARNED).transitions) == EPISODES * LENGTH
    with pytest.raises(DataError, match="transition 1: episode 0: touch: got list"):
        read_demos(describe(foreign, gripper=COMMANDS, state=["touch"]), "front", LEARNED)


@reading
def test_the_number_of_entries_is_checked_before_the_gripper_is_asked_for(foreign):
    with pytest.raises(DataError, match="actions: got 3 entries, wanted an even number for dual-arm-learned-gripper"):
        read_demos(describe(foreign), "front", "dual-arm-learned-gripper")


VIDEO = "videos/observation.images.front/"


@reading
@pytest.mark.parametrize(
    "folder, edit, message",
    [
        (
            "data",
            lambda rows: [r for r in rows if r["episode_index"] != 1],
            "episode 1: got 0 frames in data, wanted 7",
        ),
        ("data", lambda rows: rows[:-1], "episode 2: got 6 frames in data, wanted 7"),
        ("data", lambda rows: rows[3].update(action=None), "transition 3: episode 0: action: got None"),
        ("data", lambda rows: rows[9].update(action=[0.1]), "transition 9: episode 1: action: got list [0.1]"),
        ("data", lambda rows: [r.pop("action") for r in rows] and rows, "data: got No match for FieldRef.Name(action)"),
        ("meta/episodes", lambda rows: rows[:-1], "episode 2: got frames in data, no row in meta/episodes"),
        ("meta/episodes", lambda rows: rows + rows[:1], "episode 0: got 2 rows in meta/episodes"),
        ("meta/episodes", lambda rows: rows[1].update(episode_index=None), "row 1: episode_index: got None"),
        (
            "meta/episodes",
            lambda rows: rows[1].update({VIDEO + "chunk_index": None}),
            "episode 1: " + VIDEO + "chunk_index: got None, wanted a number",
        ),
        (
            "meta/episodes",
            lambda rows: [r.pop(VIDEO + "file_index") for r in rows] and rows,
            "episode 0: " + VIDEO + "file_index: got nothing",
        ),
        (
            "meta/episodes",
            lambda rows: rows[2].update({VIDEO + "from_timestamp": None}),
            "episode 2: " + VIDEO + "from_timestamp: got None",
        ),
        (
            "meta/episodes",
            lambda rows: rows[2].update(dataset_from_index=None),
            "episode 2: dataset_from_index: got None",
        ),
    ],
)
def test_what_an_episode_lacks_is_one_line_with_its_number(folder, edit, message, foreign):
    edit_table(foreign, folder, edit)
    with pytest.raises(DataError, match="foreign: ") as error:
        read_demos(describe(foreign, gripper=COMMANDS), "front", LEARNED)
    assert message in str(error.value).replace(f"{foreign}: ", "") and "\n" not in str(error.value)


@reading
@pytest.mark.parametrize("key, value", [("fps", None), ("features", []), ("features", {"a": 1}), ("video_path", None)])
def test_what_the_dataset_lacks_is_one_line(key, value, foreign):
    edit_info(foreign, lambda info: info.update({key: value}))
    with pytest.raises(DataError, match=f"foreign: meta/info.json: {key}: got "):
        read_demos(describe(foreign, gripper=COMMANDS), "front", LEARNED)


@reading
def test_an_episode_of_one_frame_has_no_step(foreign):
    def shorten(rows):
        return [row for row in rows if row["episode_index"] != 2 or row["frame_index"] == 0]

    edit_table(foreign, "data", shorten)
    edit_table(foreign, "meta/episodes", lambda rows: rows[2].update(dataset_to_index=2 * LENGTH + 1))
    demos = read_demos(describe(foreign, gripper=COMMANDS), "front", LEARNED)
    assert len(demos.transitions) == 2 * LENGTH
    assert any("episode 2 has one frame and no step; it is left out" in text for text in demos.warnings)


@reading
def test_side_files_beside_the_tables_are_passed_over(foreign):
    for folder in ("data", "meta/episodes"):
        content = (foreign / folder / "chunk-000/file-000.parquet").read_bytes()
        (foreign / folder / "chunk-000/._file-000.parquet").write_bytes(b"\0\5\26\7")
        (foreign / folder / "chunk-000/file-000 (1).parquet").write_bytes(content)
        (foreign / folder / ".cache").mkdir()
        (foreign / folder / ".cache/file-001.parquet").write_bytes(b"nothing")
    demos = read_demos(describe(foreign, gripper=COMMANDS), "front", LEARNED)
    assert len(demos.transitions) == EPISODES * LENGTH


@reading
def test_costs_a_step_in_a_dataset(foreign):
    """-1 a step, 0 at the goal: the goal ends the episode, and its step is kept."""
    edit_table(foreign, "data", lambda rows: [r | {"next.reward": r["next.reward"] - 1} for r in rows])
    demos = read_demos(describe(foreign, gripper=COMMANDS), "front", LEARNED)
    assert len(demos.transitions) == EPISODES * LENGTH and "3 successful" in demos.summary()
    assert [t["masks"] for t in demos.transitions[:LENGTH]] == [1] * (LENGTH - 1) + [0]
