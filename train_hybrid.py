"""Train a policy on demos and online experience, half and half, with human corrections (RLPD, HIL-SERL).

    python train_hybrid.py --demo_paths ./data/demos.pkl --image_keys image --setup_mode single-arm-learned-gripper
    python train_hybrid.py --demo_paths ./data/demos.pkl --image_keys image --setup_mode single-arm-learned-gripper \\
        --eval_ckpt ./hybrid_ckpt/best.pt --eval_episodes 100

Writes to --save_dir: last.pt and buffer_*.pt (to --resume), best.pt (the best evaluated agent), settings.json,
metrics.jsonl and TensorBoard events, learning_curve.png, evaluation.gif, evaluation.json.
Before it learns online it clones the demos for a moment (--pretrain_steps; 0 is the original's start from nothing).
"""

import time
from collections import deque
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from pytorch_serl.data.demos import SETUP_MODES, num_grippers, read_demos
from pytorch_serl.data.replay_buffer import ReplayBuffer, concat_batches
from pytorch_serl.networks.classifier import RewardClassifier
from pytorch_serl.training import build
from pytorch_serl.training.backbone import find_backbone
from pytorch_serl.training.checkpoint import RunCheckpoint
from pytorch_serl.training.evaluate import FINAL_SEED, evaluate, report_evaluation
from pytorch_serl.training.run import (
    MetricLogger,
    Parser,
    check_run_dir,
    learning_curve,
    prepare_run_dir,
    print_settings,
    save_settings,
    seed_all,
    user_errors,
)
from pytorch_serl.utils.device import pick_device

OWN_FILES = ("evaluation.gif", "evaluation.json")


def parse_args(argv=None):
    parser = Parser(__doc__.split("\n")[0])
    data = parser.add_argument_group("data and environment")
    data.add_argument("--demo_paths", nargs="+", required=True, help="demo files (pickles)")
    data.add_argument("--image_keys", nargs="+", required=True, help="cameras to use, in this order")
    data.add_argument("--setup_mode", required=True, choices=SETUP_MODES)
    data.add_argument("--env", default=build.BUILT_IN_ENV, help="Gymnasium id, package:Id included")
    data.add_argument("--human", choices=("scripted", "env"), help="who corrects the policy: the scripted "
                      "human, or what the environment reports in info['intervene_action']; default: scripted with the "
                      "built-in task, else env")  # fmt: skip
    data.add_argument("--reward", choices=("env", "classifier"), default="env", help="where success comes from")
    data.add_argument("--classifier_ckpt", help="best.pt of train_classifier.py, for --reward classifier")
    data.add_argument("--save_dir", default="./hybrid_ckpt", help="where the run goes")
    learn = parser.add_argument_group("learning")
    learn.add_argument("--max_steps", type=int, default=100_000, help="environment steps")
    learn.add_argument("--batch_size", type=int, help="half demos, half online; default 256, on a CPU 128")
    learn.add_argument("--lr", type=float, default=3e-4, help="Adam's learning rate")
    learn.add_argument("--discount", type=float, default=0.95, help="per environment step")
    learn.add_argument("--cta_ratio", type=int, default=2, help="critic updates per actor update")
    learn.add_argument(
        "--cycles_per_step", type=int, default=1, help="cycles of cta_ratio updates per environment step"
    )
    learn.add_argument("--init_ckpt", help="start from this agent (train_offline.py's best.pt) instead of pretraining")
    learn.add_argument("--pretrain_steps", type=int, default=1000, help="updates on the demos before step 0: "
                       "cloning, critics trained beside it; 0 starts from nothing, as the original does")  # fmt: skip
    learn.add_argument("--clone_steps", type=int, default=5000, help="environment steps over which the cloning term "
                       "fades to nothing (only after --init_ckpt or pretraining)")  # fmt: skip
    learn.add_argument("--clone_weight", type=float, default=1.0, help="weight of the cloning term at the start")
    learn.add_argument("--training_starts", type=int, help="online steps before the first update; default 1000, "
                       "100 after --init_ckpt or pretraining")  # fmt: skip
    learn.add_argument("--random_steps", type=int, help="steps with random actions; default 1000, 0 after --init_ckpt "
                       "or pretraining")  # fmt: skip
    learn.add_argument("--buffer_capacity", type=int, default=200_000, help="transitions per buffer")
    vision = parser.add_argument_group("vision")
    vision.add_argument(
        "--backbone", help="frozen backbone: resnet10_params.pkl or a backbone.pt; default: the best found"
    )
    vision.add_argument("--download_backbone", action="store_true", help="fetch the published weights if not there")
    vision.add_argument("--train_backbone", action="store_true", help="train the ResNet-10 as well (needs a GPU)")
    vision.add_argument("--views", type=int, default=4, help="stored crops of a demo frame (online frames: 1)")
    run = parser.add_argument_group("run")
    run.add_argument("--eval_every", type=int, default=1000, help="environment steps between evaluations")
    run.add_argument(
        "--eval_episodes", type=int, help="default 20 during training, 100 at the end and with --eval_ckpt"
    )
    run.add_argument("--stop_at", type=float, default=0.95, help="stop when two evaluations in a row reach this")
    run.add_argument("--eval_ckpt", help="evaluate this checkpoint and do nothing else")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--device", default="auto", help="auto, cuda, mps or cpu")
    run.add_argument("--resume", action="store_true", help="continue the run in --save_dir")
    run.add_argument("--overwrite", action="store_true", help="replace the run in --save_dir")
    return resolve(parser.parse_args(argv), parser)


