"""Who steers beside the policy: the options that name him, and the environment with him beside it."""

import argparse
from collections.abc import Callable, Iterable
from typing import Any

import gymnasium as gym

from pytorch_serl.data.actions import num_arms, num_grippers
from pytorch_serl.envs.human.human import Human
from pytorch_serl.envs.human.scripted import BURST, PATIENCE, RATE

DEVICES = ("keyboard", "gamepad", "spacemouse")  # beside package:function
OTHERS = ("scripted", "env")


def add_human_arguments(group: argparse._ArgumentGroup) -> None:
    """--human, and what only a space mouse needs."""
    group.add_argument(
        "--human",
        help="who steers: scripted (the environment's own expert), keyboard (this terminal's), gamepad, spacemouse, "
        "package:function (any other device, docs/devices.md), or env (whoever the environment reports in "
        "info['intervene_action']); default: scripted where the environment has an expert and is simulated, else env",
    )
    group.add_argument("--dead_zone", type=float, default=0.1, help="of a space mouse's way, around its middle")
    group.add_argument(
        "--axis_signs", type=int, nargs=6, default=[1] * 6, help="1 or -1 for a space mouse's x y z roll pitch yaw"
    )
    group.add_argument("--axis_scale", type=float, default=1.0, help="factor on a space mouse's way")


def device_words(args: argparse.Namespace) -> list[str]:
    """The words of a command line that say how a space mouse is held, where that is not the default."""
    defaults = argparse.ArgumentParser()
    add_human_arguments(defaults)
    words = []
    for name in ("dead_zone", "axis_signs", "axis_scale"):
        value = getattr(args, name)
        if value != defaults.get_default(name):
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def add_patience(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--patience",
        type=float,
        default=PATIENCE / RATE,
        help="seconds without progress (steps, by the environment's rate) before the scripted human takes over",
    )


def add_scripted_arguments(group: argparse._ArgumentGroup) -> None:
    """When the scripted human takes over, for how long, and how exactly he acts."""
    add_patience(group)
    group.add_argument(
        "--burst",
        type=float,
        nargs=2,
        default=[steps / RATE for steps in BURST],
        metavar=("SHORTEST", "LONGEST"),
        help="seconds that he acts before he hands back",
    )
    group.add_argument("--human_noise", type=float, default=0.1, help="on his actions, a standard deviation")


def scripted_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_scripted_arguments` as `build.add_human` takes them, times in seconds."""
    return {"patience": args.patience, "burst": tuple(args.burst), "noise": args.human_noise}


def scripted_steps(patience: float, burst: Iterable[float], rate: float) -> dict[str, Any]:
    """Seconds as `ScriptedHuman` takes them: steps of an environment with `rate` steps per second, one at least."""
    steps = [max(1, round(seconds * rate)) for seconds in (patience, *burst)]
    return {"patience": steps[0], "burst": tuple(steps[1:])}


def scripted_line(args: argparse.Namespace) -> str:
    """When the scripted human acts, in seconds and steps."""
    steps = scripted_steps(args.patience, args.burst, args.steps_per_second)
    return (
        "the scripted human takes over after {:g} s ({} steps of this environment) without progress, for {:g} to {:g} "
        "s ({} to {} steps)".format(args.patience, steps["patience"], *args.burst, *steps["burst"])
    )


def check_human(args: argparse.Namespace, parser) -> None:
    """Refuse a name that means nobody, and numbers that cannot be meant."""
    if args.human is not None and args.human not in (*DEVICES, *OTHERS) and ":" not in args.human:
        parser.error(f"--human is {args.human}; wanted {', '.join((*OTHERS, *DEVICES))} or package:function")
    limits = {
        "dead_zone": (0 <= args.dead_zone < 1, "a share from 0 to below 1"),
        "axis_signs": (set(args.axis_signs) <= {-1, 1}, "six times 1 or -1"),
        "axis_scale": (args.axis_scale > 0, "a factor above 0"),
    }
    if "patience" in args:
        limits["patience"] = (0 < args.patience <= 3600, "seconds, more than 0")
    if "burst" in args:
        limits |= {
            "burst": (0 < args.burst[0] <= args.burst[1] <= 3600, "two times in seconds, the first the shorter one"),
            "human_noise": (args.human_noise >= 0, "0 or more"),
        }
    parser.require(args, limits)


def has_device(human: str | None) -> bool:
    """Whether somebody here holds a device: he can be asked, and his word ends episodes."""
    return human is not None and human not in OTHERS


def add_device(
    env: gym.Env, args: argparse.Namespace, judge: str, say: Callable[[str], None] = print
) -> tuple[Human, str]:
    """The environment with a human and his device beside it, not steering yet (`steered`), and a line on its keys.

    Args:
        args: the options of `add_human_arguments`, and `setup_mode`.
        judge: see `Human`.
    Raises ValueError, saying what to do, where the device cannot be had.
    """
    sides = {"arms": num_arms(args.setup_mode), "grippers": num_grippers(args.setup_mode) > 0}
    settings = sides | {"judge": judge, "steer": False, "say": say}
    if args.human == "keyboard":
        from pytorch_serl.envs.human.keyboard import HELP, KeyboardHuman, Terminal

        return KeyboardHuman(env, Terminal(), **settings), HELP
    from pytorch_serl.envs.human.device import HELP, DeviceHuman, load_device, terminal_keys

    if args.human == "gamepad":
        from pytorch_serl.envs.human import gamepad

        made = gamepad.GamepadHuman(env, gamepad.Gamepad(), keys=terminal_keys(), **settings)
        return made, f"{gamepad.HELP} | {HELP}"
    if args.human == "spacemouse":
        from pytorch_serl.envs.human import spacemouse

        options = {"dead_zone": args.dead_zone, "signs": tuple(args.axis_signs), "scale": args.axis_scale}
        device = spacemouse.SpaceMice(env.action_space.shape, say=say, **sides, **options)
        made = DeviceHuman(env, device, keys=terminal_keys(), **settings)
        made.go_on = "space"  # none of its buttons judges
        return made, f"{spacemouse.HELP} | {HELP}"
    return DeviceHuman(env, load_device(args.human)(env), keys=terminal_keys(), **settings), HELP
