"""The options of train_hybrid.py, their limits, and the defaults that depend on other options or the environment."""

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

from pytorch_serl.agents.sac import CLONE_STD
from pytorch_serl.training import build
from pytorch_serl.training.arguments import (
    add_cluster_arguments,
    add_data_arguments,
    add_learning_arguments,
    add_run_arguments,
    add_vision_arguments,
    check_cluster,
    check_shared,
    choose_eval_episodes,
    choose_for_device,
    fixed_settings,
)
from pytorch_serl.training.humans import (
    add_human_arguments,
    add_scripted_arguments,
    check_human,
    has_device,
    scripted_steps,
)
from pytorch_serl.training.rewards import state_conditions
from pytorch_serl.training.run import SETTINGS, Parser, user_errors
from pytorch_serl.training.view import add_view_arguments

SAVE_DIR = "./hybrid_ckpt"
CLONE_WEIGHT = 20.0
PRETRAIN_STEPS, PRETRAIN_PASSES = 1000, 150  # updates at least; times that each transition of the demos is seen


def parse_args(argv=None):
    """The options of a command line (None: this process's), their limits checked; see `choose_for_env`."""
    parser = Parser("Train a policy on demos and online experience, half and half, with human corrections.")
    data = add_data_arguments(parser, save_dir=None, env="built-in")
    add_human_arguments(data)
    add_scripted_arguments(data)
    data.add_argument(
        "--reward",
        choices=("env", "classifier", "human"),
        default="env",
        help="where success comes from; human: from your key or button alone",
    )
    data.add_argument(
        "--confirm",
        action="store_true",
        help="with a device: what the environment or the classifier calls success counts only when you agree",
    )
    data.add_argument("--classifier_ckpt", help="best.pt of train_classifier.py, for --reward classifier")
    data.add_argument(
        "--success_frames",
        type=int,
        default=1,
        help="with --reward classifier: so many frames in a row have to look like success",
    )
    data.add_argument(
        "--success_state",
        nargs="+",
        default=[],
        metavar="CONDITION",
        help="with --reward classifier: conditions of the state besides, entry, < or >, value: '2>0.04'",
    )
    learn = add_learning_arguments(parser, unit="environment step", batch_help="half demos, half online")
    learn.add_argument(
        "--algo",
        choices=("hil_serl", "hg_dagger"),
        default="hil_serl",
        help="hg_dagger: clone demos and corrections, without RL (arXiv 1810.02890); to compare with",
    )
    learn.add_argument("--cta_ratio", type=int, default=2, help="critic updates per actor update")
    learn.add_argument(
        "--cycles_per_step", type=int, default=1, help="cycles of cta_ratio updates per environment step"
    )
    learn.add_argument(
        "--init_ckpt",
        help="start from this agent (train_offline.py's best.pt) instead of pretraining; --resume wants neither the "
        "option nor the file again",
    )
    learn.add_argument(
        "--pretrain_steps",
        type=int,
        help="updates on the demos before step 0: cloning, critics trained beside it; 0 starts from nothing, as the "
        f"original does; default: {PRETRAIN_PASSES} passes over the demos, at least {PRETRAIN_STEPS:,}",
    )
    learn.add_argument(
        "--clone_weight",
        type=float,
        help=f"weight of the cloning term at the start, next to Q-values of at most 1; default {CLONE_WEIGHT:g}, 0 "
        "without --init_ckpt and pretraining",
    )
    learn.add_argument(
        "--clone_steps",
        type=int,
        default=20_000,
        help="environment steps over which the cloning term fades to nothing (it is there only after --init_ckpt or "
        "pretraining)",
    )
    learn.add_argument(
        "--clone_std",
        type=float,
        default=CLONE_STD,
        help="deviation of the cloned policy before its tanh, in units of action: how much it explores",
    )
    learn.add_argument(
        "--imitate_successes",
        action=argparse.BooleanOptionalAction,
        help="keep episodes that the policy solved alone beside the demos (self-imitation, arXiv 1806.05635); "
        "default: only without the scripted human",
    )
    learn.add_argument(
        "--training_starts",
        type=int,
        help="online steps before the first update; default 1000, 100 after --init_ckpt or pretraining",
    )
    learn.add_argument(
        "--random_steps", type=int, help="steps with random actions; default 1000, 0 after --init_ckpt or pretraining"
    )
    learn.add_argument(
        "--buffer_capacity", type=int, default=200_000, help="online transitions; half as many corrections"
    )
    add_vision_arguments(parser, views=8)
    control = parser.add_argument_group("control")
    control.add_argument(
        "--control_hz",
        type=float,
        help="environment steps per second to keep, in training and evaluations, whoever acts; default: the "
        "environment keeps its own time",
    )
    control.add_argument(
        "--learner",
        choices=("inline", "process"),
        help="learn between two steps, the same from the same seed, or in a process of its own, so that no update "
        "delays an action; default: inline in a simulated environment (docs/simulation.md) without --control_hz, else "
        "process",
    )
    add_view_arguments(control)
    add_cluster_arguments(parser)
    run = add_run_arguments(parser, eval_every=500, unit="environment step")
    run.add_argument(
        "--eval_ckpt",
        help="evaluate this agent and do nothing else; writes evaluation.json and evaluation.gif if --save_dir is "
        "given",
    )
    return resolve(parser.parse_args(argv), parser)


