"""Record demonstrations, and frames for the reward classifier, in any environment and with any device.

    python record_demos.py --num_demos 20 --output_dir ./data
    python record_demos.py --env my_robot:MyRobot-v0 --setup_mode single-arm-learned-gripper --human gamepad \\
        --num_demos 20 --control_hz 10 --output_dir ./data

Writes to --output_dir:
    demos.pkl            the successful episodes, for train_offline.py and train_hybrid.py
    failed_demos.pkl     with --keep_failures, the others
    success/, failure/   frames for train_classifier.py, one file per scene and class
    cameras.png          before the first episode: every camera's frame, and what the network sees of it
    demos.png            first, middle and last frame of every episode
    episodes/            every episode as it came; --resume goes on from these
"""

import shlex
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pytorch_serl.data.demos import SETUP_MODES, read_demos
from pytorch_serl.data.episode_files import EpisodeWriter, episode_files
from pytorch_serl.data.oddities import same_cameras
from pytorch_serl.envs.human.scripted import check_expert
from pytorch_serl.training import build, recording
from pytorch_serl.training.humans import (
    add_device,
    add_human_arguments,
    add_patience,
    check_human,
    device_words,
    has_device,
    scripted_steps,
)
from pytorch_serl.training.recording import RECORD_SEED
from pytorch_serl.training.run import (
    Parser,
    hold_run_dir,
    holds_run,
    make_writable_dir,
    print_settings,
    run_script,
    user_errors,
)
from pytorch_serl.training.view import View, add_view_arguments, viewed

DATA = Path("data")
SCRIPTED_CLASSIFIER_EPISODES = 120  # with 40 one camera's classifier misses a third of the successes
SCENES_APART = (
    50_000  # the seeds of classifier episodes and of their failures lie so far from the demos' and each other
)
CHECKED_EPISODES = 10  # in which --check watches the expert
MAX_FAILURES = 100  # an expert who fails so often in a row cannot do it


def parse_args(argv=None):
    parser = Parser(__doc__.split("\n")[0])
    where = parser.add_argument_group("environment and files")
    where.add_argument("--env", default="built-in", help=build.ENV_HELP)
    where.add_argument(
        "--env_args", nargs="+", default=[], metavar="KEY=VALUE", help="for the environment's constructor"
    )
    where.add_argument("--setup_mode", choices=SETUP_MODES, default="single-arm-learned-gripper")
    where.add_argument("--image_keys", nargs="+", help="cameras to record; default: all")
    where.add_argument("--output_dir", default=f"./{DATA}", help="where to write")
    where.add_argument("--resume", action="store_true", help="go on with the recording in --output_dir")
    where.add_argument("--overwrite", action="store_true", help="replace the recording in --output_dir")
    who = parser.add_argument_group("who steers, and how often")
    add_human_arguments(who)
    who.add_argument("--noise", type=float, default=0.1, help="of the scripted expert's actions, a standard deviation")
    who.add_argument(
        "--control_hz", type=float, help="environment steps per second to keep; default: the environment's"
    )
    who.add_argument("--seed", type=int, default=0)
    add_view_arguments(who)
    what = parser.add_argument_group("what is recorded")
    what.add_argument("--num_demos", type=int, default=20, help="successful episodes")
    what.add_argument("--keep_failures", action="store_true", help="write failed_demos.pkl, too")
    what.add_argument(
        "--num_classifier_episodes",
        type=int,
        help=f"with the scripted expert: further episodes for success/ and failure/, near misses among them, default "
        f"{SCRIPTED_CLASSIFIER_EPISODES} in a simulation, else none; 0 writes no classifier frames at all",
    )
    what.add_argument("--classifier_only", action="store_true", help="frames for the classifier and no demos")
    what.add_argument(
        "--check",
        action="store_true",
        help="check the environment, and its expert where he steers, write cameras.png, and end",
    )
    add_patience(what)
    args = parser.parse_args(argv)
    limits = {
        "num_demos": (args.num_demos >= 1, "1 or more"),
        "noise": (args.noise >= 0, "0 or more"),
        "seed": (0 <= args.seed < 1000, "0 to 999"),
        "control_hz": (args.control_hz is None or args.control_hz > 0, "steps per second"),
        "num_classifier_episodes": ((args.num_classifier_episodes or 0) >= 0, "0 or more"),
    }
    parser.require(args, limits)
    check_human(args, parser)
    if args.resume and args.overwrite:
        parser.error("--resume and --overwrite exclude each other")
    return args


