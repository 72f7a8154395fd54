"""Train a policy from demos alone: advantage-weighted cloning, cloning, or plain SAC; no robot needed.

    python train_offline.py --demo_paths ./data/demos.pkl --image_keys image --setup_mode single-arm-fixed-gripper
    python train_offline.py --demo_paths ./data/demos.pkl --image_keys image --setup_mode single-arm-fixed-gripper \\
        --env built-in --save_dir ./offline_evaluated      (with success rates, in the built-in task)

Writes to --save_dir: best.pt (for train_hybrid.py --init_ckpt or --eval_ckpt), last.pt and buffer_*.pt (to --resume),
settings.json, metrics.jsonl and TensorBoard events, learning_curve.png; with --env evaluation.gif, evaluation.json.
Without --env nobody knows the success rate: what is reported is the distance to the actions of held-out episodes.
"""

import math
import shlex
import signal
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pytorch_serl.data.demos import read_demos, split_episodes
from pytorch_serl.data.oddities import start_bounds
from pytorch_serl.data.replay_buffer import ReplayBuffer
from pytorch_serl.scaling import torchrun
from pytorch_serl.training import build
from pytorch_serl.training.alarms import check_numbers
from pytorch_serl.training.arguments import (
    add_data_arguments,
    add_learning_arguments,
    add_run_arguments,
    add_vision_arguments,
    check_shared,
    choose_eval_episodes,
    choose_for_device,
    fixed_settings,
)
from pytorch_serl.training.checkpoint import RunCheckpoint, identity
from pytorch_serl.training.evaluate import (
    EVALUATION_FILES,
    FINAL_SEED,
    differs,
    evaluate_to_stop,
    held_out_errors,
    report_evaluation,
)
from pytorch_serl.training.rewards import ContractError
from pytorch_serl.training.robot import close_robots, prepare, robots_in
from pytorch_serl.training.run import (
    BEST,
    CURVE,
    LAST,
    Clock,
    MetricLogger,
    Parser,
    check_run_dir,
    hold_run_dir,
    learning_curve,
    prepare_run_dir,
    print_settings,
    run_script,
    save_settings,
    seed_all,
    uninterrupted,
    user_errors,
)
from pytorch_serl.utils.signals import catch_stops

CLONING = {"sac_weight": 0.0, "clone_weight": 20.0}
UPDATES = {  # what each algorithm asks of agent.update; awac's cloned gripper has to prevail over its learned Q
    "awac": CLONING | {"advantage_weighted": True},
    "bc": CLONING | {"train_critic": False},  # the same weight: the same clone
    "sac": {},
}
LOG_EVERY, TIMED_UPDATES = 100, (10, 50)  # updates; the first ten warm up
IMPROVEMENT = 0.99  # a held-out error counts as better below this share of the best one
SPOILED = 1.1  # a last one above this share of it says that the demos' noise was learned by heart


def parse_args(argv=None):
    parser = Parser(__doc__.split("\n")[0])
    data = add_data_arguments(parser, save_dir="./offline_ckpt", env=None)
    data.add_argument(
        "--val_fraction",
        type=float,
        help="share of the episodes held out (at least one; none of fewer than 5); default 0.1, with --env 0",
    )
    data.add_argument(
        "--control_hz",
        type=float,
        help="with --env: environment steps per second to keep; default: the environment keeps its own time",
    )
    learn = add_learning_arguments(parser, unit="update", batch_help="transitions")
    learn.add_argument(
        "--algo",
        choices=UPDATES,
        default="awac",
        help="awac: cloning with critics trained beside it, weighted by the advantage unless every demo succeeds "
        "(AWAC, arXiv 2006.09359); bc: cloning alone, critics stay random; sac: the original's, expected to fail from "
        "demos",
    )
    learn.add_argument(
        "--patience",
        type=int,
        default=10,
        help="without --env: stop after so many evaluations without a held-out error at least 1 %% lower (awac and bc)",
    )
    add_vision_arguments(parser, views=8)
    add_run_arguments(parser, eval_every=1000, unit="update")
    return resolve(parser.parse_args(argv), parser)