def resolve(args, parser):
    """Fill in the defaults that depend on other settings and refuse what cannot work."""
    positive = ("max_steps", "cta_ratio", "cycles_per_step", "buffer_capacity", "views", "eval_every")
    for name in positive:
        if getattr(args, name) < 1:
            parser.error(f"--{name} is {getattr(args, name)}; wanted at least 1")
    if args.reward == "classifier" and not args.classifier_ckpt:
        parser.error("--reward classifier needs --classifier_ckpt; train_classifier.py writes one")
    with user_errors():
        args.device = pick_device(args.device)
    warm = bool(args.init_ckpt or args.pretrain_steps)
    defaults = {
        "batch_size": 128 if args.device.type == "cpu" else 256,
        "human": "scripted" if args.env == build.BUILT_IN_ENV else "env",
        "training_starts": 100 if warm else 1000,
        "random_steps": 0 if warm else 1000,
    }
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.batch_size < 2 or args.batch_size % 2:
        parser.error(f"--batch_size is {args.batch_size}; wanted an even number: half demos, half online")
    if args.human == "scripted" and args.env != build.BUILT_IN_ENV:
        parser.error("--human scripted knows the built-in task only; use --human env with your own environment")
    args.clone_weight = args.clone_weight if warm else 0.0
    return args


