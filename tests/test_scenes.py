"""What was recorded together is held out together: the classifier's validation on recordings of several kinds.

The pixel in the corner of every frame tells the scene, so that a test knows it; the product does not look there.
"""

import datetime
import pickle

import numpy as np
import pytest

from pytorch_serl.data.frames import read_classifier_frames, split_by_group

SIDE = 6


def frame(rng, number, /, **extra):
    image = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    image[0, 0] = number
    return {"observations": {"image": image}, **extra}


def write(path, frames):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(frames))


def parts_of(root, seed=0, share=0.2):
    """Scenes of training and validation by class, and the text; both classes are on both sides."""
    frames = read_classifier_frames(root / "success", root / "failure", ["image"])
    train, val, text = split_by_group(frames, share, seed)
    assert sorted([*train, *val]) == list(range(len(frames.labels)))
    assert set(frames.labels[train]) == set(frames.labels[val]) == {0, 1}
    scene = frames.images["image"][:, 0, 0, 0]
    return set(scene[train].tolist()), set(scene[val].tolist()), text


def assert_no_leak(root, *words, seeds=4, without="cannot be paired"):
    held = set()
    for seed in range(seeds):
        train, val, text = parts_of(root, seed)
        assert not train & val, (train, val, text)
        assert all(word in text for word in words) and without not in text, text
        held.add(frozenset(val))
    assert len(held) > 1  # the seed decides


NAMES = {
    "same": ("{:03d}.pkl", "{:03d}.pkl"),
    "class in front": ("success_{}.pkl", "failure_{}.pkl"),
    "class in the middle": ("episode_{}_succ_front.pkl", "episode_{}_fail_front.pkl"),
    "folders": ("monday/run/{}.pkl", "monday/run/{}.pkl"),
    "numbers": ("goal_{}.pkl", "miss_{:02d}.pkl"),
    "time stamps": ("a_30_success_images_2024-01-23_15-06-{:02d}.pkl", "a_failure_images_2024-01-23_15-06-{:02d}.pkl"),
    "numbers and other time stamps": ("{}_2024-01-23_15-06-18.pkl", "{}_2024-01-23_15-09-44.pkl"),
}


@pytest.mark.parametrize("kind", NAMES)
def test_files_of_one_name(tmp_path, kind):
    """Also where the classes have other numbers of files, and scenes are in one class only."""
    rng = np.random.default_rng(0)
    for scene in range(12):
        names = [name.format(scene) for name in NAMES[kind]]
        if scene != 3:
            write(tmp_path / "success" / names[0], [frame(rng, scene) for _ in range(3)])
        if scene not in (5, 6):
            write(tmp_path / "failure" / names[1], [frame(rng, scene) for _ in range(2 + scene % 4)])
    assert_no_leak(tmp_path, "success by file,", "name" if kind in ("same", "folders") else "", "failures only")


def test_other_files_are_passed_over(tmp_path):
    rng = np.random.default_rng(0)
    for label in ("success", "failure"):
        for scene in range(3):
            write(tmp_path / label / f"{scene}.pkl", [frame(rng, scene)] * 2)
        (tmp_path / label / "._0.pkl").write_bytes(b"a Mac's")
        write(tmp_path / label / ".trash" / "0.pkl", [frame(rng, 9)])
    frames = read_classifier_frames(tmp_path / "success", tmp_path / "failure", ["image"])
    assert len(frames.file_names) == 6
    inside = read_classifier_frames(tmp_path, tmp_path / "failure", ["image"])  # one folder in the other
    assert inside.file_names == frames.file_names


def one_file_each(root, rng, scenes=10, length=(3, 5), last=lambda scene, row: {}, order=None):
    """Both classes in one file each; `last(scene, row)` gives entries of a frame, row -1 the last of its scene."""
    for label, count in zip(("success", "failure"), length):
        rows = [(scene, row if row < count - 1 else -1) for scene in range(scenes) for row in range(count)]
        frames = [frame(rng, scene, **last(scene, row)) for scene, row in rows]
        write(root / label / f"{label}_data.pkl", [frames[i] for i in order(len(frames))] if order else frames)


@pytest.mark.parametrize("where", ["top", "infos", "text", "numpy"])
def test_scene_numbers(tmp_path, where):
    rng = np.random.default_rng(0)
    entry = {
        "top": lambda scene, row: {"scene": scene},
        "infos": lambda scene, row: {"infos": {"scene": scene, "succeed": True}},
        "text": lambda scene, row: {"scene": f"kitchen {scene}"},
        "numpy": lambda scene, row: {"scene": np.array([scene])},
    }[where]
    one_file_each(tmp_path, rng, last=entry, order=rng.permutation)
    assert_no_leak(tmp_path, "success by scene, 6 of 30", "failure by scene, 10 of 50", "scene number; 2 of 10 scenes")


