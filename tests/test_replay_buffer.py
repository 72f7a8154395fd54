"""Replay buffer: every frame describes itself, so that a wrong pairing shows in its pixels."""

import copy
import io
import pickle
import sys
import threading
import time

import numpy as np
import pytest
import torch

from pytorch_serl.agents.sac import SACHybridAgent
from pytorch_serl.data.replay_buffer import FRAME_SLACK, ReplayBuffer, sample_each
from pytorch_serl.networks.resnet import ResNet10

CAMERAS = ("image", "wrist")


def picture(episode, step, camera, shape=(6, 5, 3)):
    """A pattern of its own for every episode, step and camera, which its first pixels name."""
    image = (np.arange(np.prod(shape)) * (1 + step) + 7 * episode + 101 * camera) % 256
    image[:3] = episode, step, camera
    return image.reshape(shape).astype(np.uint8)


def observation(episode, step, cameras=CAMERAS, state=True, shape=(6, 5, 3)):
    obs = {key: picture(episode, step, i, shape) for i, key in enumerate(cameras)}
    return obs | ({"state": np.array([episode, step], np.float32)} if state else {})


def length(episode):
    return 3 + episode % 5


def transition(episode, step, **layout):
    """Odd episodes end at a time limit (mask 1), even ones in success; the numbers name the transition, too."""
    done = step == length(episode) - 1
    return {
        "observations": observation(episode, step, **layout),
        "actions": np.array([episode / 256, step / 256], np.float32),
        "next_observations": observation(episode, step + 1, **layout),
        "rewards": float(done and episode % 2 == 0),
        "masks": 1.0 - float(done and episode % 2 == 0),
        "dones": done,
        "grasp_penalty": -step / 100,
    }


def names(episodes):
    """(episode, step) of whole episodes, in the order of recording."""
    return [(episode, step) for episode in episodes for step in range(length(episode))]


def decode(batch, shape=(6, 5, 3)):
    """(episode, step) of every sample, after checking each of its parts against that name."""
    found = []
    cameras = [key for key in batch["observations"] if key != "state"]
    for i in range(len(batch["actions"])):
        episode, step, _ = (int(x) for x in batch["observations"][cameras[0]][i].flatten()[:3])
        wanted = transition(episode, step, cameras=cameras, state="state" in batch["observations"], shape=shape)
        for group in ("observations", "next_observations"):
            assert batch[group].keys() == wanted[group].keys()
            for key, array in wanted[group].items():
                np.testing.assert_array_equal(batch[group][key][i].numpy(), array, err_msg=f"{group} {key}")
        np.testing.assert_array_equal(batch["actions"][i].numpy(), wanted["actions"])
        for key in ("rewards", "masks", "dones", "grasp_penalty"):
            assert batch[key][i].item() == pytest.approx(float(wanted[key])), key
        found.append((episode, step))
    return found


def fill(buffer, which, **layout):
    for episode, step in which:
        buffer.add(transition(episode, step, **layout))
    return buffer


def held(buffer, **layout):
    """Names of what the buffer holds, oldest first."""
    return [name for batch in buffer.in_order(7) for name in decode(batch, **layout)]


def num_frames(buffer):
    return buffer.export()["counters"][1]


class Reference:
    """The buffer's contract in the plainest form: the newest transitions whose frames fit."""

    def __init__(self, capacity, slots):
        self.capacity, self.slots, self.rows, self.frames, self.last = capacity, slots, [], 0, None

    def add(self, episode, step):
        if self.last != (episode, step):
            self.frames += 1
        self.rows.append(((episode, step), self.frames - 1))
        self.frames, self.last = self.frames + 1, (episode, step + 1)

    def held(self):
        return [name for name, first in self.rows[-self.capacity :] if first >= self.frames - self.slots]


# ---------------------------------------------------------------- pairing


@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("cameras", [("image",), CAMERAS])
@pytest.mark.parametrize("capacity", [1, 7, 20, 1000])
def test_next_observation_is_the_right_one_through_ends_and_wrap_around(capacity, cameras, state):
    buffer, reference = ReplayBuffer(capacity, cameras, seed=1), Reference(capacity, int(capacity * FRAME_SLACK) + 2)
    for i, (episode, step) in enumerate(names(range(30))):
        buffer.add(transition(episode, step, cameras=cameras, state=state))
        reference.add(episode, step)
        assert len(buffer) == len(reference.held()) and buffer.num_added == i + 1
        if i % 5 == 0:
            assert set(decode(buffer.sample(16))) <= set(reference.held())
    assert held(buffer) == reference.held() and num_frames(buffer) == reference.frames


