"""Export a trained policy: uint8 images and state in, action out, without this repository, as ONNX without PyTorch.

    python export_policy.py --ckpt ./hybrid_ckpt/best.pt
    python export_policy.py --ckpt ./offline_ckpt/best.pt --demo_paths ./data/demos.pkl --output_dir ./robot

Writes to --output_dir: policy.pt2, a torch.export program, and policy.onnx where the packages for it are installed
(pip install -r requirements/export.txt). Both appear only after they acted as the agent does on --observations
observations; docs/export.md says which, and puts the policy on a robot.
"""

import os
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from tqdm import tqdm

from pytorch_serl.export import check, policy
from pytorch_serl.training.build import load_agent, policy_of
from pytorch_serl.training.run import Parser, hold_run_dir, make_writable_dir, print_settings, run_script, user_errors

FILES = {"pt2": "policy.pt2", "onnx": "policy.onnx"}


def parse_args(argv=None):
    parser = Parser(__doc__.split("\n")[0])
    parser.add_argument("--ckpt", required=True, help="best.pt of train_hybrid.py or train_offline.py")
    parser.add_argument("--output_dir", help="where the files go; default: beside the checkpoint")
    parser.add_argument(
        "--formats",
        nargs="+",
        choices=FILES,
        help="what to write; default: pt2, and onnx where its packages are installed",
    )
    parser.add_argument(
        "--demo_paths",
        nargs="+",
        default=[],
        help="demo files with observations for the check; default: what the run beside the checkpoint recorded, or "
        "was trained on",
    )
    parser.add_argument("--observations", type=int, default=1000, help="how many are compared")
    parser.add_argument("--overwrite", action="store_true", help="replace exported files")
    args = parser.parse_args(argv)
    parser.require(args, {"observations": (args.observations >= 1, "1 or more")})
    return args


def choose_formats(formats):
    """What to write. Raises ValueError where ONNX was asked for and cannot be had."""
    missing = policy.missing_for_onnx()
    if missing and "onnx" in (formats or ()):
        raise ValueError(f"--formats onnx: {missing}")
    if missing and formats is None:
        print(f"no {FILES['onnx']}: {missing}")
    return formats or ["pt2"] + ["onnx"] * (missing is None)


def check_outputs(output_dir, formats, overwrite):
    existing = [output_dir / FILES[name] for name in formats if (output_dir / FILES[name]).exists()]
    if existing and not overwrite:
        raise ValueError(f"{existing[0]} exists; give --overwrite to replace it, or another --output_dir")
    make_writable_dir(output_dir)


def check_folder(folder):
    """Raises ValueError for a folder that cannot be written to, as that of a checkpoint on a shared drive may be."""
    if folder.is_dir() and not os.access(folder, os.W_OK):
        raise ValueError(f"{folder} cannot be written to; name another folder with --output_dir")


def write(agent, folder, formats):
    """Both files from one program; returns their paths by format."""
    paths, facts = {name: folder / FILES[name] for name in formats}, policy.describe(agent)
    program = policy.make_program(agent)
    if "pt2" in paths:
        policy.save_program(paths["pt2"], program, facts)
    if "onnx" in paths:
        policy.save_onnx(paths["onnx"], program, facts)
    return paths


def verify(agent, paths, observations, source, tolerance):
    """Compare the files with the agent and print the figures. Raises ExportError where they differ."""
    with ExitStack() as stack:
        runners = {}
        if "pt2" in paths:
            runners[FILES["pt2"]] = check.run_program(paths["pt2"])
        if "onnx" in paths:
            runners[FILES["onnx"]] = stack.enter_context(check.OnnxProcess(paths["onnx"]))
        progress = partial(tqdm, desc="comparing", unit="batch", mininterval=1)
        results, gaps = check.compare(agent, runners, observations, tolerance, progress)
    print(check.report(results, gaps, source))
    wrong = [name for name, result in results.items() if not result.same]
    if wrong:
        raise check.ExportError(f"{', '.join(wrong)}: not the agent's actions, see above; nothing was written")


def main(argv=None):
    args = parse_args(argv)
    output_dir = Path(args.output_dir or Path(args.ckpt).parent)
    with user_errors():
        check_folder(output_dir)
    with hold_run_dir(output_dir):
        export(args, output_dir)


def export(args, output_dir):
    with user_errors((ValueError, OSError, FloatingPointError)):
        print_settings(vars(args) | {"output_dir": output_dir})
        formats = choose_formats(args.formats)
        agent = policy_of(load_agent(args.ckpt), args.ckpt)
        agent.check_finite()
        run_dir = Path(args.ckpt).parent
        observations = check.gather(agent, args.demo_paths, run_dir, args.observations)
        check_outputs(output_dir, formats, args.overwrite)
    print(f"policy: {policy.describe(agent)}")

    with tempfile.TemporaryDirectory(dir=output_dir, prefix=".export") as folder:
        paths = write(agent, Path(folder), formats)
        with user_errors((check.ExportError, FloatingPointError)):
            verify(agent, paths, *observations)
        for name, path in paths.items():
            os.replace(path, output_dir / FILES[name])
            print(f"wrote {output_dir / FILES[name]} ({(output_dir / FILES[name]).stat().st_size / 1e6:.0f} MB)")


if __name__ == "__main__":
    run_script(main)
