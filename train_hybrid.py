"""Train a policy on demos and online experience, half and half, with human corrections (RLPD, HIL-SERL).

    python train_hybrid.py --demo_paths ./data/demos.pkl --image_keys image --setup_mode single-arm-learned-gripper
    python train_hybrid.py --demo_paths ./data/demos.pkl --image_keys image --setup_mode single-arm-learned-gripper \\
        --eval_ckpt ./hybrid_ckpt/best.pt --eval_episodes 100

Writes to --save_dir: last.pt and buffer_*.pt (to --resume), best.pt (the best evaluated policy), episodes/ (every
training step, as it comes), settings.json, metrics.jsonl and TensorBoard events, learning_curve.png, evaluation.gif,
evaluation.json.
Before it learns online it clones the demos for a moment (--pretrain_steps; 0 is the original's start from nothing).
"""

import argparse
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pytorch_serl.data.demos import read_demos
from pytorch_serl.data.episode_files import EpisodeWriter
from pytorch_serl.networks.classifier import RewardClassifier
from pytorch_serl.scaling import torchrun
from pytorch_serl.scaling.processes import LearnerError, RemoteLearner
from pytorch_serl.training import build
from pytorch_serl.training.actor import Actor
from pytorch_serl.training.arguments import (
    add_cluster_arguments,
    add_data_arguments,
    add_learning_arguments,
    add_run_arguments,
    add_vision_arguments,
    check_cluster,
    check_shared,
    choose_for_device,
    eval_episodes,
)
from pytorch_serl.training.checkpoint import identity
from pytorch_serl.training.evaluate import EVALUATION_FILES, FINAL_SEED, evaluate_to_stop, report_evaluation
from pytorch_serl.training.humans import add_device, add_human_arguments, check_human, has_device
from pytorch_serl.training.learner import Learner, Schedule
from pytorch_serl.training.limits import limits_for
from pytorch_serl.training.rewards import ClassifierReward, ContractError, state_conditions
from pytorch_serl.training.robot import close_robots, prepare
from pytorch_serl.training.run import (
    BEST,
    LAST,
    MetricLogger,
    Parser,
    check_run_dir,
    hold_run_dir,
    learning_curve,
    make_writable_dir,
    prepare_run_dir,
    print_settings,
    run_script,
    save_settings,
    seed_all,
    uninterrupted,
    user_errors,
)
from pytorch_serl.training.view import View, add_view_arguments, viewed
from pytorch_serl.utils.files import WriteError
from pytorch_serl.utils.signals import catch_stops

SAVE_DIR = "./hybrid_ckpt"
LOG_EVERY = 5  # episodes
ON_THE_BAR = ("train_success", "helped_steps", "false_successes", "q", "entropy", "overruns", "updates_per_second")
MAX_BEHIND = 50  # environment steps by which a learner may lag a simulation, which waits for it between episodes
SCREEN_MARGIN = 0.07  # an evaluation this far below --stop_at after its first episodes ends there
# a resumed run must agree in these to continue bit for bit
FIXED = (
    "image_keys",
    "setup_mode",
    "env",
    "human",
    "reward",
    "success_frames",
    "success_state",
    "batch_size",
    "lr",
    "discount",
    "cta_ratio",
    "cycles_per_step",
    "pretrain_steps",
    "clone_steps",
    "clone_weight",
    "training_starts",
    "random_steps",
    "imitate_successes",
    "buffer_capacity",
    "views",
    "train_backbone",
    "seed",
)