def resolve(args, parser):
    """Fill in the defaults that depend on other options and refuse what cannot work."""
    # with --ray_address: one on another machine will do
    args.gpu_learner = args.device == "auto" or args.device.startswith("cuda")
    choose_for_device(args, max_steps=(100_000, 30_000), batch_size=(256, 64))
    check_shared(args, parser)
    at_least_one = ("cta_ratio", "cycles_per_step", "buffer_capacity", "clone_steps", "success_frames", "actors")
    parser.require(args, {name: (getattr(args, name) >= 1, "1 or more") for name in at_least_one})
    at_least_zero = ("pretrain_steps", "clone_weight", "training_starts", "random_steps")  # or left open
    parser.require(args, {n: (getattr(args, n) is None or getattr(args, n) >= 0, "0 or more") for n in at_least_zero})
    parser.require(args, {"control_hz": (args.control_hz is None or args.control_hz > 0, "steps per second")})
    parser.require(args, {"batch_size": (args.batch_size % 2 == 0, "an even number: half demos, half online")})
    parser.require(args, {"clone_std": (0 < args.clone_std <= 1, "a deviation above 0 and up to 1")})
    check_human(args, parser)
    if args.view is not None and args.ray_address:
        parser.error("--view shows the robot of this process, and with --ray_address there is none")
    if args.init_ckpt and args.pretrain_steps:
        parser.error("--init_ckpt starts from an agent, --pretrain_steps from the demos; give one of them")
    if args.resume and not args.init_ckpt and not args.pretrain_steps:
        args.init_ckpt = recorded_start(args.save_dir or SAVE_DIR)
    warm = bool(args.init_ckpt or args.pretrain_steps != 0)
    if args.init_ckpt:
        args.pretrain_steps = 0
    if args.training_starts is None:
        args.training_starts = 100 if warm else 1000
    if args.random_steps is None:
        args.random_steps = 0 if warm else 1000
    if args.clone_weight and not warm:
        parser.error(
            f"--clone_weight {args.clone_weight:g} keeps a policy near what it cloned, and --pretrain_steps 0 clones "
            "nothing; leave one of them out"
        )
    if args.clone_weight is None:
        args.clone_weight = CLONE_WEIGHT if warm else 0.0
    if (args.reward == "human" or args.confirm) and not (args.human and has_device(args.human)):
        parser.error("--reward human and --confirm want your verdict; add --human keyboard or another device")
    if (args.success_state or args.success_frames > 1) and args.reward != "classifier":
        parser.error(
            "--success_frames and --success_state say when a classifier's verdict counts; add --reward classifier "
            "--classifier_ckpt ..."
        )
    with user_errors():
        state_conditions(args.success_state)
        build.constructor_args(args.env_args)
    if (args.reward == "classifier") != bool(args.classifier_ckpt):
        parser.error("--reward classifier and --classifier_ckpt go together; train_classifier.py writes the file")
    if args.eval_ckpt and (args.resume or args.init_ckpt):
        parser.error("--eval_ckpt evaluates, --resume and --init_ckpt train; give one of them")
    if args.algo == "hg_dagger" and not args.clone_weight:
        parser.error("--algo hg_dagger clones and does nothing else: it wants pretraining and a --clone_weight above 0")
    check_cluster(args, parser)
    return args


def recorded_start(save_dir: str | os.PathLike) -> str | None:
    """The --init_ckpt of the run in `save_dir`, which decides other defaults; None where it had none or nothing says
    so. The file is not read again: a resumed run's agent is its own."""
    try:
        return json.loads((Path(save_dir) / SETTINGS).read_text())["init_ckpt"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def run_settings(args: argparse.Namespace) -> dict[str, Any]:
    """In what a resumed run must agree (`fixed_settings`), after `choose_for_env`.

    The scripted human's times are in steps: so they decide what happens, and so runs of earlier versions have them.
    """
    fixed = fixed_settings(args, may_change=("patience", "burst", "steps_per_second"))
    if args.human != "scripted":
        return fixed
    steps = scripted_steps(args.patience, args.burst, args.steps_per_second)
    return fixed | {"patience": steps["patience"], "burst": list(steps["burst"])}


def choose_for_demos(args: argparse.Namespace, transitions: int) -> None:
    """Fill in the default that depends on how many transitions the demos have; what has a value stays."""
    if args.pretrain_steps is None:
        args.pretrain_steps = max(PRETRAIN_STEPS, math.ceil(PRETRAIN_PASSES * transitions / args.batch_size))


def choose_for_env(args: argparse.Namespace, task: Any) -> None:
    """Fill in the defaults that depend on the environment; what has a value stays.

    Args:
        task: the environment, its class, or None where only a robot's machine knows it.
    Raises ValueError for --human scripted where there is no expert.
    """
    expert, args.simulated = build.has_expert(task), build.is_simulated(task)
    args.steps_per_second = build.steps_per_second(task, args.control_hz)
    if args.human is None:
        args.human = "scripted" if args.simulated and expert else "env"
    if args.human == "scripted" and task is not None and not expert:
        raise ValueError(
            "--human scripted needs an environment with a scripted_expert(noise, seed) (docs/simulation.md); "
            f"--env {args.env} has none: use --human env or a device"
        )
    if args.learner is None:
        args.learner = "inline" if args.simulated and not (args.control_hz or args.ray_address) else "process"
    if args.imitate_successes is None:
        args.imitate_successes = args.human != "scripted"
    choose_eval_episodes(args, task)
