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
import math
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pytorch_serl.data.demos import read_demos
from pytorch_serl.data.episode_files import EpisodeWriter
from pytorch_serl.data.oddities import start_bounds
from pytorch_serl.networks.classifier import RewardClassifier
from pytorch_serl.scaling import torchrun
from pytorch_serl.scaling.parameters import from_bytes, to_bytes
from pytorch_serl.scaling.processes import LearnerError, RemoteLearner
from pytorch_serl.training import build
from pytorch_serl.training.actor import Actor
from pytorch_serl.training.arguments import fixed_settings as fixed_settings
from pytorch_serl.training.checkpoint import identity
from pytorch_serl.training.evaluate import (
    EVAL_SEED,
    EVALUATION_FILES,
    FINAL_SEED,
    differs,
    evaluate,
    evaluate_to_stop,
    report_evaluation,
)
from pytorch_serl.training.humans import add_device, has_device, scripted_line, scripted_settings
from pytorch_serl.training.hybrid_options import SAVE_DIR, choose_for_demos, choose_for_env, run_settings
from pytorch_serl.training.hybrid_options import parse_args as parse_args
from pytorch_serl.training.learner import Learner, Schedule
from pytorch_serl.training.limits import limits_for
from pytorch_serl.training.rewards import ClassifierReward, ContractError, state_conditions
from pytorch_serl.training.robot import close_robots, prepare, robots_in
from pytorch_serl.training.run import (
    BEST,
    CURVE,
    LAST,
    Clock,
    MetricLogger,
    check_run_dir,
    hold_run_dir,
    learning_curve,
    make_writable_dir,
    prepare_run_dir,
    print_settings,
    rng_state,
    run_script,
    save_settings,
    seed_all,
    set_rng_state,
    uninterrupted,
    user_errors,
)
from pytorch_serl.training.view import View, viewed
from pytorch_serl.utils.files import WriteError
from pytorch_serl.utils.signals import catch_stops

LOG_EVERY = 5  # episodes
ON_THE_BAR = ("train_success", "helped_steps", "false_successes", "q", "entropy", "overruns", "updates_per_second")
MAX_BEHIND = 50  # environment steps by which a learner may lag a simulation, which waits for it between episodes
SAMPLED = 5  # one episode to so many of an evaluation shows what samples of the same policy can do
SCREEN_MARGIN = 0.07  # an evaluation this far below --stop_at after its first episodes ends there