def parse_args(argv=None):
    parser = Parser(__doc__.split("\n")[0])
    data = add_data_arguments(parser, save_dir=None, env="built-in")
    add_human_arguments(data)
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
    learn.add_argument("--cta_ratio", type=int, default=2, help="critic updates per actor update")
    learn.add_argument(
        "--cycles_per_step", type=int, default=1, help="cycles of cta_ratio updates per environment step"
    )
    learn.add_argument("--init_ckpt", help="start from this agent (train_offline.py's best.pt) instead of pretraining")
    learn.add_argument(
        "--pretrain_steps",
        type=int,
        default=1000,
        help="updates on the demos before step 0: cloning, critics trained beside it; 0 starts from nothing, as the "
        "original does",
    )
    learn.add_argument(
        "--clone_weight",
        type=float,
        default=20.0,
        help="weight of the cloning term at the start, next to Q-values of at most 1",
    )
    learn.add_argument(
        "--clone_steps",
        type=int,
        default=20_000,
        help="environment steps over which the cloning term fades to nothing (it is there only after --init_ckpt or "
        "pretraining)",
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
    learn.add_argument("--buffer_capacity", type=int, default=200_000, help="transitions per buffer")
    add_vision_arguments(parser, views=4)
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
        "delays an action; default: inline with the built-in task or panda and no --control_hz, else process",
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
    """Fill in the defaults that depend on other settings and refuse what cannot work."""
    args.gpu_learner = args.device in ("auto", "cuda")  # with --ray_address: one on another machine will do
    choose_for_device(args, max_steps=(100_000, 30_000), batch_size=(256, 64))
    check_shared(args, parser)
    with user_errors():
        torchrun.check_options(args.device, args.batch_size)
    at_least_one = ("cta_ratio", "cycles_per_step", "buffer_capacity", "clone_steps", "success_frames", "actors")
    parser.require(args, {name: (getattr(args, name) >= 1, "1 or more") for name in at_least_one})
    at_least_zero = ("pretrain_steps", "clone_weight", "training_starts", "random_steps")
    parser.require(args, {n: (getattr(args, n) is None or getattr(args, n) >= 0, "0 or more") for n in at_least_zero})
    parser.require(args, {"control_hz": (args.control_hz is None or args.control_hz > 0, "steps per second")})
    parser.require(args, {"batch_size": (args.batch_size % 2 == 0, "an even number: half demos, half online")})
    check_human(args, parser)
    if args.view is not None and args.ray_address:
        parser.error("--view shows the robot of this process, and with --ray_address there is none")
    simulated = build.is_simulated(args.env)
    warm = bool(args.init_ckpt or args.pretrain_steps)
    if args.learner is None:
        args.learner = "inline" if simulated and not (args.control_hz or args.ray_address) else "process"
    if args.learner != "inline" and torchrun.world_size() > 1:
        parser.error(
            f"--learner {args.learner} learns in a process of its own, which torchrun's cannot share; give "
            "--learner inline"
        )
    if args.init_ckpt:
        args.pretrain_steps = 0
    if args.human is None:
        args.human = "scripted" if simulated else "env"
    if args.imitate_successes is None:
        args.imitate_successes = args.human != "scripted"
    if args.training_starts is None:
        args.training_starts = 100 if warm else 1000
    if args.random_steps is None:
        args.random_steps = 0 if warm else 1000
    if not warm:
        args.clone_weight = 0.0
    if args.human == "scripted" and not simulated:
        parser.error("--human scripted knows the built-in task and panda only; use --human env with your own")
    if (args.reward == "human" or args.confirm) and not has_device(args.human):
        parser.error("--reward human and --confirm want your verdict; add --human keyboard or another device")
    if (args.success_state or args.success_frames > 1) and args.reward != "classifier":
        parser.error(
            "--success_frames and --success_state say when a classifier's verdict counts; add --reward classifier "
            "--classifier_ckpt ..."
        )
    with user_errors():
        state_conditions(args.success_state)
    if (args.reward == "classifier") != bool(args.classifier_ckpt):
        parser.error("--reward classifier and --classifier_ckpt go together; train_classifier.py writes the file")
    if args.eval_ckpt and (args.resume or args.init_ckpt):
        parser.error("--eval_ckpt evaluates, --resume and --init_ckpt train; give one of them")
    check_cluster(args, parser)
    return args


class HybridTraining:
    """The state of one run and the steps of its loop."""

    def __init__(self, args, agent, demos, save_dir, env, eval_env=None, view=None):
        """`eval_env`: what `eval_env` returned; None: `env` itself. `view`: where the cameras are shown."""
        self.args, self.agent, self.save_dir = args, agent, save_dir
        self.eval_env, self.run_episodes = eval_env or env, None  # here, in this process
        self.waits = build.is_simulated(args.env) and not args.control_hz
        self.update = torchrun.shared_update(agent)
        acting = {
            "seed": args.seed,
            "random_steps": args.random_steps,
            "control_hz": args.control_hz,
            "max_steps": args.max_steps,
            "sparse": agent.config["q_range"] is not None,
        }
        learning = dict(
            save_dir=save_dir,
            seed=args.seed,
            views=args.views,
            capacity=args.buffer_capacity,
            demo_capacity=args.buffer_capacity + 2 * len(demos.transitions),  # a small one drops no demo either
            limits=limits_for(agent, demos.image_shapes),
            identity=identity("train_hybrid.py", {name: getattr(args, name) for name in FIXED}, demos),
            schedule=Schedule(
                args.batch_size,
                args.cta_ratio,
                args.cycles_per_step,
                args.pretrain_steps,
                args.clone_weight,
                args.clone_steps,
                args.imitate_successes,
            ),
        )
        if args.ray_address:
            from pytorch_serl.scaling.ray_cluster import RayLearner
            from pytorch_serl.scaling.ray_robots import Robots

            there = argparse.Namespace(**vars(args) | {"device": "cpu"})
            self.learner = RayLearner(agent, args.gpu_learner, **learning)
            self.actor = Robots(
                agent,
                args.actors,
                self.learner,
                save_dir=save_dir,
                resume=args.resume,
                make_env=partial(ready_env, there, replace(demos, transitions=[])),
                human=args.human,
                waits=self.waits,
                settings=acting,
            )
            if env is None:
                self.run_episodes = self.actor.evaluate
        else:
            writer = EpisodeWriter(save_dir, [*agent.image_keys, "state"])
            env = viewed(build.add_human(env, args.human, args.seed), view)
            self.actor = Actor(agent, env, writer=writer, **acting)
            if args.learner == "inline":
                self.learner = Learner(agent, update=self.update, **learning)
            else:
                self.learner = RemoteLearner(agent, **learning)
        self.alarms = build.make_alarms(demos, agent)
        self.started, self.minutes_before = time.monotonic(), 0.0
        # best: the highest success rate; solved: an evaluation says stop
        self.progress = {"evaluated": -1, "best": -1.0, "best_step": 0, "solved": False, "minutes": 0.0}

    # ---------------------------------------------------------------- acting and learning

    def pretrain(self):
        """Clone the demos with the critics trained beside it."""
        done, total = self.learner.pretrained, self.args.pretrain_steps
        with tqdm(total=total, initial=done, desc="pretraining on the demos", unit="update", mininterval=1) as bar:
            while self.learner.pretrained < total:
                with uninterrupted():
                    info = self.learner.pretrain()
                bar.update()
                if self.learner.pretrained % 100 == 0:
                    bar.set_postfix({k: f"{float(info[k]):.3f}" for k in ("clone_error", "q") if k in info})

    def act(self, step):
        """One environment step, stored. Returns whether the episode is over."""
        transition, corrected = self.actor.act(step)
        self.learner.add(transition, to_demos=corrected)
        if transition["dones"]:
            self.learner.end_episode(self.actor.solved and not self.actor.helped)
        return transition["dones"]

    def recover(self, step):
        """Learn from the episodes that a killed run recorded after its checkpoint, too; returns the step after them."""
        first = self.actor.episode
        self.actor.episode, steps = self.learner.recover(first)
        episodes = self.actor.episode - first
        if episodes:
            print(f"{episodes} episodes ({steps} steps) were recorded after the checkpoint and are taken over")
        return step + steps

    # ---------------------------------------------------------------- watching

    def log(self, step, log, info, bar):
        figures = {k: float(v) for k, v in info.items()} | self.actor.figures() | self.actor.pace.figures()
        log.log(step, figures | self.alarms.check(step, figures))
        shown = {k: f"{figures[k]:.2f}" for k in ON_THE_BAR if k in figures}
        action_ms = "/".join(f"{figures.get(f'action_ms_p{percent}', 0):.0f}" for percent in (50, 95, 99))
        bar.set_postfix(shown | {"action_ms": action_ms})

    def evaluate(self, step, log):
        """Unaided evaluation of the averaged policy; keeps the best one, and saves the run."""
        policy, stop_at = self.learner.averaged(), self.args.stop_at
        result, solved = evaluate_to_stop(
            policy, self.eval_env, eval_episodes(self.args), stop_at, stop_at - SCREEN_MARGIN, self.run_episodes
        )
        tqdm.write(f"step {step:,}: {result}; {self.minutes():.1f} min")
        with uninterrupted():
            log.log(step, {"eval_success": result.success_rate, "minutes": self.minutes()})
            if solved or result.success_rate >= self.progress["best"]:
                self.progress |= {"best": result.success_rate, "best_step": step}
                self.learner.save_averaged(self.save_dir / BEST)
            self.progress |= {"solved": solved, "evaluated": step}
            self.save(step)
            self.draw(log)

    def save(self, step):
        self.update.check()
        return self.learner.save(step, self.state())

    def stop(self, step, reason):
        """Save amid the training and say where; what has come of an episode is stored first."""
        with uninterrupted():
            while self.actor.has_more:
                self.act(step)
                step += 1
            path = self.save(step)
        print(f"\n{reason}: environment step {step:,} is saved in {path}; continue with --resume")

    def state(self):
        self.progress |= {"minutes": self.minutes(), "episode": self.actor.episode, "recent": self.actor.recent}
        return dict(self.progress)  # a copy: a learner in another process gets it later

    def load(self):
        """Take over what `save` wrote; returns its step."""
        step, saved = self.learner.load()
        self.progress |= saved  # a run of an older version may lack an entry
        self.actor.episode, self.actor.recent = self.progress["episode"], self.progress["recent"]
        return self.recover(step)

    def minutes(self):
        return self.minutes_before + (time.monotonic() - self.started) / 60

    def draw(self, log):
        panels = {
            "share": ("eval_success", "train_success", "train_success_unaided", "helped_steps"),
            "Q": ("q", "q_max", "grasp_q"),
            "entropy": ("entropy",),
        }
        lines = log.curves(panels)
        target = ([0, log.rows[-1]["step"]], [self.agent.target_entropy] * 2)
        lines["entropy"] = lines.get("entropy", {}) | {"target": target}
        learning_curve(self.save_dir / "learning_curve.png", lines, xlabel="environment step")

    # ---------------------------------------------------------------- the loop

    def run(self, step, log):
        """Pretrain, then act and learn from `step` on; returns the last step. Ctrl-C saves and says where."""
        self.started, self.minutes_before = time.monotonic(), self.progress["minutes"]
        catch_stops()
        bar = None
        try:
            self.pretrain()
            bar = tqdm(total=self.args.max_steps, initial=step, unit="step", desc="training", mininterval=1)
            while True:
                last = max(self.progress["evaluated"], 0)
                due = step // self.args.eval_every > last // self.args.eval_every or step >= self.args.max_steps
                if self.progress["evaluated"] < 0 or (due and step > last):
                    self.evaluate(step, log)
                if step >= self.args.max_steps or self.progress["solved"]:
                    break
                self.actor.start_episode()
                # an evaluation that is due waits for the episode's end, but not longer than to the next one
                self.actor.ends_at = min(self.args.max_steps, (last // self.args.eval_every + 2) * self.args.eval_every)
                done, info = False, {}
                while not done:
                    with uninterrupted():
                        done = self.act(step)
                        step += 1
                        if step >= self.args.training_starts:
                            info = self.learner.learn(step)
                    bar.set_description_str(f"training, {self.actor.in_control} acts", refresh=False)
                    bar.update()
                if self.waits:
                    self.learner.catch_up(MAX_BEHIND)
                if info and self.actor.episode % LOG_EVERY == 0:
                    self.log(step, log, info, bar)
        except KeyboardInterrupt:
            self.stop(step, "interrupted")
            raise SystemExit(130) from None
        except (FloatingPointError, WriteError, LearnerError):  # no other checkpoint can be had: the last one is whole
            raise
        except Exception:  # a robot's or a camera's, say: what was learned and corrected until then is not lost
            self.stop(step, "stopped by an error")
            raise
        finally:
            if bar is not None:
                bar.close()
            log.close()
            self.actor.close()
            self.learner.close()
        return step


def make_env(args, demos):
    """The environment, checked against the demos, with the classifier's verdict as its reward where that is wanted."""
    env = build.make_env(args.env, args.setup_mode)
    try:
        build.check_env(env, demos, args.env)
        return with_judges(env, args)
    except BaseException:
        close_robots(env)
        raise


def ready_env(args, demos):
    """`make_env`, with its rate and time limit, after a first reset and step: what is wrong shows before learning."""
    env = make_env(args, demos)
    longest = int(np.bincount(demos.episode_ids).max())
    try:
        prepare(env, args.env, longest, args.control_hz, verdict=args.reward == "env", max_steps=args.max_steps)
    except BaseException:
        close_robots(env)
        raise
    return env


def with_judges(env, args):
    """The environment with the classifier and the human with a device that the options ask for."""
    if args.reward == "classifier":
        classifier = RewardClassifier.from_checkpoint(args.classifier_ckpt, args.device)
        env = ClassifierReward(env, classifier, args.success_frames, state_conditions(args.success_state))
    if has_device(args.human):
        judge = "alone" if args.reward == "human" else "confirm" if args.confirm else "overrule"
        env, line = add_device(env, args, judge, say=tqdm.write)
        print(line)
    return env


def eval_env(args, env):
    """Where the policy is evaluated: in `env`, and beside it in others where they can be had and nobody else judges."""
    plain = env is not None and args.reward == "env" and args.human == "scripted"
    return build.side_by_side(env, args.env, args.setup_mode) if plain else env


def main(argv=None):
    args = parse_args(argv)
    # whatever happens, the environments are closed, after what is to be saved
    with hold_run_dir(args.save_dir or (None if args.eval_ckpt else SAVE_DIR)), ExitStack() as at_the_end:
        run(args, at_the_end)


def run(args, at_the_end):
    """The run that the options describe; `at_the_end` takes what closes the environments."""
    save_dir = Path(args.save_dir or SAVE_DIR)
    with user_errors():
        # settings, seeds
        if not args.eval_ckpt:
            check_run_dir(save_dir, args.resume, args.overwrite, EVALUATION_FILES)
        print_settings(vars(args))
        seed_all(args.seed)

        # data, environment
        demos = read_demos(args.demo_paths, args.image_keys, args.setup_mode)
        print(demos.summary())
        if args.ray_address:
            from pytorch_serl.scaling import ray_cluster

            ray_cluster.connect(args.ray_address)
            save_dir = save_dir.absolute()  # the other processes have other working directories
        # a robot is there only once: it is evaluated where it acts, between two training episodes
        env = ready_env(args, demos) if not args.ray_address or build.is_simulated(args.env) else None
        at_the_end.callback(close_robots, env)
        if has_device(args.human):
            at_the_end.callback(env.close)  # the device, too
        view = View(args.view, args.view_host) if args.view is not None else None
        if view:
            at_the_end.callback(view.close)
        envs = eval_env(args, env)
        at_the_end.callback(close_robots, envs)
        envs = viewed(envs, view)

        # networks and optimisers
        start = args.eval_ckpt or args.init_ckpt or (save_dir / LAST if args.resume else None)
        backbone, line = (
            (None, f"backbone: as in {start}")
            if start
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
        )
        print(build.describe_agent(agent))
        if args.eval_ckpt or args.init_ckpt:
            agent.load(start)
        if args.eval_ckpt:
            folder = Path(args.save_dir) if args.save_dir else None
            if folder:
                make_writable_dir(folder)
            report_evaluation(agent, envs, eval_episodes(args, final=True), folder, seed=FINAL_SEED)
            return
        if args.init_ckpt:
            for optimizer in agent.optimizers.values():
                optimizer.state.clear()  # Adam's averages are of losses of other weights: its first steps would be off
        training = HybridTraining(args, agent, demos, save_dir, env, envs, view)
        step = training.load() if args.resume else 0
        if not args.resume:
            training.learner.store_demos(demos)
        prepare_run_dir(save_dir, args.resume, args.overwrite, EVALUATION_FILES)
        log = MetricLogger(save_dir, resume_step=step if args.resume else None)
    save_settings(save_dir, vars(args))
    print(
        "buffers of {:,} transitions take memory as they fill; when full: demos and corrections {:.1f} GB, online "
        "{:.1f} GB".format(args.buffer_capacity, *training.learner.full_size_gb())
    )

    with user_errors((ContractError,)):
        step = training.run(step, log)
    print(
        f"{step:,} environment steps, {training.progress['minutes']:.1f} minutes; best policy: {save_dir / BEST} "
        f"(step {training.progress['best_step']:,})"
    )
    agent.load(save_dir / BEST)
    with user_errors((ContractError,)):
        report_evaluation(
            agent, envs, eval_episodes(args, final=True), save_dir, seed=FINAL_SEED, run=training.run_episodes
        )


if __name__ == "__main__":
    run_script(lambda: torchrun.run(main, torchrun.make_shared_update))
