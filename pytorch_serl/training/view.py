"""A page that shows the cameras live and who is in control: plain http and MJPEG, for a browser here or over ssh.

The control loop only leaves its newest frames here; compressing and sending is the business of one thread per browser
and camera, which skips what it is too slow for. Without a browser nothing is compressed.
"""

import argparse
import errno
import html
import io
import json
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote

import gymnasium as gym
import numpy as np

from pytorch_serl.training.evaluate import pictures
from pytorch_serl.training.rewards import ContractError

HOST = "127.0.0.1"
PATIENCE = 5.0  # s after which a browser that takes nothing is given up
REMEMBERED = 20  # steps over which the rate is taken
BOUNDARY = "frame"
PAGE = """<!doctype html>
<meta charset="utf-8"><title>pytorch_serl</title>
<style>body{font:16px sans-serif;margin:12px;background:#222;color:#eee}figure{display:inline-block;margin:4px}
img{height:384px;image-rendering:pixelated}b{color:#7fd}</style>
<p id="status">waiting for the first step</p>
%s
<script>
// the page comes with the newest frames; a stream never ends: begun at once, the page would never have been loaded
window.onload = () => setTimeout(() => {
  for (const image of document.images) image.src = image.src.replace("/frame/", "/camera/");
}, 500);
setInterval(async () => {
  const p = document.getElementById("status");
  try {
    const {cameras, status} = await (await fetch("/status")).json();
    if (cameras != document.images.length) location.reload();
    p.replaceChildren(...Object.entries(status).flatMap(([name, value]) => {
      const b = document.createElement("b");
      b.textContent = value;
      return [name + " ", b, "\\u2003"];
    }));
  } catch { p.textContent = "the run has ended"; }
}, 250);
</script>
"""
FIGURE = '<figure><img src="/frame/%s" alt=""><figcaption>%s</figcaption></figure>\n'


class View:
    """Serves the page until `close`.

    Args:
        port: on this machine; 0 takes a free one, which `port` says then.
        host: "0.0.0.0" lets other machines look, too: nobody is asked who he is.
    Raises ValueError where port or host cannot be had.
    """

    def __init__(self, port: int, host: str = HOST):
        self.frames: dict[str, np.ndarray] = {}
        self.status: dict[str, str] = {}
        self.number, self.closed, self.news = 0, False, threading.Condition()
        try:
            self.server = _Server((host, port), type("Handler", (_Handler,), {"view": self}))
        except (OSError, OverflowError) as error:
            said = getattr(error, "strerror", None) or error
            if isinstance(error, socket.gaierror) or getattr(error, "errno", None) == errno.EADDRNOTAVAIL:
                raise ValueError(
                    f"--view_host {host}: {said}; wanted an address of this machine: {HOST}, or 0.0.0.0 for all of them"
                ) from None
            raise ValueError(f"--view {port}: {said}; name another port") from None
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        print(f"cameras: http://{'localhost' if host == HOST else host}:{self.port}", flush=True)

    def show(self, frames: dict[str, np.ndarray], status: dict[str, Any]) -> None:
        """Replace what is shown: frames uint8 (H, W, 3) by name, and a line of status entries."""
        copies = {name: np.array(frame) for name, frame in frames.items()}  # an environment may reuse its arrays
        with self.news:
            self.frames, self.status = copies, {name: str(value) for name, value in status.items()}
            self.number += 1
            self.news.notify_all()

    def close(self) -> None:
        """Let every browser go, and the port."""
        with self.news:
            self.closed = True
            self.news.notify_all()
        self.server.shutdown()
        self.server.server_close()


def add_view_arguments(group: argparse._ArgumentGroup) -> None:
    """--view and --view_host."""
    group.add_argument(
        "--view",
        type=int,
        metavar="PORT",
        help="show the cameras live on http://localhost:PORT, for a browser here or by `ssh -L PORT:localhost:PORT`",
    )
    group.add_argument("--view_host", default=HOST, help="0.0.0.0: other machines may look, too, and nobody is asked")


def viewed(env: gym.Env, view: View | None, steers: str = "policy") -> gym.Env:
    """The environment, shown on `view` if there is one; of several only the first. `steers`: see `Viewed`."""
    if view is None:
        return env
    return [Viewed(env[0], view, steers), *env[1:]] if isinstance(env, list) else Viewed(env, view, steers)