def test_state_only_transitions():
    buffer = ReplayBuffer(10, [])
    fill(buffer, names(range(6)), cameras=())
    batch = buffer.sample(50)
    assert batch["observations"].keys() == {"state"}
    torch.testing.assert_close(
        batch["next_observations"]["state"], batch["observations"]["state"] + torch.tensor([0, 1.0])
    )
    assert set(batch["actions"][:, 0].mul(256).int().tolist()) <= {4, 5} and len(buffer) == 10


def test_bursts_of_interventions_keep_their_own_frames():
    runs = [(0, 0), (0, 1), (2, 1), (2, 2), (2, 4), (3, 3), (4, 4), (4, 5), (4, 2)]  # gaps, ends, an earlier step
    buffer, reference = ReplayBuffer(6, CAMERAS), Reference(6, int(6 * FRAME_SLACK) + 2)
    for episode, step in runs:
        buffer.add(transition(episode, step))
        reference.add(episode, step)
        assert held(buffer) == reference.held()
    assert set(decode(buffer.sample(64))) == set(reference.held())


def test_the_same_pixels_with_another_state_are_another_frame():
    buffer = ReplayBuffer(10, ["image"])
    still = np.full((4, 4, 3), 9, np.uint8)
    for number in range(3):
        step = transition(0, 0) | {
            "observations": {"image": still.copy(), "state": np.array([number, 0], np.float32)},
            "next_observations": {"image": still.copy(), "state": np.array([number, 1], np.float32)},
        }
        buffer.add(step)
    (batch,) = buffer.in_order(8)
    assert num_frames(buffer) == 6
    assert batch["observations"]["state"].tolist() == [[0, 0], [1, 0], [2, 0]]
    assert batch["next_observations"]["state"].tolist() == [[0, 1], [1, 1], [2, 1]]


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 7, 3), (128, 128, 3), (5, 4, 4)])
def test_any_image_size(shape):
    buffer = fill(ReplayBuffer(9, CAMERAS), names(range(4)), shape=shape)
    assert buffer.sample(1)["observations"]["image"].shape == (1, *shape)
    assert held(buffer, shape=shape) == names(range(4))[-len(buffer) :]


def test_an_environment_that_reuses_its_arrays():
    buffer = ReplayBuffer(50, CAMERAS)
    current, following = observation(0, 0), observation(0, 0)
    action = np.zeros(2, np.float32)
    for episode, step in names(range(4)):
        wanted = transition(episode, step)
        for mine, theirs in ((current, wanted["observations"]), (following, wanted["next_observations"])):
            for key in mine:
                mine[key][...] = theirs[key]
        action[:] = wanted["actions"]
        buffer.add(wanted | {"observations": current, "next_observations": following, "actions": action})
    for array in (*current.values(), *following.values(), action):
        array[...] = 0
    assert held(buffer) == names(range(4))


# ---------------------------------------------------------------- stored features


def features(episode, step, views, cameras=CAMERAS):
    """float16 (views, 4, 3): episode, step, camera and view in every row."""
    rows = [[[episode, step, camera + 10 * view]] * 4 for camera in range(len(cameras)) for view in range(views)]
    return dict(zip(cameras, np.array(rows, np.float16).reshape(len(cameras), views, 4, 3)))