class HybridTraining:
    """The state of one run and the steps of its loop."""

    def __init__(self, args, agent, demos, save_dir):
        self.args, self.agent, self.save_dir = args, agent, save_dir
        self.env, self.eval_env = (build.make_env(args.env, args.setup_mode) for _ in range(2))
        build.check_env(self.env, demos, args.env)
        if args.human == "scripted":
            from pytorch_serl.envs.scripted import ScriptedHuman

            self.env = ScriptedHuman(self.env, seed=args.seed)
        self.classifier = None
        if args.reward == "classifier":
            self.classifier = RewardClassifier.from_checkpoint(args.classifier_ckpt, args.device)
        self.online = ReplayBuffer(args.buffer_capacity, agent.image_keys, seed=args.seed)
        self.demo = ReplayBuffer(args.buffer_capacity, agent.image_keys, seed=args.seed + 1)
        self.checkpoint = RunCheckpoint(save_dir, agent, {"online": self.online, "demo": self.demo})
        self.progress = {"episode": 0, "best": -1.0, "passed": 0, "minutes": 0.0}
        self.recent = deque(maxlen=20)  # (solved, helped steps, steps) of the last training episodes

    # ---------------------------------------------------------------- learning

    def sample(self, batch_size):
        """RLPD's batch: half online, half demos; `is_demo` marks the half that the cloning term reads."""
        half = batch_size // 2
        online, demo = self.online.sample(half), self.demo.sample(half)
        return concat_batches(
            online | {"is_demo": torch.zeros(half)},
            demo | {"is_demo": torch.ones(half)},
        )

    def pretrain(self):
        """Clone the demos with the critics trained beside it."""
        bar = tqdm(range(self.args.pretrain_steps), desc="pretraining on the demos", unit="update", mininterval=1)
        for i in bar:
            batch = self.demo.sample(self.args.batch_size)
            info = self.agent.update(batch, sac_weight=0.0, clone_weight=1.0)
            if i % 100 == 0:
                bar.set_postfix({k: f"{info[k].item():.3f}" for k in ("clone_error", "q") if k in info})

    def learn(self, step):
        """`cycles_per_step` cycles: cta_ratio - 1 critic-only updates, then one of all, each on a fresh batch."""
        clone = self.args.clone_weight * max(0.0, 1.0 - step / self.args.clone_steps)
        for _ in range(self.args.cycles_per_step):
            for _ in range(self.args.cta_ratio - 1):
                self.agent.update(self.sample(self.args.batch_size), critic_only=True)
            info = self.agent.update(self.sample(self.args.batch_size), clone_weight=clone)
        return info

    # ---------------------------------------------------------------- acting

    def start_episode(self):
        obs, _ = self.env.reset(seed=self.args.seed * 100_000 + self.progress["episode"])
        self.progress["episode"] += 1
        self.helped = self.length = 0
        self.stored = build.to_storage(self.agent, obs, views=1)

    def act(self, step):
        """One environment step: choose, execute, store. Returns whether the episode is over."""
        if step < self.args.random_steps:
            action = self.random_action()
        else:
            action = self.agent.sample_actions(build.acting_view(self.agent, self.stored))
        next_obs, reward, terminated, truncated, info = self.env.step(action)
        if self.classifier is not None:
            terminated = self.classifier.predict_success(next_obs)[1]
            reward = float(terminated)
        next_stored = build.to_storage(self.agent, next_obs, views=1)
        transition = {
            "observations": self.stored, "actions": info.get("intervene_action", action), "rewards": float(reward),
            "next_observations": next_stored, "masks": 1.0 - float(terminated), "dones": terminated or truncated,
            "grasp_penalty": info.get("grasp_penalty", 0.0),
        }  # fmt: skip
        self.online.add(transition)
        if "intervene_action" in info:
            self.add_to_demos(transition)
            self.helped += 1
        self.length += 1
        self.stored = next_stored
        if terminated or truncated:
            solved = terminated if self.classifier is not None else bool(info["succeed"])
            self.recent.append((float(solved), self.helped, self.length))
        return terminated or truncated

    def add_to_demos(self, transition):
        """Store a human's transition beside the demos, whose frames have --views views."""
        names = ("observations", "next_observations")
        views = {k: build.repeat_views(self.agent, transition[k], self.args.views) for k in names}
        self.demo.add(transition | views)

    def random_action(self):
        action = np.random.uniform(-1, 1, self.env.action_space.shape).astype(np.float32)
        grippers = num_grippers(self.args.setup_mode)
        if grippers:
            action.reshape(grippers, -1)[:, -1] = np.random.randint(-1, 2, grippers)
        return action

    # ---------------------------------------------------------------- watching

    def training_figures(self):
        """Success with and without help, and the helped share of steps, over the last 20 training episodes."""
        if not self.recent:
            return {}
        solved, helped, length = np.array(self.recent).T
        return {
            "train_success": solved.mean(),
            "train_success_unaided": (solved * (helped == 0)).mean(),
            "helped_steps": helped.sum() / length.sum(),
        }

    def evaluate(self, step, log):
        """Unaided evaluation; keeps the best agent. Returns whether the run may stop."""
        result = evaluate(self.agent, self.eval_env, self.args.eval_episodes or 20)
        tqdm.write(f"step {step}: {result}; {self.progress['minutes']:.1f} min")
        log.log(step, {"eval_success": result.success_rate, "minutes": self.progress["minutes"]})
        if result.success_rate >= self.progress["best"]:
            self.progress["best"] = result.success_rate
            self.agent.save(self.save_dir / "best.pt")
        self.progress["passed"] = self.progress["passed"] + 1 if result.success_rate >= self.args.stop_at else 0
        self.draw(log)
        return self.progress["passed"] >= 2

    def draw(self, log):
        names = ("eval_success", "train_success", "train_success_unaided", "helped_steps")
        panels = {
            "share": {n: log.series(n) for n in names},
            "Q": {n: log.series(n) for n in ("q", "q_max", "grasp_q") if log.series(n)[0]},
            "entropy": {"entropy": log.series("entropy")},
        }
        learning_curve(self.save_dir / "learning_curve.png", panels, xlabel="environment step")

    def run(self, step, log):
        """The loop, from `step` to the end. Ctrl-C saves the last finished episode's state and says where."""
        bar = tqdm(total=self.args.max_steps, initial=step, unit="step", desc="training", mininterval=1)
        since, stop, next_eval = time.monotonic(), False, (step // self.args.eval_every + 1) * self.args.eval_every
        try:
            while step < self.args.max_steps and not stop:
                self.start_episode()
                done, info = False, {}
                while not done:
                    done = self.act(step)
                    step += 1
                    bar.update()
                    if step >= self.args.training_starts:
                        info = self.learn(step)
                now = time.monotonic()
                self.progress["minutes"] += (now - since) / 60
                since = now
                if info and self.progress["episode"] % 5 == 0:
                    figures = {k: v.item() for k, v in info.items()} | self.training_figures()
                    log.log(step, figures)
                    shown = {k: f"{figures[k]:.2f}" for k in ("train_success", "helped_steps", "q", "entropy")}
                    bar.set_postfix(shown)
                if step >= next_eval or step >= self.args.max_steps:
                    stop = self.evaluate(step, log)
                    next_eval += self.args.eval_every
                    self.checkpoint.save(step, self.progress)
        except KeyboardInterrupt:
            path = self.checkpoint.save(step, self.progress)
            raise SystemExit(f"\ninterrupted at step {step}: saved {path}; continue with --resume") from None
        finally:
            bar.close()
        return step


def main(argv=None):
    args = parse_args(argv)
    with user_errors():
        if not args.eval_ckpt:
            check_run_dir(args.save_dir, args.resume, args.overwrite, OWN_FILES)
        print_settings(vars(args))
        seed_all(args.seed)
        demos = read_demos(args.demo_paths, args.image_keys, args.setup_mode)
        print(demos.summary())
        backbone, source = (
            (None, "backbone: trained with the critics")
            if args.train_backbone
            else find_backbone(args.backbone, own=Path("classifier_ckpt/backbone.pt"), download=args.download_backbone)
        )
        print(source)
        agent = build.make_agent(
            demos, lr=args.lr, discount=args.discount, device=args.device, backbone=backbone,
            trainable=args.train_backbone,
        )  # fmt: skip
        print(build.describe_agent(agent))
        if args.init_ckpt or args.eval_ckpt:
            agent.load(args.eval_ckpt or args.init_ckpt)
        save_dir = Path(args.save_dir)
        training = HybridTraining(args, agent, demos, save_dir)
        if args.eval_ckpt:
            report_evaluation(agent, training.eval_env, args.eval_episodes or 100, None)
            return
        step = training.checkpoint.load() if args.resume else (0, training.progress)
        step, training.progress = step
        prepare_run_dir(args.save_dir, args.resume, args.overwrite, OWN_FILES)
    save_settings(save_dir, vars(args))
    log = MetricLogger(save_dir, resume_step=step if args.resume else None)
    if not args.resume:
        build.add_demos(training.demo, demos, agent, args.views, progress=tqdm)
        if not args.init_ckpt:
            training.pretrain()
        training.evaluate(0, log)
    print(f"each buffer takes {training.demo.full_size_gb():.1f} GB when full ({args.buffer_capacity:,} transitions)")

    step = training.run(step, log)
    log.close()
    if (save_dir / "best.pt").exists():
        agent.load(save_dir / "best.pt")
    print(f"{step} environment steps, {training.progress['minutes']:.1f} minutes; best agent: {save_dir / 'best.pt'}")
    report_evaluation(agent, training.eval_env, args.eval_episodes or 100, save_dir, seed=FINAL_SEED)


if __name__ == "__main__":
    main()