def choose_human(env, human):
    """Who steers: as asked, or whom the environment offers."""
    has_expert = build.has_expert(env)
    if human == "scripted" and not has_expert:
        raise ValueError(
            "--human scripted needs an environment with a scripted_expert(noise, seed) (docs/simulation.md)"
        )
    return human or ("scripted" if has_expert and build.is_simulated(env) else "env")


def beside_human(env, args):
    """The environment with the human beside it who steers from each reset on."""
    if not has_device(args.human):
        return env
    human, line = add_device(env, args, judge="label" if args.classifier_only else "overrule", say=tqdm.write)
    print(f"{line}\nyou steer from the first step of an episode to its last: there is nothing to take over")
    return human.steered(leads=True)


def steering(env, args, number):
    """The action of who steers episode `number`, anew at each call; where a human does, standing still is asked for."""
    if args.human == "scripted":
        return env.unwrapped.scripted_expert(args.noise, seed=[args.seed, number]).act
    still = np.zeros(env.action_space.shape, np.float32)
    return lambda: still


def check_folder(folder, args):
    """Refuse a folder with a run or a recording in it, with --resume one whose demos lack the episodes they were made
    of."""
    if holds_run(folder):  # its episodes have the names that a recording's have, and would be taken for them
        raise ValueError(f"{folder} holds the run of a training script; name another --output_dir to record to")
    found = [path for paths in recording.recorded_files(folder) for path in paths]
    if found and not (args.resume or args.overwrite):
        names = dict.fromkeys(path.relative_to(folder).parts[0] for path in found)
        raise ValueError(
            f"{folder} holds a recording ({', '.join(names)}); go on with --resume, replace it with --overwrite, or "
            "name another --output_dir"
        )
    demos = folder / recording.DEMOS
    if args.resume and not args.classifier_only and demos.exists() and not episode_files(folder):
        raise ValueError(
            f"{demos} is there without the episodes that it was made of, so --resume would replace it; record into "
            "another --output_dir, and give both files to --demo_paths"
        )
    make_writable_dir(folder)


def clear_folder(folder, args):
    """Remove what --overwrite replaces, with --classifier_only the frames alone; other files stay."""
    demos, frames = recording.recorded_files(folder)
    for path in [*(() if args.classifier_only else demos), *frames]:
        path.unlink()


def record_demos(env, args, keys, limits, folder):
    """Record until there are --num_demos successes; returns number -> success of all that are kept."""
    found = recording.finished_episodes(folder, limits)
    kept = {number: success for number, success in found.items() if success or args.keep_failures}
    writer = EpisodeWriter(folder, keys)
    number, failures = max(found, default=-1) + 1, 0  # in a row
    failed = sum(not success for success in found.values())
    with tqdm(total=args.num_demos, initial=sum(kept.values()), unit="demo", desc="recording") as bar:
        while sum(kept.values()) < args.num_demos:
            if has_device(args.human):
                env.get_wrapper_attr("wait_until_ready")()
            act, seed = steering(env, args, number), RECORD_SEED + args.seed * 100_000 + number
            outcome, steered = recording.record_episode(env, act, limits, writer, number, seed)
            if args.human == "env" and not steered:
                raise ValueError(
                    "nobody steered: the environment reported no info['intervene_action'] in a whole episode; name a "
                    "device with --human (docs/devices.md)"
                )
            failures = 0 if outcome == "success" else failures + 1
            failed += outcome == "failure"
            if outcome == "success" or (outcome == "failure" and args.keep_failures):
                kept[number] = outcome == "success"
            elif outcome == "failure":
                writer.path.unlink()
            bar.update(outcome == "success")
            bar.set_postfix(last=outcome, failed=failed)
            number += 1
            if args.human == "scripted" and failures == MAX_FAILURES:
                raise ValueError(f"the expert failed {failures} times in a row with --noise {args.noise:g}; try less")
    return kept