class HybridTraining:
    """The state of one run and the steps of its loop."""

    def __init__(self, args, agent, demos, save_dir, env, eval_env=None, view=None, clock=None):
        """`eval_env`: what `eval_env` returned; None: `env` itself. `view`: where the cameras are shown. `clock`: the
        run's, from its start."""
        self.clock = clock or Clock()
        self.args, self.agent, self.save_dir = args, agent, save_dir
        self.eval_env, self.run_episodes = eval_env or env, None  # here, in this process
        self.waits = args.simulated and not args.control_hz
        add_human = partial(build.add_human, human=args.human, **scripted_settings(args))
        self.update = torchrun.shared_update(agent)
        slow = agent.device.type == "cpu" or args.ray_address  # there a robot would wait for the crops of corrections
        acting = {
            "seed": args.seed,
            "random_steps": args.random_steps,
            "control_hz": args.control_hz,
            "max_steps": args.max_steps,
            "sparse": agent.config["q_range"] is not None,
            "views": 1 if slow and not self.waits else args.views,
        }
        learning = dict(
            save_dir=save_dir,
            seed=args.seed,
            views=args.views,
            capacity=args.buffer_capacity,
            demo_capacity=args.buffer_capacity // 2 + 2 * len(demos.transitions),  # a small one drops no demo either
            limits=limits_for(agent, demos.image_shapes),
            identity=identity("train_hybrid.py", run_settings(args), demos),
            schedule=Schedule(
                args.batch_size,
                args.cta_ratio,
                args.cycles_per_step,
                args.pretrain_steps,
                args.clone_weight,
                args.clone_steps,
                args.imitate_successes,
                args.algo,
                args.clone_std,
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
                make_env=partial(ready_env, there, replace(demos, transitions=[]), start_bounds(demos)),
                add_human=add_human,
                waits=self.waits,
                settings=acting,
            )
            if env is None:
                self.run_episodes = self.actor.evaluate
        else:
            writer = EpisodeWriter(save_dir, [*agent.image_keys, "state"])
            env = viewed(add_human(env, seed=args.seed), view)
            self.actor = Actor(agent, env, writer=writer, **acting)
            if args.learner == "inline":
                self.learner = Learner(agent, update=self.update, **learning)
            else:
                self.learner = RemoteLearner(agent, **learning)
        self.alarms = build.make_alarms(demos, agent)
        # best: the kept policy's success rate; low: its interval's lower end, the highest; solved: an evaluation says
        # stop
        self.progress = {"evaluated": -1, "best": -1.0, "low": -1.0, "best_step": 0, "solved": False, "minutes": 0.0}

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
        figures = {k: float(v) for k, v in info.items()} | self.actor.figures()
        log.log(step, figures | self.alarms.check(step, figures))
        shown = {k: f"{figures[k]:.2f}" for k in ON_THE_BAR if k in figures}
        action_ms = "/".join(f"{figures.get(f'action_ms_p{percent}', 0):.0f}" for percent in (50, 95, 99))
        bar.set_postfix(shown | {"action_ms": action_ms})

    def evaluate(self, step, log):
        """Unaided evaluation of the averaged policy; keeps the best one, and saves the run.

        Its samples are evaluated, too, in fewer episodes: they are what acts in training.
        """
        policy, stop_at, episodes = self.learner.averaged(), self.args.stop_at, self.args.eval_episodes
        result, solved = evaluate_to_stop(
            policy, self.eval_env, episodes, stop_at, stop_at - SCREEN_MARGIN, self.run_episodes
        )
        run = self.run_episodes or evaluate
        sampled = run(policy, self.eval_env, math.ceil(episodes / SAMPLED), argmax=False, seed=EVAL_SEED)
        minutes = self.clock.minutes()
        with uninterrupted():
            figures = {"eval_success": result.success_rate, "eval_sampled": sampled.success_rate, "minutes": minutes}
            log.log(step, figures | self.alarms.check_sampled(step, result, sampled))
            low, _ = result.interval  # of 57 in 60 episodes it is above that of 19 in 20
            if solved or low >= self.progress["low"]:
                self.progress |= {"best": result.success_rate, "low": low, "best_step": step}
                self.learner.save_averaged(self.save_dir / BEST)
            self.progress |= {"solved": solved, "evaluated": step}
            self.save(step)
            self.draw(log)
        # said last: a human who reads it may take over now, and keys that come before an episode's start are forgotten
        solves = f"{result}{differs(result, episodes)}; sampled {sampled.successes} of {sampled.episodes}"
        tqdm.write(f"step {step:,}: {solves}; {minutes:.1f} min")

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
        self.progress |= {"minutes": self.clock.minutes(), "episode": self.actor.episode, "recent": self.actor.recent}
        self.progress["rng"] = to_bytes(rng_state())  # a learner elsewhere has its own
        return dict(self.progress)  # a copy: a learner in another process gets it later

    def load(self):
        """Take over what `save` wrote; returns its step."""
        step, saved = self.learner.load()
        self.progress |= saved  # a run of an older version may lack an entry
        self.actor.episode, self.actor.recent = self.progress["episode"], self.progress["recent"]
        self.progress["solved"] &= self.progress["best"] >= self.args.stop_at  # it may be higher now
        if "rng" in saved:
            set_rng_state(from_bytes(saved["rng"], "cpu"))
        return self.recover(step)

    def draw(self, log):
        panels = {
            "share": ("eval_success", "eval_sampled", "train_success", "train_success_unaided", "helped_steps"),
            "Q": ("q", "q_max", "grasp_q"),
            "entropy": ("entropy",),
        }
        lines = log.curves(panels)
        target = ([0, log.rows[-1]["step"]], [self.agent.target_entropy] * 2)
        lines["entropy"] = lines.get("entropy", {}) | {"target": target}
        learning_curve(self.save_dir / CURVE, lines, xlabel="environment step")

    # ---------------------------------------------------------------- the loop

    def run(self, step, log):
        """Pretrain, then act and learn from `step` on; returns the last step. Ctrl-C saves and says where."""
        self.clock.before = self.progress["minutes"]
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
                evaluations = self.progress["evaluated"] // self.args.eval_every
                self.actor.ends_at = min(self.args.max_steps, (evaluations + 2) * self.args.eval_every)
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
    """The environment, checked against the demos, with the classifier's verdict as its reward where that is wanted.

    The defaults that depend on it go into `args`.
    """
    env = build.make_env(args.env, args.setup_mode, build.constructor_args(args.env_args))
    try:
        choose_for_env(args, env)
        build.check_env(env, demos, args.env)
        env = with_judges(env, args)
        judging = env.get_wrapper_attr("classifier").image_keys if args.reward == "classifier" else []
        for robot in robots_in(env):
            robot.use([*demos.image_keys, *judging])
        return env
    except BaseException:
        close_robots(env)
        raise


def ready_env(args, demos, starts):
    """`make_env`, with its rate and time limit, after a first reset and step: what is wrong shows before learning.

    `starts`: as `start_bounds` has it.
    """
    env = make_env(args, demos)
    longest = int(np.bincount(demos.episode_ids).max())
    try:
        verdict = args.reward == "env"
        prepare(env, args.env, longest, args.control_hz, verdict, max_steps=args.max_steps, starts=starts)
    except BaseException:
        close_robots(env)
        raise
    return env


def with_judges(env, args):
    """The environment with the classifier and the human with a device that the options ask for."""
    if args.reward == "classifier":
        classifier = RewardClassifier.from_checkpoint(args.classifier_ckpt, args.device)
        if not classifier.validation.get("informative", True):
            print(
                f"WARNING: {args.classifier_ckpt}: its validation frames do not show that it tells success from "
                "failure: do not let it reward a robot; record more scenes and train it again"
            )
        env = ClassifierReward(env, classifier, args.success_frames, state_conditions(args.success_state))
    if has_device(args.human):
        judge = "alone" if args.reward == "human" else "confirm" if args.confirm else "overrule"
        env, line = add_device(env, args, judge, say=tqdm.write)
        print(line)
    return env


def eval_env(args, env):
    """Where the policy is evaluated: in `env`, and beside it in others where they can be had and nobody else judges."""
    plain = env is not None and args.reward == "env" and not has_device(args.human)
    settings = build.constructor_args(args.env_args)
    return build.side_by_side(env, args.env, args.setup_mode, settings) if plain else env


def main(argv=None):
    args = parse_args(argv)
    # whatever happens, the environments are closed, after what is to be saved
    with hold_run_dir(args.save_dir or (None if args.eval_ckpt else SAVE_DIR)), ExitStack() as at_the_end:
        run(args, at_the_end)


def run(args, at_the_end):
    """The run that the options describe; `at_the_end` takes what closes the environments."""
    save_dir, clock = Path(args.save_dir or SAVE_DIR), Clock()
    with user_errors():
        # seeds
        torchrun.check_options(args.device, args.batch_size)
        if not args.eval_ckpt:
            check_run_dir(save_dir, args.resume, args.overwrite, EVALUATION_FILES)
        seed_all(args.seed)

        # data, environment
        demos = read_demos(args.demo_paths, args.image_keys, args.setup_mode)
        print(demos.summary())
        choose_for_demos(args, len(demos.transitions))
        judged = args.reward != "env" or has_device(args.human)
        for warning in (build.check_judged(demos) if judged else None, build.check_imitated(demos)):
            if warning:
                print(warning)
        if args.ray_address:
            from pytorch_serl.scaling import ray_cluster

            ray_cluster.connect(args.ray_address)
            save_dir = save_dir.absolute()  # the other processes have other working directories
        # a robot is there only once: it is evaluated where it acts, between two training episodes
        task = build.registered(args.env) if args.ray_address else None
        env = ready_env(args, demos, start_bounds(demos)) if not args.ray_address or build.is_simulated(task) else None
        at_the_end.callback(close_robots, env)
        choose_for_env(args, task if env is None else env)
        print_settings(vars(args))
        if args.human == "scripted" and not args.eval_ckpt:
            print(scripted_line(args))
        if args.learner != "inline" and torchrun.world_size() > 1 and not args.eval_ckpt:
            raise ValueError(
                f"--learner {args.learner} learns in a process of its own, which torchrun's cannot share; give "
                "--learner inline"
            )
        if has_device(args.human):
            at_the_end.callback(env.close)  # the device, too
        view = View(args.view, args.view_host) if args.view is not None else None
        if view:
            at_the_end.callback(view.close)
        envs = eval_env(args, env)
        at_the_end.callback(close_robots, envs)
        envs = viewed(envs, view)

        # networks and optimisers
        start = save_dir / LAST if args.resume else args.eval_ckpt or args.init_ckpt
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
            start=start,
        )
        print(build.describe_agent(agent))
        if start:  # a resumed run's, too: from a learner elsewhere comes what training changes, not the backbone
            agent.load(start)
        if args.eval_ckpt:
            agent = build.policy_of(agent, start)
            folder = Path(args.save_dir) if args.save_dir else None
            if folder:
                make_writable_dir(folder)
            report_evaluation(agent, envs, args.final_episodes, folder, seed=FINAL_SEED, sampled=args.sampled)
            return
        if args.init_ckpt and not args.resume:
            for optimizer in agent.optimizers.values():
                optimizer.state.clear()  # Adam's averages are of losses of other weights: its first steps would be off
        training = HybridTraining(args, agent, demos, save_dir, env, envs, view, clock)
        step = training.load() if args.resume else 0
        if not args.resume:
            training.learner.store_demos(demos)
        prepare_run_dir(save_dir, args.resume, args.overwrite, EVALUATION_FILES)
        log = MetricLogger(save_dir, resume_step=step if args.resume else None)
    save_settings(save_dir, vars(args))
    in_demos, online = training.learner.full_size_gb()
    print(
        f"buffers take memory as they fill; when full: demos and {args.buffer_capacity // 2:,} corrections "
        f"{in_demos:.1f} GB, {args.buffer_capacity:,} online transitions {online:.1f} GB"
    )

    with user_errors((ContractError,)):
        step = training.run(step, log)
    print(
        f"{step:,} environment steps, {clock.minutes():.1f} minutes; best policy: {save_dir / BEST} "
        f"(step {training.progress['best_step']:,})"
    )
    agent.load(save_dir / BEST)
    with user_errors((ContractError,)):
        settings = {"seed": FINAL_SEED, "run": training.run_episodes, "sampled": args.sampled}
        report_evaluation(agent, envs, args.final_episodes, save_dir, **settings)


if __name__ == "__main__":
    run_script(lambda: torchrun.run(main, torchrun.make_shared_update))
