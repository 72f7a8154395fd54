"""Options that train_offline.py and train_hybrid.py share; each function returns the group, to which a script adds."""

import argparse
from collections.abc import Iterable
from typing import Any

from pytorch_serl.data.demos import SETUP_MODES
from pytorch_serl.training import build
from pytorch_serl.training.humans import has_device
from pytorch_serl.training.run import Parser, user_errors
from pytorch_serl.utils.device import pick_device

STOP_AT = 0.98
# what a resumed run may have otherwise: where things are, how long and where it runs, how it is watched
MAY_CHANGE = (
    *("demo_paths", "save_dir", "init_ckpt", "eval_ckpt", "classifier_ckpt", "backbone", "download_backbone"),
    *("max_steps", "eval_every", "eval_episodes", "final_episodes", "sampled", "stop_at", "resume", "overwrite"),
    *("device", "gpu_learner", "learner", "control_hz", "simulated", "ray_address", "actors", "view", "view_host"),
    *("confirm", "dead_zone", "axis_signs", "axis_scale"),
)


def add_data_arguments(parser: Parser, save_dir: str | None, env: str | None) -> argparse._ArgumentGroup:
    """Demos, environment and run directory; `env` is the environment's default."""
    data = parser.add_argument_group("data and environment")
    data.add_argument(
        "--demo_paths",
        nargs="+",
        required=True,
        help="demo files (pickles), or folders with LeRobot datasets (docs/lerobot.md)",
    )
    data.add_argument("--image_keys", nargs="+", required=True, help="cameras to use, in this order")
    data.add_argument("--setup_mode", required=True, choices=SETUP_MODES)
    data.add_argument("--env", default=env, help=build.ENV_HELP)
    data.add_argument(
        "--env_args", nargs="+", default=[], metavar="KEY=VALUE", help="for the environment's constructor"
    )
    data.add_argument("--save_dir", default=save_dir, help="where the run goes")
    return data


def add_learning_arguments(parser: Parser, unit: str, batch_help: str) -> argparse._ArgumentGroup:
    """Length of the run in `unit`s, batch, learning rate, discount; see `choose_for_device`."""
    learn = parser.add_argument_group("learning")
    learn.add_argument("--max_steps", type=int, help=f"{unit}s at most; None: by device")
    learn.add_argument("--batch_size", type=int, help=f"{batch_help}; None: by device")
    learn.add_argument("--lr", type=float, default=3e-4, help="Adam's learning rate")
    learn.add_argument("--discount", type=float, default=0.95, help="per environment step")
    return learn


def add_vision_arguments(parser: Parser, views: int) -> argparse._ArgumentGroup:
    """Backbone, and the number of stored crops of a demo frame."""
    vision = parser.add_argument_group("vision")
    vision.add_argument(
        "--backbone",
        help="frozen backbone: resnet10_params.pkl, a backbone.pt, or random (for comparisons); None: the published "
        "weights where they are, else your own, else the shipped one (docs/backbone.md)",
    )
    vision.add_argument("--download_backbone", action="store_true", help="fetch the published weights if not there")
    vision.add_argument("--train_backbone", action="store_true", help="train the ResNet-10 as well (needs a GPU)")
    vision.add_argument(
        "--views",
        type=int,
        default=views,
        help="stored crops of each frame of demos and corrections; the first is uncropped",
    )
    return vision


def add_run_arguments(parser: Parser, eval_every: int, unit: str) -> argparse._ArgumentGroup:
    """Evaluation, seed, device, resume and overwrite."""
    run = parser.add_argument_group("run")
    run.add_argument("--eval_every", type=int, default=eval_every, help=f"{unit}s between evaluations")
    run.add_argument(
        "--eval_episodes",
        type=int,
        help="of an evaluation during training, three times as many where the first ones reach --stop_at; default 20, "
        "50 where they run side by side (docs/simulation.md)",
    )
    run.add_argument(
        "--final_episodes", type=int, help="of the final evaluation; default --eval_episodes if given, else 100"
    )
    run.add_argument(
        "--sampled",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="evaluate at the end with sampled actions, too; without, it takes half the time",
    )
    run.add_argument(
        "--stop_at",
        type=float,
        help=f"stop at this success rate, default {STOP_AT}; an evaluation that reaches it goes on over twice as many "
        "other episodes, and all of them count",
    )
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--device", default="auto", help="auto, cuda, cuda:1, mps or cpu")
    run.add_argument("--resume", action="store_true", help="continue the run in --save_dir")
    run.add_argument("--overwrite", action="store_true", help="replace the run in --save_dir")
    return run