def scripted_frames(env, args, keys, limits, folder, episodes):
    """Classifier frames of the scripted expert's further episodes; returns (success, failure) counts."""
    counts, start = np.zeros(2, int), RECORD_SEED + args.seed * 100_000 + SCENES_APART
    scratch = EpisodeWriter(folder / "scratch", keys)
    for scene in tqdm(range(episodes), unit="scene", desc="classifier frames"):
        rng = np.random.default_rng([args.seed, SCENES_APART + scene])
        for attempt in range(MAX_FAILURES):
            act = steering(env, args, SCENES_APART + scene + attempt * 1000)
            seed = start + scene + attempt * 1000
            if recording.record_episode(env, act, limits, scratch, scene, seed)[0] == "success":
                break
        else:
            raise ValueError(f"the expert failed {MAX_FAILURES} times in a row with --noise {args.noise:g}; try less")
        transitions = recording.stored_transitions(folder / "scratch", scene)
        success, way = recording.frames_of_demo(transitions, rng)
        success += recording.more_success(env, keys, args.setup_mode, transitions[-1]["actions"], rng)
        lost = recording.failed_frames(env, keys, args.setup_mode, rng, start + SCENES_APART // 2 + scene)
        name, number = f"episode_{scene:03d}.pkl", SCENES_APART + scene
        counts += recording.write_frames(folder, name, number, success, way + lost)
    shutil.rmtree(folder / "scratch", ignore_errors=True)
    return counts


def demo_frames(args, folder, numbers):
    """Classifier frames of the recorded demos themselves; returns (success, failure) counts."""
    counts = np.zeros(2, int)
    for number in numbers:
        rng = np.random.default_rng([args.seed, number])
        frames = recording.frames_of_demo(recording.stored_transitions(folder, number), rng)
        counts += recording.write_frames(folder, f"demo_{number:03d}.pkl", number, *frames)
    return counts


def labelled_frames(env, args, keys, folder):
    """Frames of --num_demos scenes in which the human moves about and says when they show success; (success, failure).

    On disk when a scene ends; with --resume the scenes that are there count.
    """
    print(
        "move about; y (hold the success button of a gamepad) while the scene shows success, n when it no longer does; "
        "x ends a scene. Near misses teach most: beside the object, almost there, held but not lifted"
    )
    counts, still = np.zeros(2, int), np.zeros(env.action_space.shape, np.float32)
    there = {int(path.stem[-3:]) for path in folder.glob("*/labelled_[0-9][0-9][0-9].pkl")}
    for scene in range(args.num_demos):
        if scene in there:
            continue
        if has_device(args.human):
            env.get_wrapper_attr("wait_until_ready")()
        obs, _ = env.reset(seed=RECORD_SEED + args.seed * 100_000 + 2 * SCENES_APART + scene)
        frames, over = ([], []), False
        while not over:
            obs, _, terminated, truncated, info = env.step(still)
            over = terminated or truncated
            if not info.get("discard"):
                frames[int(info.get("label", info.get("succeed", 0)))].append({k: obs[k] for k in keys if k in obs})
        name = f"labelled_{scene:03d}.pkl"
        counts += recording.write_frames(folder, name, 2 * SCENES_APART + scene, frames[1], frames[0])
        print(f"scene {scene}: {len(frames[1])} success, {len(frames[0])} failure")
    return counts


def report(args, folder, kept, keys, counts):
    """What the training scripts will say of these files, the pictures, and the command to go on with."""
    if kept:
        demos = read_demos(folder / recording.DEMOS, keys, args.setup_mode)
        print(demos.summary())
        if has_device(args.human) and (warning := build.check_judged(demos)):
            print(warning)
        solved = [number for number, success in kept.items() if success]
        recording.demos_picture(folder / recording.DEMOS_PICTURE, folder, solved, keys)
        print(f"look at {folder / recording.DEMOS_PICTURE}: first, middle and last frame of every demo")
    if counts.any():
        labelled = args.classifier_only and args.human != "scripted"
        hard = f"; the last {recording.HARD_FRAMES} frames before each success are the hard failures among them"
        print(f"classifier frames: {counts[0]} success, {counts[1]} failure{'' if labelled else hard}")
        print(f"next: {train_classifier_line(folder, keys)}")
    if kept:
        print(f"next: {train_hybrid_line(args, folder, keys)}")


def train_classifier_line(folder, keys):
    """The command that trains a classifier of these frames."""
    frames = [word for name in ("success", "failure") for word in (f"--{name}_dir", str(folder / name))]
    return shlex.join(
        ["python", "train_classifier.py", *frames, "--image_keys", *keys, "--output_dir", runs(folder)[1]]
    )


def train_hybrid_line(args, folder, keys):
    """The command that trains on these demos, with the same environment, human and judge."""
    words = ["--demo_paths", str(folder / recording.DEMOS), "--image_keys", *keys, "--setup_mode", args.setup_mode]
    words += ["--env", args.env] if args.env != "built-in" else []
    words += ["--env_args", *args.env_args] if args.env_args else []
    words += ["--control_hz", f"{args.control_hz:g}"] if args.control_hz else []
    words += ["--reward", args.reward] if args.reward != "env" else []
    return shlex.join(
        ["python", "train_hybrid.py", *words, "--human", args.human, *device_words(args), "--save_dir", runs(folder)[0]]
    )


def runs(folder):
    """Where a policy and a classifier from this folder go: each recording has its own; ./data has README's."""
    if folder == DATA:
        return "./hybrid_ckpt", "./classifier_ckpt"
    name = folder.resolve().name
    return f"./runs/{name}", f"./runs/{name}_classifier"


def main(argv=None):
    args = parse_args(argv)
    folder = Path(args.output_dir)
    with hold_run_dir(folder), ExitStack() as at_the_end:  # whatever happens, the environment is closed
        with user_errors((ValueError, OSError, ImportError, RuntimeError)):
            if not args.check:
                check_folder(folder, args)
            env = build.make_env(args.env, args.setup_mode, build.constructor_args(args.env_args))
            at_the_end.callback(env.close)
            env.control_hz = args.control_hz
            args.human = choose_human(env, args.human)
            print_settings(vars(args))
            cameras = recording.check_spaces(env, args.image_keys, args.setup_mode)
            env.use(cameras)
            if env.limit is None and args.human == "scripted":
                print(
                    "WARNING: no time limit is registered for the environment: an episode in which the expert gets "
                    "stuck does not end"
                )
            env.probe(verdict=not has_device(args.human))
            args.reward = "env" if env.verdict else "human"  # who said it here; train_hybrid.py has to be told
            view = View(args.view, args.view_host) if args.view is not None else None
            if view:
                at_the_end.callback(view.close)
        with user_errors((ValueError, OSError, EOFError)):
            look(env, args, cameras, folder)
            if args.check:
                if args.human == "scripted":
                    rate = build.steps_per_second(env, args.control_hz)
                    patience = scripted_steps(args.patience, (), rate)["patience"]
                    print(check_expert(env, CHECKED_EPISODES, RECORD_SEED, args.noise, patience, rate=rate))
                return
            env = beside_human(env, args)
            at_the_end.callback(env.close)  # the device, too; the environment below it is closed once
            if args.overwrite:
                clear_folder(folder, args)
            try:
                steers = "scripted expert" if args.human == "scripted" else "human"
                record(viewed(env, view, steers), args, cameras, folder)
            except BaseException:
                if any(recording.recorded_files(folder)):
                    print(f"what was recorded is in {folder}; the same command goes on with --resume", file=sys.stderr)
                raise


def look(env, args, cameras, folder):
    """Show the environment's rate and cameras."""
    obs, line = recording.check_rate(env, RECORD_SEED - 1, args.control_hz)
    print(line)
    if warning := recording.storing_warning(obs, [*cameras, "state"], args.control_hz):
        print(warning)
    make_writable_dir(folder)
    for warning in same_cameras([obs], cameras):
        print(f"WARNING: {warning}")
    recording.cameras_picture(folder / recording.CAMERAS_PICTURE, obs, cameras)
    print(f"look at {folder / recording.CAMERAS_PICTURE}: every camera as it is, and as the network sees it")


def record(env, args, cameras, folder):
    """Record what the options ask for."""
    keys, limits = [*cameras, "state"], recording.recording_limits(env, cameras, args.setup_mode)
    kept, counts, further, scenes = {}, np.zeros(2, int), args.num_classifier_episodes, 0
    if not args.classifier_only:
        kept = record_demos(env, args, keys, limits, folder)
        recording.write_demos(folder, kept, args.keep_failures)
        if further != 0:
            counts += demo_frames(args, folder, [number for number, success in kept.items() if success])
    elif args.human != "scripted":
        counts += labelled_frames(env, args, keys, folder)
    if args.human == "scripted" and further != 0:
        scenes = further or (SCRIPTED_CLASSIFIER_EPISODES if build.is_simulated(env) else 0)
    if scenes:
        counts += scripted_frames(env, args, keys, limits, folder, scenes)
    report(args, folder, kept, cameras, counts)


if __name__ == "__main__":
    run_script(main)
