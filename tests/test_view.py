"""The live page: what it serves, that a slow or gone browser changes nothing, and what a real browser shows."""

import http.client
import io
import json
import shutil
import socket
import struct
import subprocess
import time

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

from pytorch_serl.training import build
from pytorch_serl.training.rewards import ContractError
from pytorch_serl.training.view import View, Viewed

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture
def view():
    view = View(0)
    yield view
    if not view.closed:
        view.close()


def get(view, path):
    connection = http.client.HTTPConnection("127.0.0.1", view.port, timeout=5)
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read()


def first_frame(view, name):
    """The first picture of a camera's stream."""
    connection = http.client.HTTPConnection("127.0.0.1", view.port, timeout=5)
    connection.request("GET", f"/camera/{name}")
    answer = connection.getresponse()
    assert answer.headers["Content-Type"].startswith("multipart/x-mixed-replace")
    size = 0
    while (line := answer.fp.readline().strip()) or not size:
        if line.lower().startswith(b"content-length"):
            size = int(line.split(b":")[1])
    picture = np.asarray(Image.open(io.BytesIO(answer.fp.read(size))))
    connection.close()
    return picture


def frame(colour, size=(48, 64)):
    return np.full((*size, 3), colour, np.uint8)


def test_it_serves_what_is_shown(view):
    view.show({"image": frame((200, 30, 60)), "odd name/é": frame(7)}, {"episode": 3, "in control:": "<human>"})
    status, page = get(view, "/")
    assert status == 200 and b"/frame/image" in page and b"/frame/odd%20name%2F%C3%A9" in page
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(get(view, "/frame/image")[1]))).shape, (48, 64, 3))
    told = json.loads(get(view, "/status")[1])
    assert told == {"cameras": 2, "status": {"episode": "3", "in control:": "<human>"}}
    assert np.abs(first_frame(view, "image").astype(int) - (200, 30, 60)).max() < 4
    assert np.abs(first_frame(view, "odd%20name%2F%C3%A9").astype(int) - 7).max() < 4
    assert get(view, "/camera/none")[0] == get(view, "/etc/passwd")[0] == 404


def test_it_keeps_a_copy(view):
    shown = frame(9)
    view.show({"image": shown}, {})
    shown[:] = 255
    assert first_frame(view, "image").max() < 15


def test_a_browser_that_reads_nothing_delays_nobody(view):
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    view.show({"image": noise}, {})
    lazy = socket.create_connection(("127.0.0.1", view.port))
    lazy.sendall(b"GET /camera/image HTTP/1.1\r\n\r\n")
    gone = socket.create_connection(("127.0.0.1", view.port))
    gone.sendall(b"GET /camera/image HTTP/1.1\r\n\r\n")
    gone.close()
    slowest = 0.0
    for _ in range(100):
        before = time.monotonic()
        view.show({"image": noise}, {})
        slowest = max(slowest, time.monotonic() - before)
        time.sleep(0.005)
    assert slowest < 0.25
    assert first_frame(view, "image").shape == noise.shape
    before = time.monotonic()
    view.close()
    assert time.monotonic() - before < 3
    lazy.close()


def test_a_port_that_is_taken_is_named(view):
    with pytest.raises(ValueError, match=rf"--view {view.port}: .*name another port"):
        View(view.port)
    with pytest.raises(ValueError, match="--view 70000"):
        View(70000)


@pytest.mark.parametrize("host", ["robot.invalid", "192.0.2.1"])
def test_a_host_that_is_not_this_machine_is_named(host):
    with pytest.raises(ValueError, match=rf"--view_host {host}: .*0\.0\.0\.0"):
        View(0, host)


def test_a_browser_that_breaks_off_says_nothing_in_the_terminal(view, capfd):
    gone = socket.create_connection(("127.0.0.1", view.port))
    gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, no goodbye
    gone.close()
    time.sleep(0.2)
    assert get(view, "/status")[0] == 200 and not capfd.readouterr().err


class Hiding(gym.Wrapper):
    """Shows a frame that no policy sees; in every second step a human acts."""

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.steps = getattr(self, "steps", 0) + 1
        acted = {"intervene_action": action} if self.steps % 2 else {}
        more = {"view": {"depth": frame(99)}, "success_probability": 0.5}
        return obs, reward, terminated, truncated, info | more | acted


def test_an_environment_is_shown(view):
    env = Viewed(Hiding(build.make_env("built-in", "single-arm-fixed-gripper")), view)
    obs, _ = env.reset(seed=0)
    assert set(view.frames) == {"image", "wrist"} and np.array_equal(view.frames["image"], obs["image"])
    obs, *_ = env.step(np.zeros(6, np.float32))
    assert set(view.frames) == {"image", "wrist", "depth"} and np.array_equal(view.frames["wrist"], obs["wrist"])
    assert view.status["in control:"] == "human" and view.status["classifier"] == "0.50"
    env.step(np.zeros(6, np.float32))
    assert view.status["in control:"] == "policy" and view.status["step"] == "2" and view.status["successes"] == "0"
    env.close()


def test_who_steers_a_recording_is_said(view):
    env = Viewed(build.make_env("built-in", "single-arm-fixed-gripper"), view, "scripted expert")
    env.reset(seed=0)
    env.step(np.zeros(6, np.float32))
    assert view.status["in control:"] == "scripted expert"


@pytest.mark.parametrize(
    "more, message",
    [
        (None, None),
        ([frame(1)], "is list; wanted a dict"),
        ({1: frame(1)}, r"a dict of \['1'\]"),
        ({"depth": np.zeros((8, 8, 3), np.float32)}, r"\['depth'\] is float32 \(8, 8, 3\); wanted uint8"),
        ({"depth": np.zeros((8, 8, 1), np.uint8)}, r"uint8 \(8, 8, 1\)"),
        ({"depth": None}, "is NoneType; wanted uint8"),
        ({"depth": [[1], [1, 2]]}, "is list; wanted uint8"),
    ],
)
def test_further_frames_of_another_form_are_refused(more, message, view):
    env = Viewed(build.make_env("built-in", "single-arm-fixed-gripper"), view)
    reset = env.env.reset
    env.env.reset = lambda **options: (reset(**options)[0], {"view": more})
    if message is None:
        env.reset(seed=0)
        assert set(view.frames) == {"image", "wrist"}
    else:
        with pytest.raises(ContractError, match=message):
            env.reset(seed=0)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
def test_a_browser_shows_the_cameras_frame(view, tmp_path):
    """The screenshot holds the frame: its two halves, in the size of the page."""
    shown = frame((210, 40, 40), (96, 96))
    shown[:, 48:] = (40, 60, 200)
    view.show({"image": shown}, {"episode": 1})
    picture = tmp_path / "page.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    options += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--timeout=4000"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={picture}", "--window-size=600,600"]
    subprocess.run([CHROMIUM, *options, f"http://127.0.0.1:{view.port}/"], capture_output=True, timeout=60, check=True)
    pixels = np.asarray(Image.open(picture).convert("RGB")).astype(int)
    red, blue = ((np.abs(pixels - colour).max(-1) < 12) for colour in ((210, 40, 40), (40, 60, 200)))
    rows, columns = np.nonzero(red)
    assert rows.max() - rows.min() > 370 and 180 < columns.max() - columns.min() < 200  # 384 high, half of it wide
    assert abs(red.sum() - blue.sum()) < 0.05 * red.sum() and np.nonzero(blue)[1].min() >= columns.max() - 2