class _Server(ThreadingHTTPServer):
    """Says nothing of a browser that is gone before it has asked for anything."""

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """Answers one browser's request; `view` is set by `View`."""

    view: View
    timeout = PATIENCE

    def do_GET(self):
        view = self.view
        try:
            if self.path == "/":
                names = list(view.frames)
                figures = "".join(FIGURE % (quote(name, safe=""), html.escape(name)) for name in names)
                self._send("text/html; charset=utf-8", (PAGE % figures).encode())
            elif self.path == "/status":
                told = {"cameras": len(view.frames), "status": view.status}
                self._send("application/json", json.dumps(told).encode())
            elif (
                self.path.startswith("/frame/") and (name := unquote(self.path.removeprefix("/frame/"))) in view.frames
            ):
                self._send("image/jpeg", jpeg(view.frames[name]))
            elif self.path.startswith("/camera/"):
                self._stream(unquote(self.path.removeprefix("/camera/")))
            else:
                self.send_error(404)
        except OSError:  # the browser is gone, or too slow
            self.close_connection = True

    def _send(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, name: str) -> None:
        """One part of a multipart answer for every frame that is newer than the last one sent."""
        view, sent = self.view, 0
        if name not in view.frames:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={BOUNDARY}")
        self.end_headers()
        between = f"\r\n--{BOUNDARY}\r\n".encode()
        self.wfile.write(between)
        while True:
            with view.news:
                while view.number == sent and not view.closed:
                    view.news.wait()
                if view.closed or name not in view.frames:
                    return None
                frame, sent = view.frames[name], view.number
            body = jpeg(frame)
            head = f"Content-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
            # the boundary comes with the frame, not with the next one: browsers show it only then
            self.wfile.write(head.encode() + body + between)

    def log_message(self, *words):
        pass


def jpeg(frame: np.ndarray) -> bytes:
    """A frame uint8 (H, W, 3), compressed."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(frame).save(file, "JPEG", quality=90)
    return file.getvalue()


class Viewed(gym.Wrapper):
    """Shows on a `View` what every reset and step gives; cameras that the policy does not use and `info["view"]`
    (more frames by name, which nobody learns from) included.

    steers: who acts where no human takes over.
    step, reset: raise ContractError for an `info["view"]` of another form.
    """

    def __init__(self, env: gym.Env, view: View, steers: str = "policy"):
        super().__init__(env)
        self.view, self.steers, self.episode, self.successes, self.step_number = view, steers, 0, 0, 0
        self.times: list[float] = []

    def reset(self, **options):
        obs, info = self.env.reset(**options)
        self.episode, self.step_number, self.times = self.episode + 1, 0, []
        self.evaluation = bool((options.get("options") or {}).get("evaluation"))
        self._show(obs, info)
        return obs, info

    def step(self, action):
        result = self.env.step(action)
        obs, _, terminated, truncated, info = result
        self.step_number += 1
        self.successes += bool((terminated or truncated) and info.get("succeed"))
        self.times = [*self.times, time.monotonic()][-REMEMBERED:]
        self._show(obs, info)
        return result

    def _show(self, obs, info):
        frames = {key: obs[key] for key in pictures(obs)} | _more_frames(info)
        steerer = "human" if "intervene_action" in info else self.steers
        status = {
            "in control:": f"{steerer}{', evaluation' if self.evaluation else ''}",
            "episode": self.episode,
            "step": self.step_number,
            "successes": self.successes,
        }
        if "success_probability" in info:
            status["classifier"] = f"{info['success_probability']:.2f}"
        if len(self.times) > 1:
            status["steps per second"] = f"{(len(self.times) - 1) / (self.times[-1] - self.times[0] + 1e-9):.1f}"
        self.view.show(frames, status)


def _more_frames(info: dict[str, Any]) -> dict[str, np.ndarray]:
    """The frames in `info["view"]` by name, none where it is None or missing. Raises ContractError for other things."""
    more = {} if info.get("view") is None else info["view"]
    if not isinstance(more, dict) or not all(isinstance(name, str) for name in more):
        got = f"a dict of {sorted(map(repr, more))}" if isinstance(more, dict) else type(more).__name__
        raise ContractError(f"info['view'] is {got}; wanted a dict of frames uint8 (H, W, 3) by name, or none")
    for name, frame in more.items():
        if not _is_picture(frame):
            got = f"{getattr(frame, 'dtype', type(frame).__name__)} {getattr(frame, 'shape', '')}".strip()
            raise ContractError(
                f"info['view'][{name!r}] is {got}; wanted uint8 (H, W, 3): scale a depth, and repeat its channel"
            )
    return more


def _is_picture(frame: Any) -> bool:
    try:
        return bool(pictures({"": frame}))
    except (ValueError, TypeError):  # lists of several lengths, a tensor of a GPU
        return False