def resolve(args, parser):
    """Fill in the defaults that depend on other settings and refuse what cannot work."""
    choose_for_device(args, max_steps=(50_000, 5_000), batch_size=(256, 64))
    if args.val_fraction is None:
        args.val_fraction = 0.0 if args.env else 0.1
    if args.eval_episodes is not None and not args.env:
        parser.error("--eval_episodes needs an environment; give --env as well")
    if args.final_episodes is not None and not args.env:
        parser.error("--final_episodes needs an environment; give --env as well")
    if args.stop_at is not None and not args.env:
        parser.error("--stop_at needs an environment; give --env as well")
    if not args.sampled and not args.env:
        parser.error("--no-sampled needs an environment; give --env as well")
    if args.env_args and not args.env:
        parser.error("--env_args needs an environment; give --env as well")
    if args.control_hz is not None and not args.env:
        parser.error("--control_hz needs an environment; give --env as well")
    check_shared(args, parser)
    with user_errors():
        torchrun.check_options(args.device, args.batch_size)
        build.constructor_args(args.env_args)
    parser.require(
        args,
        {
            "batch_size": (args.batch_size >= 2, "2 or more, for the spread of Q over the batch"),
            "control_hz": (args.control_hz is None or args.control_hz > 0, "steps per second"),
            "patience": (args.patience >= 1, "1 or more"),
            "val_fraction": (0 <= args.val_fraction < 1, "a share from 0 to below 1"),
        },
    )
    return args


def describe_split(train, held_out):
    if held_out is None:
        return f"{len(train.transitions)} transitions to train on, none held out (--val_fraction; needs 5 episodes)"
    train_episodes, held_out_episodes = (len(np.unique(part.episode_ids)) for part in (train, held_out))
    return (
        f"{train_episodes} episodes ({len(train.transitions)} transitions) to train on, {held_out_episodes} "
        f"({len(held_out.transitions)} transitions) held out"
    )