def add_cluster_arguments(parser: Parser) -> argparse._ArgumentGroup:
    """Robots and learner on a Ray cluster; see `check_cluster`."""
    cluster = parser.add_argument_group("several robots (docs/cluster.md)")
    cluster.add_argument(
        "--ray_address",
        help="act on the robots of a Ray cluster and learn in it: auto (the one that this machine is part of) or "
        "host:port",
    )
    cluster.add_argument("--actors", type=int, default=1, help="robots, with --ray_address")
    return cluster


def choose_for_device(args: argparse.Namespace, **choices: tuple[int, int]) -> None:
    """Resolve --device, and the options of `choices` that were not given: name -> (value, value on a CPU)."""
    with user_errors():
        args.device = pick_device(args.device)
    on_cpu = args.device.type == "cpu"
    chosen = [name for name in choices if getattr(args, name) is None]
    for name in chosen:
        setattr(args, name, choices[name][on_cpu])
    if on_cpu and chosen:
        texts = [f"--{name} {choices[name][1]:,} (elsewhere {choices[name][0]:,})" for name in chosen]
        print(f"on a CPU, so that the run ends in reasonable time: {', '.join(texts)}")


def choose_eval_episodes(args: argparse.Namespace, task: Any) -> None:
    """Fill in --eval_episodes and --final_episodes; `task`: the environment, its class, or None (not known)."""
    if args.final_episodes is None:
        args.final_episodes = args.eval_episodes or 100
    if args.eval_episodes is None:
        args.eval_episodes = 50 if build.eval_copies(task) > 1 else 20


def fixed_settings(args: argparse.Namespace, may_change: Iterable[str] = ()) -> dict[str, Any]:
    """The options by name in which a resumed run must agree to go on bit for bit: all that may not change."""
    return {name: value for name, value in vars(args).items() if name not in (*MAY_CHANGE, *may_change)}


def check_shared(args: argparse.Namespace, parser: Parser) -> None:
    """Refuse numbers of the shared options that cannot be meant, and a --backbone beside --download_backbone; fill in
    --stop_at."""
    if args.stop_at is None:
        args.stop_at = STOP_AT
    if args.backbone is not None and args.download_backbone:
        parser.error(f"--download_backbone fetches the published weights, --backbone says {args.backbone}; give one")
    at_least_one = ("max_steps", "batch_size", "views", "eval_every")
    parser.require(args, {name: (getattr(args, name) >= 1, "1 or more") for name in at_least_one})
    parser.require(
        args,
        {
            "eval_episodes": (args.eval_episodes is None or args.eval_episodes >= 1, "1 or more"),
            "final_episodes": (args.final_episodes is None or args.final_episodes >= 1, "1 or more"),
            "lr": (0 < args.lr < 1, "a learning rate between 0 and 1"),
            "discount": (0 < args.discount <= 1, "a factor above 0 and up to 1"),
            "stop_at": (0 <= args.stop_at <= 1, "a success rate from 0 to 1"),
            "seed": (0 <= args.seed < 2**63, "0 to 2^63 - 1"),
        },
    )
    if args.train_backbone and args.views != parser.get_default("views"):
        print(f"--views {args.views} has no effect with --train_backbone: frames are stored as they are, uncropped")


def check_cluster(args: argparse.Namespace, parser: Parser) -> None:
    """Refuse what a cluster cannot have, and what wants one."""
    if not args.ray_address:
        if args.actors > 1:
            parser.error("--actors says how many robots of a Ray cluster act; add --ray_address (docs/cluster.md)")
        return
    if args.ray_address == "local" or args.ray_address.startswith("ray://"):
        parser.error("--ray_address takes auto or host:port; run the command on a machine of the cluster")
    if has_device(args.human):
        parser.error(
            f"--human {args.human} sits at this terminal, the robots may be elsewhere; let the environment "
            "report corrections (--human env)"
        )
    if args.learner == "inline":
        parser.error("--learner inline learns between two steps of a robot; leave it out with --ray_address")
    if args.eval_ckpt:
        parser.error("--eval_ckpt evaluates on this machine alone; leave --ray_address out")