def test_views_are_one_per_sample_for_all_cameras():
    buffer = ReplayBuffer(8, CAMERAS, seed=0)
    for episode, step in names(range(5)):
        obs = {"observations": features(episode, step, 3), "next_observations": features(episode, step + 1, 3)}
        buffer.add(transition(episode, step) | obs)
    batch = buffer.sample(300)
    first, second = batch["observations"], batch["next_observations"]
    assert first["image"].shape == (300, 4, 3) and first["image"].dtype == torch.float16
    views = {}
    for name, obs in (("now", first), ("next", second)):
        views[name] = obs["image"][:, 0, 2] // 10
        torch.testing.assert_close(obs["wrist"], obs["image"] + torch.tensor([0, 0, 1.0], dtype=torch.float16))
        assert (obs["image"] == obs["image"][:, :1]).all()
        assert torch.bincount(views[name].long(), minlength=3).min() > 60
    assert (views["now"] != views["next"]).any()  # drawn apart, as crops of images are
    torch.testing.assert_close(second["image"][:, :, :2], first["image"][:, :, :2] + torch.tensor([0, 1.0]).half())
    before = buffer.rng_state()
    ordered = torch.cat([b["observations"]["image"] for b in buffer.in_order(3)])
    assert (ordered[:, :, 2] == 0).all() and buffer.rng_state() == before
    assert [tuple(x) for x in ordered[:, 0, :2].int().tolist()] == names(range(5))[-len(buffer) :]


# ---------------------------------------------------------------- accounting


def test_every_frame_is_stored_once():
    buffer = fill(ReplayBuffer(1000, CAMERAS), names(range(10)))
    assert num_frames(buffer) == sum(length(e) + 1 for e in range(10))
    assert buffer.num_slots == 1000 * FRAME_SLACK + 2 and len(buffer) == len(names(range(10)))


def test_long_episodes_use_the_whole_capacity():
    buffer = ReplayBuffer(20, ["image"])
    for episode in range(3):
        for step in range(30):
            buffer.add(transition(episode, step, cameras=["image"]) | {"dones": step == 29})
            assert len(buffer) == min(20, 30 * episode + step + 1)


def test_sampling_is_uniform_and_repeats_with_its_seed():
    first, second, other = (fill(ReplayBuffer(20, CAMERAS, seed=s), names(range(12))) for s in (3, 3, 4))
    counts = {}
    for _ in range(20):
        drawn = decode(first.sample(100))
        assert drawn == decode(second.sample(100))
        for name in drawn:
            counts[name] = counts.get(name, 0) + 1
    assert decode(other.sample(100)) != drawn
    assert sorted(counts) == sorted(held(first))
    expected = 2000 / len(first)
    assert max(abs(n - expected) for n in counts.values()) < 5 * expected**0.5


def resident_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_is_taken_as_it_fills():
    before = resident_mb()
    buffer = ReplayBuffer(200_000, ["image"])
    obs = {"image": np.ones((128, 128, 3), np.uint8), "state": np.ones(8, np.float32)}
    buffer.allocate(obs, action_dim=7)
    assert 9.8 < buffer.full_size_gb() < 10 and buffer.size_gb() == 0
    for i in range(20):
        frames = [{"image": np.full((128, 128, 3), i + j, np.uint8), "state": obs["state"]} for j in range(2)]
        step = {"observations": frames[0], "next_observations": frames[1], "actions": np.zeros(7, np.float32)}
        buffer.add(step | {"rewards": 0.0, "masks": 1.0, "dones": False})
    assert resident_mb() - before < 20
    assert buffer.size_gb() == pytest.approx(21 * 128 * 128 * 3 / 1e9, rel=0.01)


# ---------------------------------------------------------------- saving