class OfflineTraining:
    """The state of one run and the steps of its loop."""

    def __init__(self, args, agent, save_dir, demos, env, clock=None):
        """`clock`: the run's, from its start."""
        self.clock = clock or Clock()
        self.args, self.agent, self.save_dir, self.env = args, agent, save_dir, env
        self.update = torchrun.shared_update(agent)
        self.update_options = UPDATES[args.algo]
        if args.algo == "awac" and build.all_solved(demos):
            print("every demo ends in success: none is weighted above another (their advantages would be noise)")
            self.update_options = self.update_options | {"advantage_share": 0.0}
        capacity = 2 * len(demos.transitions)  # no transition is dropped, even where every frame is stored apart
        self.demo = ReplayBuffer(capacity, agent.image_keys, seed=args.seed)
        self.held_out = ReplayBuffer(capacity, agent.image_keys)
        run = identity("train_offline.py", fixed_settings(args, may_change=("patience",)), demos)
        self.checkpoint = RunCheckpoint(save_dir, agent, {"demo": self.demo, "held_out": self.held_out}, run)
        self.alarms = build.make_alarms(demos, agent)
        # best: the kept policy's success rate, or the lowest held-out error; low: the highest lower end of a success
        # rate's interval; solved: an evaluation says stop
        best = {"best": -1.0 if env else math.inf, "low": -1.0, "best_step": 0}
        self.progress = best | {"solved": False, "evaluated": 0, "minutes": 0.0}

    def stop_reason(self):
        """Why the run may end before --max_steps, or None."""
        late = self.progress["evaluated"] - self.progress["best_step"]
        if self.env:
            return "--stop_at was reached, over other episodes as well" if self.progress["solved"] else None
        if len(self.held_out) and self.args.algo != "sac" and late >= self.args.patience * self.args.eval_every:
            return f"no better held-out error since update {self.progress['best_step']:,} (--patience)"
        return None

    def stop_rule(self):
        """`stop_reason` in advance, in words."""
        if self.env:
            return f"it stops sooner when an evaluation reaches {self.args.stop_at:.0%} (--stop_at)"
        if len(self.held_out) and self.args.algo != "sac":
            return (
                f"it stops sooner when the held-out error has not fallen for {self.args.patience} evaluations "
                f"({self.args.patience * self.args.eval_every:,} updates, --patience): more updates only fit noise"
            )
        return "there is nothing to stop it sooner; Ctrl-C saves, and --resume goes on"

    def noise_warning(self):
        """A line where the held-out error ended far above its lowest, or None."""
        rise, best_step = self.progress.get("rise", 0.0), self.progress["best_step"]
        if self.args.algo == "sac" or rise <= SPOILED:
            return None
        return (
            f"WARNING: the held-out error is {rise - 1:.0%} above that of update {best_step:,}: what was learned since "
            f"may be the noise of these demos; train again with --max_steps {best_step} and compare both on the robot"
        )

    # ---------------------------------------------------------------- watching

    def evaluate(self, step, log):
        """Success rate or held-out error of the averaged policy, best.pt, curves, checkpoint."""
        figures, now = {}, {"evaluated": step}
        texts, policy = [], self.agent.averaged()
        if len(self.held_out):
            figures |= held_out_errors(policy, self.held_out)
            texts.append(", ".join(f"{k.replace('_', ' ')} {v:.4f}" for k, v in figures.items()))
        if self.env:
            try:
                result, solved = evaluate_to_stop(policy, self.env, self.args.eval_episodes, self.args.stop_at)
            except Exception:  # the environment's: what was learned until then is not lost
                with uninterrupted():
                    path = self.save(step)
                print(f"\nstopped by an error: update {step:,} is saved in {path}; continue with --resume")
                raise
            figures["eval_success"] = result.success_rate
            texts.append(f"{result}{differs(result, self.args.eval_episodes)}")
            low, _ = result.interval  # of 57 in 60 episodes it is above that of 19 in 20
            now["solved"] = solved
            better = solved or low >= self.progress["low"]
            if better:
                now["low"] = low
        elif len(self.held_out):
            better = figures["held_out_error"] < IMPROVEMENT * self.progress["best"]
            now["rise"] = figures["held_out_error"] / self.progress["best"]
        else:
            better = False
        if better:
            now |= {"best": figures["eval_success" if self.env else "held_out_error"], "best_step": step}
        figures["minutes"] = self.clock.minutes()
        tqdm.write(f"update {step:,}: " + "; ".join([*texts, f"{figures['minutes']:.1f} min"]))
        with uninterrupted():
            self.progress |= now
            log.log(step, figures)
            if better and self.env:
                policy.save_policy(self.save_dir / BEST)
            self.save(step)
            self.draw(log)

    def save(self, step):
        """Write last.pt; without an environment best.pt too.

        The policy of lowest held-out error is a bad choice (robomimic, arXiv 2108.03298: success goes on rising while
        that error rises), so without success rates the last policy counts as the best.
        """
        self.progress["minutes"] = self.clock.minutes()
        self.update.check()
        if not self.env:
            self.agent.averaged().save_policy(self.save_dir / BEST)
        return self.checkpoint.save(step, self.progress)

    def draw(self, log):
        panels = {
            "success rate": ("eval_success",),
            "distance to\nrecorded actions": ("held_out_error", "clone_error"),
            "share of gripper\ncommands hit": ("held_out_gripper", "held_out_gripper_moves", "gripper_accuracy"),
            "Q": ("q", "q_max", "grasp_q"),
        }
        lines = log.curves(panels)
        if lines:
            learning_curve(self.save_dir / CURVE, lines, xlabel="update")

    # ---------------------------------------------------------------- learning

    def run(self, step, log):
        """The loop from `step` on; returns the last step. Ctrl-C saves the last whole update and says where."""
        args, first, options = self.args, step, dict(self.update_options)
        if "clone_weight" in options:
            options["clone_dropout"] = build.clone_dropout(self.agent)
        self.clock.before = self.progress["minutes"]
        catch_stops()
        bar = tqdm(total=args.max_steps, initial=step, unit="update", desc="training", mininterval=1)
        try:
            while True:
                due = step % args.eval_every == 0 or step >= args.max_steps
                if due and step > self.progress["evaluated"]:
                    self.evaluate(step, log)
                if step >= args.max_steps or self.stop_reason():
                    break
                with uninterrupted():
                    batch = self.demo.sample(args.batch_size)
                    info = self.update(batch, **options)
                    step += 1
                bar.update()
                if step % LOG_EVERY == 0:
                    check_numbers(info, [batch], self.save_dir, f"update {step}")
                    self.log(step, log, info, bar)
                if step - first in TIMED_UPDATES:
                    self.announce_duration(step - first, args.max_steps - first, info)
        except KeyboardInterrupt:
            with uninterrupted():
                path = self.save(step)
            self.draw(log)
            print(f"\ninterrupted: update {step:,} is saved in {path}; continue with --resume")
            raise SystemExit(128 + signal.SIGINT) from None
        finally:
            bar.close()
            log.close()
        return step

    def log(self, step, log, info, bar):
        figures = {name: value.item() for name, value in info.items()}
        log.log(step, figures | self.alarms.check(step, figures))
        bar.set_postfix({k: f"{figures[k]:.3f}" for k in ("clone_error", "gripper_accuracy", "q") if k in figures})

    def announce_duration(self, count, total, info):
        """After the timed updates say how long the run may take from its start or resumption on, `total` updates."""
        next(iter(info.values())).item()  # waits for the device
        if count == TIMED_UPDATES[0]:
            self.timed_from = time.monotonic()
            return
        seconds = (time.monotonic() - self.timed_from) / (TIMED_UPDATES[1] - TIMED_UPDATES[0])
        tqdm.write(
            f"{1000 * seconds:.0f} ms per update on {self.agent.device}: {total:,} updates take up to "
            f"{math.ceil(total * seconds / 60)} minutes; {self.stop_rule()}"
        )


