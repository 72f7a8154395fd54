"""How MuJoCo draws here: without a display, beside PyTorch, and as fast as a CPU allows; for your own MuJoCo, too.

    mujoco = import_mujoco()
    cameras = Cameras(model, data, {"image": "front", "wrist": "handcam"}, size=128)
    obs = {key: cameras.picture(key) for key in cameras.names}

docs/simulation.md says what that saves, and has the system packages.
"""

import atexit
import os
import sys
import weakref
from contextlib import contextmanager, suppress

import numpy as np

PIP = "pip install -r requirements/sim.txt"
INSTALL_GL = (
    "MuJoCo needs OpenGL: on Debian `apt install libegl1 libegl-mesa0 libgl1 libgl1-mesa-dri`; without a display "
    "MUJOCO_GL=egl has to be set before mujoco is imported for the first time"
)


def import_mujoco():
    """The module `mujoco`, set to draw without a display where there is none. Call it before whatever imports mujoco.

    Raises ModuleNotFoundError where it is missing, and whatever OpenGL raises where that is; see `clear_errors`.
    """
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        os.environ.setdefault("MUJOCO_GL", "egl")
    with suppress(ImportError):  # PyTorch's compiler: loaded after Mesa, which has another LLVM, it would crash
        import triton  # noqa: F401
    import mujoco

    return mujoco


@contextmanager
def clear_errors():
    """Around the making of a simulator: its errors say what to install.

    Raises:
        ImportError: a package is missing.
        RuntimeError: anything else, mostly OpenGL, which fails in many ways, some already on import.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(f"no module {error.name!r}: {PIP}") from error
    except Exception as error:
        raise RuntimeError(f"{type(error).__name__}: {error}. {INSTALL_GL}") from error


class Cameras:
    """Pictures of a MuJoCo scene at a twentieth of the usual time on a CPU: no shadows, multisampling or reflections.

    Args:
        model: the MjModel; the size of its off-screen buffer is set.
        data: the MjData that is drawn.
        names: {image key: name of the model's camera}.
        size: side of the pictures in pixels.
        option: an MjvOption, or None for MuJoCo's defaults: which groups of shapes and sites are drawn.
    """

    def __init__(self, model, data, names, size, option=None):
        mujoco = import_mujoco()
        self.model, self.data, self.names, self._option = model, data, dict(names), option
        model.vis.global_.offwidth = model.vis.global_.offheight = size
        model.vis.quality.offsamples = 0
        self._renderer = mujoco.Renderer(model, size, size)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._renderer.scene.flags[flag] = False
        self.close = weakref.finalize(self, self._renderer.close)  # frees OpenGL's context, once
        atexit.register(self.close)  # finalize alone would come after the end of OpenGL

    def picture(self, key):
        """What the camera sees now, a new uint8 array (size, size, 3)."""
        self._renderer.update_scene(self.data, camera=self.names[key], scene_option=self._option)
        return self._renderer.render()


def check_pictures(picture, keys, move):
    """Every camera must see something, and see it move: rendering can fail without a word.

    Args:
        picture: image key -> uint8 (S, S, 3).
        keys: the image keys.
        move: called once between two pictures, it changes what all cameras see.

    Raises RuntimeError that names the camera.
    """
    before = [picture(key) for key in keys]
    move()
    for key, first, second in zip(keys, before, [picture(key) for key in keys]):
        if np.ptp(first) < 30:
            raise RuntimeError(f"camera {key!r} is blank (all pixels about {int(first.mean())}). {INSTALL_GL}")
        if (np.abs(first.astype(int) - second).max(-1) > 30).mean() < 0.001:
            raise RuntimeError(f"camera {key!r} is frozen: the scene moved, its picture did not. {INSTALL_GL}")


def place_camera(model, name, position, looked_at, up=(0, 0, 1), fovy=45):
    """Moves and turns a camera within its body (m) and sets its vertical field of view (degrees)."""
    mujoco = import_mujoco()
    camera = model.camera(name)
    back = np.subtract(position, looked_at)
    right = np.cross(up, back)
    axes = np.stack([axis / np.linalg.norm(axis) for axis in (right, np.cross(back, right), back)], axis=1)
    mujoco.mju_mat2Quat(model.cam_quat[camera.id], axes.ravel())
    model.cam_pos[camera.id], model.cam_fovy[camera.id] = position, fovy