def through_a_file(part):
    file = io.BytesIO()
    torch.save(part, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


def assert_same(a, b):
    for key in a:
        if isinstance(a[key], dict):
            assert_same(a[key], b[key])
        else:
            assert torch.equal(a[key], b[key]), key


@pytest.mark.parametrize("every", [1, 4, 33])  # parts longer than the buffer, too
@pytest.mark.parametrize("capacity", [13, 500])
def test_restored_parts_are_the_same_buffer(capacity, every):
    buffer, parts, counters = ReplayBuffer(capacity, CAMERAS, seed=5), [], (0, 0)
    for i, (episode, step) in enumerate(names(range(20)), 1):
        buffer.add(transition(episode, step))
        if i % every == 0:
            parts.append(through_a_file(buffer.export(counters)))
            counters = parts[-1]["counters"]
    parts.append(through_a_file(buffer.export(counters)))
    if capacity == 500:  # nothing is written twice
        assert sum(len(part["frames"]["image"]) for part in parts) == num_frames(buffer)
        assert sum(len(part["columns"]["reward"]) for part in parts) == len(buffer)
    buffer.sample(10)
    copy = ReplayBuffer(capacity, CAMERAS)
    for part in parts:
        copy.restore(part)
    copy.set_rng_state(buffer.rng_state())
    assert (len(copy), copy.num_added, num_frames(copy)) == (len(buffer), buffer.num_added, num_frames(buffer))
    for episode in range(20, 30):  # and they stay the same
        assert held(copy) == held(buffer)
        assert_same(copy.sample(32), buffer.sample(32))
        for b in (copy, buffer):
            fill(b, names([episode]))
    assert num_frames(copy) == num_frames(buffer)


@pytest.mark.parametrize("capacity", [8, 13, 100])
@pytest.mark.parametrize("every", [1, 12])  # episodes per part; 12: one part, whose older transitions are gone
def test_restore_into_another_capacity_keeps_the_newest(capacity, every):
    source, parts, counters = ReplayBuffer(13, CAMERAS), [], (0, 0)
    for start in range(0, 12, every):
        fill(source, names(range(start, start + every)))
        parts.append(through_a_file(source.export(counters)))
        counters = parts[-1]["counters"]
    copy = ReplayBuffer(capacity, CAMERAS)
    for part in parts:
        copy.restore(part)
    assert len(copy) >= min(len(source), capacity - 2) and held(copy) == names(range(12))[-len(copy) :]
    fill(copy, names([12, 13]))
    assert held(copy) == names(range(14))[-len(copy) :]
    assert set(decode(copy.sample(64))) <= set(held(copy))


def test_restore_refuses_what_does_not_fit():
    first = fill(ReplayBuffer(50, CAMERAS), names(range(3))).export()
    buffer = fill(ReplayBuffer(50, CAMERAS), names(range(6)))
    with pytest.raises(ValueError, match="a part of the saved buffer is missing: got transition 12, wanted 0"):
        ReplayBuffer(50, CAMERAS).restore(buffer.export(first["counters"]))
    with pytest.raises(ValueError, match=r"wanted \['side'\] as well"):
        ReplayBuffer(50, ["side"]).restore(first)
    with pytest.raises(ValueError, match="the saved buffer holds"):
        ReplayBuffer(50, ["image"]).restore(first)
    other = fill(ReplayBuffer(50, CAMERAS), names([0]), shape=(4, 4, 3))
    with pytest.raises(ValueError, match=r"holds .*\(6, 5, 3\).*, this one .*\(4, 4, 3\)"):
        other.restore(buffer.export())
    empty = ReplayBuffer(5, CAMERAS)
    empty.restore(through_a_file(ReplayBuffer(5, CAMERAS).export()))
    assert len(empty) == 0


# ---------------------------------------------------------------- two threads


def test_adding_beside_sampling_never_mixes_frames():
    buffer, stop, errors = ReplayBuffer(40, CAMERAS), threading.Event(), []

    def add_forever():
        try:
            while not stop.is_set():
                fill(buffer, names(range(40)))
        except Exception as error:  # reported by the test below
            errors.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    fill(buffer, names(range(5)))
    thread = threading.Thread(target=add_forever)
    thread.start()
    try:
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            decode(buffer.sample(8))
            held(buffer)
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert not errors and buffer.num_added > 200


@pytest.mark.slow
def test_100_000_transitions_added_beside_sampling_are_whole():
    """Every pixel and every column names its frame: frame i is i in each of its words, and acts into i + 1."""
    buffer, sampled = ReplayBuffer(3000, ["image"], seed=0), 0

    def add_all():
        frame = 0
        for count in range(100_000):
            done = count % 17 == 16
            frames = [np.full(12, number, np.uint32).view(np.uint8).reshape(4, 4, 3) for number in (frame, frame + 1)]
            buffer.add(
                {
                    "observations": {"image": frames[0], "state": np.array([frame], np.float32)},
                    "actions": np.array([frame % 1000], np.float32) / 1000,
                    "rewards": float(frame % 2),
                    "dones": done,
                    "next_observations": {"image": frames[1], "state": np.array([frame + 1], np.float32)},
                    "masks": float(frame % 3 == 0),
                }
            )
            frame += 2 if done else 1

    thread = threading.Thread(target=add_all)
    thread.start()
    while not len(buffer):
        time.sleep(0.001)
    while thread.is_alive():
        batch = buffer.sample(64)
        words, after = (
            batch[key]["image"].numpy().reshape(64, 48).view(np.uint32).astype(np.int64)
            for key in ("observations", "next_observations")
        )
        frame = words[:, 0]
        assert (words == frame[:, None]).all() and (after == frame[:, None] + 1).all()
        assert (batch["observations"]["state"][:, 0].numpy() == frame).all()
        assert (batch["next_observations"]["state"][:, 0].numpy() == frame + 1).all()
        assert np.allclose(batch["actions"][:, 0], frame % 1000 / 1000)
        assert (batch["rewards"].numpy() == frame % 2).all() and (batch["masks"].numpy() == (frame % 3 == 0)).all()
        sampled += 64
    assert buffer.num_added == 100_000 and sampled >= 100_000


# ---------------------------------------------------------------- errors


def without(key):
    return lambda t: {k: v for k, v in t.items() if k != key}


def changed_obs(group, **change):
    return lambda t: t | {group: t[group] | change}


IMAGE = picture(0, 1, 0)
WRONG = {
    "action_range": (lambda t: t | {"actions": np.array([0, 1.5], np.float32)}, r"outside \[-1, 1\]"),
    "action_nan": (lambda t: t | {"actions": np.array([0, np.nan], np.float32)}, r"outside \[-1, 1\] or NaN"),
    "action_shape": (lambda t: t | {"actions": np.zeros(3, np.float32)}, r"action is \(3,\).*holds \(2,\)"),
    "no_reward": (without("rewards"), r"transition: got .* wanted \['rewards'\] as well"),
    "no_masks": (without("masks"), r"transition: got .* wanted \['masks'\] as well"),
    "reward_nan": (lambda t: t | {"rewards": np.nan}, "reward is nan"),
    "reward_shape": (lambda t: t | {"rewards": np.zeros(2)}, r"reward is \(2,\)"),
    "state_nan": (changed_obs("next_observations", state=np.full(2, np.nan)), r"\['state'\] is \[nan nan\]"),
    "state_shape": (changed_obs("observations", state=np.zeros(3)), r"'state'\] is float32 \(3,\);.*\(2,\)"),
    "no_camera": (
        lambda t: t | {"observations": {"image": IMAGE}},
        r"observations: got \['image'\], wanted \['wrist', 'state'\]",
    ),
    "image_shape": (changed_obs("next_observations", wrist=IMAGE[:4]), r"\['wrist'\] is uint8 \(4, 5, 3\)"),
    "image_dtype": (changed_obs("observations", image=IMAGE.astype(np.float32)), "float32 .*holds uint8"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_transitions_are_refused_and_leave_the_buffer_alone(name):
    edit, message = WRONG[name]
    buffer = fill(ReplayBuffer(6, CAMERAS), names(range(4)))
    before, frames = held(buffer), num_frames(buffer)
    with pytest.raises(ValueError, match=message):
        buffer.add(edit(transition(4, 0)))
    assert held(buffer) == before and num_frames(buffer) == frames
    fill(buffer, names([4]))
    assert held(buffer) == (names(range(5)))[-len(buffer) :]


def test_other_errors():
    with pytest.raises(ValueError, match="capacity is 0"):
        ReplayBuffer(0, CAMERAS)
    with pytest.raises(ValueError, match="the buffer is empty"):
        ReplayBuffer(5, CAMERAS).sample(1)
    with pytest.raises(ValueError, match="batch_size is 0"):
        fill(ReplayBuffer(5, CAMERAS), [(0, 0)]).sample(0)
    for image in (np.zeros((8, 8, 3), np.float32), np.zeros((8, 8), np.uint8), np.zeros((2, 8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match=r"observations\['image'\] is .* wanted uint8 \(H, W, C\), or float16"):
            ReplayBuffer(5, ["image"]).allocate({"image": image}, 2)


def test_a_batch_of_several_buffers_is_their_samples_one_after_the_other():
    buffers = [fill(ReplayBuffer(9, CAMERAS, seed=s), names([s])) for s in (0, 1, 0, 1)]
    joined = sample_each(buffers[:2], 3)
    assert decode(joined) == [row for buffer in buffers[2:] for row in decode(buffer.sample(3))]
    assert joined["rewards"].shape == (6,)


# ---------------------------------------------------------------- features instead of images


def agent_parameters(agent):
    return torch.cat([p.detach().flatten() for m in (agent.online, agent.target, agent.actor) for p in m.parameters()])


def train_on(agent, batches, observe):
    torch.manual_seed(7)  # of dropout and action noise
    for batch in batches:
        groups = {name: observe(batch[name]) for name in ("observations", "next_observations")}
        agent.update(batch | groups, clone_weight=0.5, augment=False)
    return agent_parameters(agent)


def test_training_on_stored_features_is_training_on_the_images():
    """Exactly with float32 features; float16 rounds the features by 5e-4 and the parameters' steps with them."""
    torch.manual_seed(0)
    shape, backbone, agents = (20, 20, 3), ResNet10(), []
    for _ in range(4):
        torch.manual_seed(1)
        agents.append(SACHybridAgent(CAMERAS, 1, 3, state_dim=2, backbone=backbone, device="cpu"))
    images, stored = ReplayBuffer(30, CAMERAS, seed=2), ReplayBuffer(30, CAMERAS, seed=2)
    for episode, step in names(range(2)):
        raw = transition(episode, step, shape=shape) | {"actions": np.array([step / 8, step % 3 - 1], np.float32)}
        encoded = {k: agents[0].encode_frames(raw[k], views=1) for k in ("observations", "next_observations")}
        images.add(raw)
        stored.add(raw | encoded)
    batches, feature_batches = ([b.sample(4) for _ in range(4)] for b in (images, stored))
    for a, b in zip(batches, feature_batches):
        assert torch.equal(a["actions"], b["actions"])
    start = agent_parameters(agents[0])
    on_images = train_on(agents[0], batches, dict)
    exact = train_on(agents[1], batches, agents[1]._features)
    assert torch.equal(on_images, exact)
    rounded = train_on(agents[2], feature_batches, dict)
    moved, apart = (on_images - start).norm(), (on_images - rounded).norm()
    assert moved > 0.1 and apart < 0.03 * moved
    others = train_on(agents[3], feature_batches[1:] + feature_batches[:1], dict)  # other data do not pass for the same
    assert (on_images - others).norm() > 3 * apart


@pytest.mark.parametrize("fault", ["float", "camera", "chunk", "scalar"])
def test_a_first_transition_that_is_refused_leaves_no_trace(fault):
    buffer, good = ReplayBuffer(10, CAMERAS), transition(0, 0)
    bad = {name: dict(value) if isinstance(value, dict) else value for name, value in good.items()}
    key = CAMERAS[0]
    for name in ("observations", "next_observations"):
        if fault == "float":
            bad[name][key] = bad[name][key] / 255.0
        elif fault == "camera":
            del bad[name][key]
    if fault in ("chunk", "scalar"):
        bad["actions"] = bad["actions"][None] if fault == "chunk" else np.float32(0.1)
    with pytest.raises(ValueError):
        buffer.add(bad)
    buffer.add(good)
    assert len(buffer) == 1


def test_one_buffer_may_be_sampled_twice_for_one_batch():
    buffer = ReplayBuffer(10, CAMERAS)
    fill(buffer, names(range(2)))
    assert len(sample_each([buffer, buffer], 3)["rewards"]) == 6


def test_an_export_without_a_copy_is_the_same():
    """Also where it goes around the end of the ring, and where there is nothing new."""
    buffer, counters = ReplayBuffer(10, CAMERAS), (0, 0)
    for number, (episode, step) in enumerate(names(range(9))):
        buffer.add(transition(episode, step))
        for since in ((0, 0), counters):
            copied, own = (buffer.export(since, copy=copy) for copy in (True, False))
            assert_same(copied["columns"], own["columns"]), assert_same(copied["frames"], own["frames"])
            assert copied["counters"] == own["counters"] and copied["first"] == own["first"]
        counters = copied["counters"] if number % 4 == 3 else counters
    assert not np.shares_memory(copied["columns"]["reward"].numpy(), buffer._columns["reward"])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda buffer: pickle.loads(pickle.dumps(buffer))])
def test_a_copy_goes_on_by_itself(copied):
    buffer = fill(ReplayBuffer(20, CAMERAS), names(range(2)))
    twin, before = copied(buffer), len(buffer)
    assert decode(twin.sample(10)) == decode(buffer.sample(10))
    fill(twin, names([2]))
    assert len(twin) == before + length(2) and len(buffer) == before