def main(argv=None):
    args = parse_args(argv)
    # whatever happens, the environments are closed, after what is to be saved
    with hold_run_dir(args.save_dir), ExitStack() as at_the_end:
        run(args, at_the_end)


def run(args, at_the_end):
    """The run that the options describe; `at_the_end` takes what closes the environments."""
    save_dir, clock = Path(args.save_dir), Clock()
    with user_errors():
        # settings, seeds
        check_run_dir(save_dir, args.resume, args.overwrite, EVALUATION_FILES)
        print_settings(vars(args))
        seed_all(args.seed)
        if args.algo == "sac":
            print(
                "WARNING: plain SAC is expected to fail from demos only: nothing tells it what the actions are worth "
                "that the demos do not show. It is here to compare with; use --algo awac"
            )

        # data
        demos = read_demos(args.demo_paths, args.image_keys, args.setup_mode)
        print(demos.summary())
        if args.algo == "bc" and (warning := build.check_imitated(demos)):
            print(warning)
        train, held_out = split_episodes(demos, args.val_fraction, args.seed)
        print(describe_split(train, held_out))
        if not args.env:
            print("no success rate will be known, since no environment is given (--env): watch the policy on the robot")
        settings = build.constructor_args(args.env_args)
        env = build.make_env(args.env, args.setup_mode, settings) if args.env else None
        if env:
            at_the_end.callback(close_robots, env)
            choose_eval_episodes(args, env)
            build.check_env(env, demos, args.env)
            for robot in robots_in(env):
                robot.use(demos.image_keys)  # what else the environment shows may be anything
            longest = int(np.bincount(demos.episode_ids).max())
            prepare(env, args.env, longest, args.control_hz, verdict=True, starts=start_bounds(demos))
            env = build.side_by_side(env, args.env, args.setup_mode, settings)
            at_the_end.callback(close_robots, env)

        # networks and optimisers
        backbone, line = (
            (None, f"backbone: as in {save_dir / LAST}")
            if args.resume
            else build.choose_backbone(args.backbone, args.download_backbone, args.train_backbone)
        )
        print(line)
        agent = build.make_agent(
            demos,
            lr=args.lr,
            discount=args.discount,
            device=args.device,
            backbone=backbone,
            trainable=args.train_backbone,
            start=save_dir / LAST if args.resume else None,
        )
        print(build.describe_agent(agent))
        training = OfflineTraining(args, agent, save_dir, demos, env, clock)
        step, saved = training.checkpoint.load() if args.resume else (0, {})
        training.progress |= saved  # a run of an older version may lack an entry
        training.progress["solved"] &= training.progress["best"] >= args.stop_at  # it may be higher now
        if not args.resume:
            progress = partial(tqdm, desc="encoding the demos", unit="transition", mininterval=1)
            build.add_demos(training.demo, train, agent, args.views, progress=progress, keep=True)
            build.fit_waypoint(agent, training.demo, train)
            if held_out:
                build.add_demos(training.held_out, held_out, agent, views=1)
        prepare_run_dir(save_dir, args.resume, args.overwrite, EVALUATION_FILES)
        log = MetricLogger(save_dir, resume_step=step if args.resume else None)
    save_settings(save_dir, vars(args))
    print(f"{len(training.demo)} transitions in memory, {training.demo.size_gb():.2f} GB")

    with user_errors((ContractError,)):
        step = training.run(step, log)
    if step < args.max_steps:
        print(f"stopped early: {training.stop_reason()}")
    summary = f"{step:,} updates, {clock.minutes():.1f} minutes"
    if env:
        agent.load(save_dir / BEST)
        print(f"{summary}; best policy: {save_dir / BEST} (update {training.progress['best_step']:,})")
        with user_errors((ContractError,)):
            passes = {} if args.sampled else {"sampled": False}
            report_evaluation(agent, env, args.final_episodes, save_dir, seed=FINAL_SEED, **passes)
    else:
        print(f"{summary}; policy: {save_dir / BEST}, the last one. Its success rate is not known")
        if warning := training.noise_warning():
            print(warning)
        demos_of = {"--demo_paths": args.demo_paths, "--image_keys": args.image_keys, "--setup_mode": [args.setup_mode]}
        words = [word for option, values in demos_of.items() for word in (option, *values)]
        words += ["--train_backbone"] if args.train_backbone else []
        words += ["--env", "built-in", "--eval_ckpt", str(save_dir / BEST)]
        print("to evaluate it put the environment of these demos in place of built-in:")
        print(f"next: python train_hybrid.py {shlex.join(words)}")


if __name__ == "__main__":
    run_script(lambda: torchrun.run(main, torchrun.make_shared_update))