def test_scene_numbers_go_before_names(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(8):
        write(tmp_path / "success" / f"{number}.pkl", [frame(rng, number, scene=number)] * 3)
        write(tmp_path / "failure" / f"{number}.pkl", [frame(rng, 7 - number, scene=7 - number)] * 3)
    assert_no_leak(tmp_path, "scene number; 2 of 8")


def test_one_scene_number_for_everything_says_nothing(tmp_path):
    rng = np.random.default_rng(0)
    for label in ("success", "failure"):
        for number in range(8):
            write(tmp_path / label / f"{number}.pkl", [frame(rng, number, scene=0) for _ in range(3)])
    assert_no_leak(tmp_path, "success by file,", "file name")


def test_scenes_of_one_class_each_are_a_warning(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(6):
        write(tmp_path / "success" / f"{number}.pkl", [frame(rng, number, scene=number)] * 3)
        write(tmp_path / "failure" / f"{number}.pkl", [frame(rng, 50 + number, scene=50 + number)] * 3)
    assert "warning: no scene is in both classes" in parts_of(tmp_path)[2]


def test_one_file_of_many_episodes_each(tmp_path):
    rng = np.random.default_rng(0)
    one_file_each(tmp_path, rng, last=lambda scene, row: {"dones": row == -1})
    assert_no_leak(
        tmp_path, "success by episode, 6 of 30", "failure by episode, 10 of 50", "same stretch of both files"
    )


def test_one_file_each_without_ends_of_episodes(tmp_path):
    one_file_each(tmp_path, np.random.default_rng(0), scenes=20, length=(10, 30))
    for seed in range(5):
        train, val, text = parts_of(tmp_path, seed)
        assert not train & val and len(val) == 4, (train, val)  # the same numbers of frames in every scene
        assert "success by contiguous block" in text and "same stretch of both files, by position" in text


def test_other_numbers_of_episodes_are_the_same_stretch(tmp_path):
    rng = np.random.default_rng(0)
    for label, scenes in (("success", range(0, 40, 2)), ("failure", range(40))):
        write(tmp_path / label / "all.pkl", [frame(rng, s, dones=i == 2) for s in scenes for i in range(3)])
    for seed in range(5):
        train, val, text = parts_of(tmp_path, seed)
        assert len(train & val) <= 2, (train, val)
        assert "success by episode" in text and "by position" in text


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
def test_any_share_leaves_something_of_both(tmp_path, share):
    rng = np.random.default_rng(0)
    one_file_each(tmp_path / "stretch", rng, scenes=3, last=lambda scene, row: {"dones": row == -1})
    one_file_each(tmp_path / "scenes", rng, scenes=3, last=lambda scene, row: {"scene": scene})
    for name in ("stretch", "scenes"):
        train, val, _ = parts_of(tmp_path / name, share=share)
        assert not train & val and len(val) == (2 if share == 0.9 else 1) or share == 0.5


def start_and_goal(rng, scene, clock=None, start=None):
    """Failure frames and success frames of an episode, with a frame in common, or a time each."""
    way = [frame(rng, scene) for _ in range(4)]
    goal = [frame(rng, scene) for _ in range(3)]
    if start is not None:
        way[0] = start
    if clock is None:
        goal.append(way[-1])
    for number, item in enumerate(way + goal if clock else []):
        item["infos"] = {"timestamp": clock(scene, number)}
    return goal, way


CLOCKS = {
    "seconds": lambda scene, number: 1.7e9 + 60 * scene + 0.1 * number,
    "steps": lambda scene, number: np.int64(500 * scene + number),
    "text": lambda scene, number: str(datetime.datetime(2024, 5, 1, 12, scene, number)),
}


@pytest.mark.parametrize("sign", ["frames", *CLOCKS])
@pytest.mark.parametrize("files", ["each", "one"])
def test_episodes_that_share_frames_or_times(tmp_path, sign, files):
    """Whatever their files are called, and in whichever order they lie."""
    rng = np.random.default_rng(0)
    episodes = [start_and_goal(rng, scene, CLOCKS.get(sign)) for scene in range(12)]
    for label, order in (("success", rng.permutation(12)), ("failure", rng.permutation(12))):
        frames = [episodes[scene][label == "failure"] for scene in order]
        for items in frames:
            items[-1] = items[-1] | {"dones": True}
        if files == "one":
            write(tmp_path / label / "all.pkl", sum(frames, []))
        for number, items in enumerate(frames) if files == "each" else ():
            write(tmp_path / label / f"{label[0]}{'abcdefghijkl'[number]}.pkl", items)
    rule = "shared frames" if sign == "frames" else "shared times"
    assert_no_leak(tmp_path, rule, "2 of 12 scenes", "by file" if files == "each" else "by episode")


@pytest.mark.parametrize("sign", ["start", "clock"])
def test_what_all_episodes_share_says_nothing(tmp_path, sign):
    """A first frame that is always the same, a clock that starts anew: same-named files stay the rule."""
    rng = np.random.default_rng(0)
    clock = (lambda scene, number: 0.1 * number) if sign == "clock" else None
    for scene in range(6):
        goal, way = start_and_goal(rng, scene, clock, start=frame(np.random.default_rng(9), 250))
        write(tmp_path / "success" / f"{scene}.pkl", goal[:3])
        write(tmp_path / "failure" / f"{scene}.pkl", way)
    train, val, text = parts_of(tmp_path)
    assert (train & val) <= {250} and "1 of 6 scenes" in text and "shared" not in text, text


@pytest.mark.parametrize("sessions", [1, 3])
def test_hil_serls_own_recordings(tmp_path, sessions):
    """One pickle per class and session; whole transitions; `dones` only in the file in which the episode ended."""
    rng = np.random.default_rng(0)
    scene = 0
    for session in range(sessions):
        successes, failures = [], []
        for episode in range(9):
            steps = int(rng.integers(4, 9))
            images = [frame(rng, scene)["observations"]["image"][None] for _ in range(steps + 1)]
            for step in range(steps):
                done = step == steps - 1
                item = dict(observations={"image": images[step], "state": np.zeros((1, 7))}, actions=np.zeros(7))
                item |= dict(next_observations={"image": images[step + 1], "state": np.zeros((1, 7))}, rewards=0)
                reached = step >= steps - 2 and episode % 3 != 2  # two of three succeed
                (successes if reached else failures).append(item | dict(masks=1.0 - done, dones=done))
            scene += 1
        stamp = f"2024-10-0{session + 1}_11-02-33"
        write(tmp_path / "success" / f"usb_200_success_images_{stamp}.pkl", successes)
        write(tmp_path / "failure" / f"usb_failure_images_{stamp}.pkl", failures)
    if sessions == 1:
        assert_no_leak(
            tmp_path, "success by episode", "shared frames; 2 of 9 scenes are held out, 3 have failures only"
        )
    else:
        assert_no_leak(tmp_path, "success by file", "time stamp of the files", "1 of 3 scenes", seeds=8)


def test_classes_that_cannot_be_paired_are_said(tmp_path):
    rng = np.random.default_rng(0)
    for number, letter in enumerate("abcdefghij"):
        write(tmp_path / "success" / f"s{letter}.pkl", [frame(rng, number) for _ in range(3)])
        write(tmp_path / "failure" / f"f{letter}.pkl", [frame(rng, number) for _ in range(5)])
    train, val, text = parts_of(tmp_path)
    assert "warning: success and failure frames cannot be paired" in text and "figures mean little" in text
    assert not train & val  # the same stretch of both, in the order of their names
    copy = read_classifier_frames(tmp_path / "success", tmp_path / "failure", ["image"])
    (tmp_path / "success" / "sj.pkl").rename(tmp_path / "success" / "t.pkl")
    again = read_classifier_frames(tmp_path / "success", tmp_path / "failure", ["image"])
    assert np.array_equal(split_by_group(copy, 0.2, 1)[1], split_by_group(again, 0.2, 1)[1])


def test_copies_of_a_file_stay_together(tmp_path):
    rng = np.random.default_rng(0)
    for scene in range(6):
        frames = [frame(rng, scene) for _ in range(3)]
        for name in (f"{scene}.pkl", f"{scene} (1).pkl"):
            write(tmp_path / "success" / name, frames)
        write(tmp_path / "failure" / f"{scene}.pkl", [frame(rng, scene) for _ in range(3)])
    assert_no_leak(tmp_path, "file name and shared frames; 1 of 6 scenes")


@pytest.mark.parametrize("value", [{}, None, [1, 2], float("nan"), np.zeros((2, 2)), "soon", True])
def test_unknown_marks_are_ignored(tmp_path, value):
    """Other people's entries of these names must not make a file unreadable."""
    rng = np.random.default_rng(0)
    for label in ("success", "failure"):
        for scene in range(4):
            extra = {"scene": value, "time": value, "infos": value, "next_observations": value}
            extra |= {"scene": None} if isinstance(value, str) else {}  # a text can be a scene's name
            write(tmp_path / label / f"{scene}.pkl", [frame(rng, scene, **extra) for _ in range(2)])
    assert_no_leak(tmp_path, "file name; 1 of 4 scenes")
