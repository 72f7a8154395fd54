"""Drawn scenes of a table with small things and a gripper, seen by a random camera, with the places of all of them.

Nothing here looks like one robot or one task: sizes, colours, camera, light, table, background, the gripper's build
and what stands about are drawn anew for every picture. The places are what the student learns to tell.
"""

from functools import partial

import numpy as np
from pictures import random_crop
from PIL import Image, ImageDraw

SIDE, DRAWN_SIDE = 128, 256  # pixels: of the picture, and of the canvas that it is reduced from
KINDS = ("gripper", "box", "round", "ball", "flat", "cutout")  # the channels of the heat maps
HEAT_CELLS, HEAT_SIGMA = 16, 0.7  # cells of a heat map's side; blob's radius in cells
NUMBERS = ("tip column", "tip row", "opening", "height", "size", "holds")  # the gripper's, in `Scene.numbers`


class Camera:
    """A pinhole looking at a point near the table's middle. World: x, y on the table, z up; the workspace is -1..1."""

    def __init__(self, rng: np.random.Generator):
        elevation = np.radians(90 - 75 * rng.random() ** 1.3)
        azimuth, distance = rng.uniform(0, 2 * np.pi), rng.uniform(2.2, 5.0)
        out = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
        target = np.array([*rng.uniform(-0.3, 0.3, 2), rng.uniform(0, 0.3)])
        right = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])
        up = np.cross(out, right)
        roll = rng.normal(0, 0.08)
        right, up = np.cos(roll) * right + np.sin(roll) * up, np.cos(roll) * up - np.sin(roll) * right
        self.position = target + distance * out
        self.axes = np.stack([right, -up, -out])  # columns of a picture grow rightwards, rows downwards
        self.focal = DRAWN_SIDE * distance / rng.uniform(2.0, 3.6)  # so many units of the table fill the picture

    def project(self, points: np.ndarray) -> np.ndarray:
        """World (N, 3) to pixels of the canvas (N, 2)."""
        x, y, depth = ((points - self.position) @ self.axes.T).T
        return np.stack([x, y], 1) * (self.focal / np.maximum(depth, 0.1))[:, None] + DRAWN_SIDE / 2

    def scale(self, point: np.ndarray) -> float:
        """Pixels of the canvas to one unit at `point`."""
        return self.focal / max(0.1, float((point - self.position) @ self.axes[2]))


class Canvas:
    """What is drawn so far, with the light and the camera."""

    def __init__(self, image: Image.Image, camera: Camera, rng: np.random.Generator):
        self.image, self.camera, self.rng = image, camera, rng
        self.draw = ImageDraw.Draw(image)
        light = rng.normal(size=3) + (0, 0, 1.5)
        self.light = light / np.linalg.norm(light)
        self.ambient = rng.uniform(0.45, 0.8)

    def shade(self, colour: np.ndarray, normal: np.ndarray) -> tuple[int, ...]:
        bright = self.ambient + (1 - self.ambient) * max(0.0, float(normal @ self.light))
        return tuple(int(v) for v in np.clip(colour * bright, 0, 255))

    def polygon(self, points: np.ndarray, colour: tuple[int, ...]) -> None:
        pixels = np.clip(self.camera.project(points), -4 * DRAWN_SIDE, 5 * DRAWN_SIDE)
        self.draw.polygon(pixels.ravel().tolist(), fill=colour)

    def prism(self, prism: "Prism") -> None:
        """The faces that the camera sees, told by their sense of rotation; those of a convex body hide no other."""
        base, top = prism.rings()
        pixels = np.clip(self.camera.project(np.concatenate([base, top])), -4 * DRAWN_SIDE, 5 * DRAWN_SIDE)
        low, high = pixels[: len(base)], pixels[len(base) :]
        faces = [*np.stack([np.roll(low, 1, 0), low, high, np.roll(high, 1, 0)], 1), high, low[::-1]]
        outwards = base + np.roll(base, 1, 0) - 2 * base.mean(0)  # (sides, 3)
        outwards = outwards / np.linalg.norm(outwards, axis=1, keepdims=True)
        normals = [*outwards, np.array([0.0, 0.0, 1.0]), np.array([0.0, 0.0, -1.0])]
        outline = (0, 0, 0) if prism.outlined else None
        for index, (face, normal) in enumerate(zip(faces, normals, strict=True)):
            after = np.roll(face, -1, 0)
            if float(face[:, 0] @ after[:, 1] - face[:, 1] @ after[:, 0]) < 0:  # anticlockwise, rows downwards
                colour = self.shade(prism.top_colour if index == len(base) else prism.colour, normal)
                self.draw.polygon(face.ravel().tolist(), fill=colour, outline=outline)
        if prism.hollow and self.camera.position[2] > top[0, 2]:
            inside = high.mean(0) + 0.8 * (high - high.mean(0))
            self.draw.polygon(inside.ravel().tolist(), fill=self.shade(prism.colour * 0.45, normals[-2]))

    def shadow(self, centre: np.ndarray, radius: float) -> None:
        angles = np.linspace(0, 2 * np.pi, 12, endpoint=False)
        offset = -0.3 * self.light[:2] * min(1.0, centre[2])
        ring = np.stack([np.cos(angles), np.sin(angles), np.zeros(12)], 1) * radius + (*(centre[:2] + offset), 0.0)
        pixels = [tuple(p) for p in self.camera.project(ring)]
        column, row = np.clip(np.mean(pixels, 0).astype(int), 0, DRAWN_SIDE - 1)
        dark = tuple(int(0.6 * v) for v in self.image.getpixel((int(column), int(row))))
        self.draw.polygon(pixels, fill=dark)

    def ball(self, centre: np.ndarray, radius: float, colour: np.ndarray) -> None:
        column, row = self.camera.project(centre[None])[0]
        size = radius * self.camera.scale(centre)
        for part, bright in ((1.0, 0.75), (0.75, 0.95), (0.35, 1.2)):
            shift = (1 - part) * size * 0.5 * (self.camera.axes[:2] @ self.light)
            fill = tuple(int(v) for v in np.clip(colour * bright, 0, 255))
            middle = np.array([column, row]) + shift
            self.draw.ellipse([*(middle - part * size), *(middle + part * size)], fill=fill)

    def cutout(self, centre: np.ndarray, radius: float, picture: Image.Image) -> None:
        side = max(8, int(2 * radius * self.camera.scale(centre)))
        size = (max(4, side * picture.width // max(picture.size)), max(4, side * picture.height // max(picture.size)))
        picture = picture.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
        if self.rng.random() < 0.5:
            picture = picture.rotate(self.rng.uniform(0, 360), expand=True)
        corner = self.camera.project(centre[None])[0] - np.array(picture.size) / 2
        self.image.paste(picture, tuple(int(v) for v in corner), picture)


class Prism:
    """An upright prism: a box has 4 sides, a cylinder 12; low ones are plates."""

    def __init__(self, centre, half_sizes, sides: int, yaw: float, colour: np.ndarray, rng: np.random.Generator):
        self.centre, self.half, self.sides, self.yaw, self.colour = np.array(centre), half_sizes, sides, yaw, colour
        self.top_colour = colour if rng.random() < 0.7 else random_colour(rng)
        self.outlined, self.hollow = rng.random() < 0.15, False
        self.taper = 1.0 if rng.random() < 0.7 else rng.uniform(0.6, 1.2)

    def rings(self) -> tuple[np.ndarray, np.ndarray]:
        """Base and top, each (sides, 3)."""
        angles = np.pi / self.sides + np.linspace(0, 2 * np.pi, self.sides, endpoint=False)
        flat = np.stack([np.cos(angles), np.sin(angles)], 1) / np.cos(np.pi / self.sides) * self.half[:2]
        turn = np.array([[np.cos(self.yaw), np.sin(self.yaw)], [-np.sin(self.yaw), np.cos(self.yaw)]])
        flat = flat @ turn
        height = np.full((self.sides, 1), self.half[2])
        return (np.concatenate([flat, -height], 1) + self.centre,
                np.concatenate([self.taper * flat, height], 1) + self.centre)  # fmt: skip


def random_colour(rng: np.random.Generator) -> np.ndarray:
    """Any colour, greys as often as bright ones."""
    colour = rng.uniform(0, 255, 3)
    return colour if rng.random() < 0.6 else 0.15 * colour + 0.85 * rng.uniform(10, 245)


class Scene:
    """One drawn picture: `image` uint8 (128, 128, 3), `heat` float32 (6, 16, 16), `numbers` float32 (6,).

    `numbers` (see NUMBERS) are the gripper's: places in -1..1 of the picture, lengths in its half side, and whether
    it holds something (-1, 1). They are NaN where the picture has no gripper.
    """

    def __init__(self, photographs: list[Image.Image], cutouts: list[Image.Image], rng: np.random.Generator):
        self.rng, self.cutouts = rng, cutouts
        self.camera = Camera(rng)
        self.places = []  # (kind, pixels of the canvas)
        self.parts = []  # (point, how to draw it), nearest last
        self.numbers = np.full(len(NUMBERS), np.nan, np.float32)
        canvas = Canvas(self._background(photographs), self.camera, rng)
        self._table(canvas)
        for _ in range(rng.integers(1, 6)):
            self._thing(np.array([*rng.uniform(-1.1, 1.1, 2), 0.0]))
        if rng.random() < 0.85:
            self._gripper()
        far_first = sorted(self.parts, key=lambda part: -float(np.linalg.norm(part[0] - self.camera.position)))
        for point, radius, _ in far_first:
            if radius:
                canvas.shadow(point, radius)
        for _, _, paint in far_first:
            paint(canvas)
        self.image = np.asarray(canvas.image.reduce(DRAWN_SIDE // SIDE))
        self.heat = self._heat()

    def _background(self, photographs: list[Image.Image]) -> Image.Image:
        if self.rng.random() < 0.5:
            return random_crop(photographs[self.rng.integers(len(photographs))], DRAWN_SIDE, self.rng)
        return Image.new("RGB", (DRAWN_SIDE, DRAWN_SIDE), tuple(int(v) for v in random_colour(self.rng)))

    def _table(self, canvas: Canvas) -> None:
        rng, choice = self.rng, self.rng.random()
        if choice < 0.15:
            return
        half, colour = rng.uniform(1.0, 2.5, 2), random_colour(rng)
        corners = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]]) * (*half, 0)
        canvas.polygon(corners, canvas.shade(colour, np.array([0.0, 0.0, 1.0])))
        if choice > 0.7:  # stripes or squares
            other, count, squares = random_colour(rng) * 0.5 + colour * 0.5, rng.integers(3, 9), rng.random() < 0.5
            fill = canvas.shade(other, np.array([0.0, 0.0, 1.0]))
            for i in range(count):
                for j in range(i % 2, count if squares else 1, 2):
                    low = np.array([2 * i / count - 1, 2 * j / count - 1 if squares else -1.0])
                    high = low + (2 / count * 0.5 if not squares else 2 / count, 2 / count if squares else 2.0)
                    quad = [(low[0], low[1], 0), (high[0], low[1], 0), (high[0], high[1], 0), (low[0], high[1], 0)]
                    canvas.polygon(np.array(quad) * (*half, 0), fill)

    def _thing(self, place: np.ndarray, size: float | None = None) -> float:
        """Something small on the table at `place` (its foot); returns its height."""
        rng, colour = self.rng, random_colour(self.rng)
        size = size or rng.uniform(0.08, 0.28)
        kind = KINDS[1 + rng.integers(5)]
        if kind == "cutout" and not self.cutouts:
            kind = "box"
        height = size * (0.1 if kind == "flat" else rng.uniform(0.5, 1.6) if kind in ("box", "round") else 1.0)
        middle = place + (0, 0, height)
        if kind in ("box", "round", "flat"):
            sides = {"box": 4, "round": 12}.get(kind) or int(rng.choice([4, 12, 3, 6]))
            half = np.array([size, size * (1 if kind == "round" else rng.uniform(0.5, 1.5)), height])
            prism = Prism(middle, half, sides, rng.uniform(0, np.pi), colour, rng)
            prism.hollow = kind == "round" and rng.random() < 0.5
            self._add(kind, middle, size, lambda canvas: canvas.prism(prism))
        elif kind == "ball":
            self._add(kind, middle, size, lambda canvas: canvas.ball(middle, size, colour))
        else:
            picture = self.cutouts[rng.integers(len(self.cutouts))]
            self._add(kind, middle, size, lambda canvas: canvas.cutout(middle, 1.4 * size, picture))
        return 2 * height

    def _add(self, kind: str | None, point: np.ndarray, shadow: float, paint) -> None:
        if kind:
            self.places.append((kind, self.camera.project(point[None])[0]))
        self.parts.append((point, shadow, paint))

    def _gripper(self) -> None:
        """Two fingers under a palm under an arm; perhaps around a thing, perhaps just above one."""
        rng = self.rng
        tip = np.array([*rng.uniform(-1, 1, 2), rng.uniform(0, 1.0) ** 1.5])
        holds, opening, yaw = rng.random() < 0.35, rng.uniform(0.06, 0.5), rng.uniform(0, 2 * np.pi)
        if holds:
            size = rng.uniform(0.08, 0.2)
            opening = 2 * size
            self._thing(tip - (0, 0, rng.uniform(0.0, size)), size)
        elif rng.random() < 0.4:
            tip[2] = self._thing(np.array([*tip[:2], 0.0])) + rng.uniform(0, 0.3)
        thick, length, colour = rng.uniform(0.03, 0.1), rng.uniform(0.2, 0.5), random_colour(rng)
        across = np.array([np.cos(yaw), np.sin(yaw), 0.0])
        finger = np.array([thick, rng.uniform(0.04, 0.14), length / 2])
        self._finger_and_arm(tip, across, opening, finger, yaw, colour)
        column, row = self.camera.project(tip[None])[0] / (DRAWN_SIDE / 2) - 1
        size = self.camera.scale(tip) / (DRAWN_SIDE / 2)
        self.numbers[:] = column, row, opening * size, tip[2] * size, size, 1.0 if holds else -1.0
        self.places.append(("gripper", self.camera.project(tip[None])[0]))

    def _finger_and_arm(self, tip, across, opening: float, finger: np.ndarray, yaw: float, colour: np.ndarray) -> None:
        rng, up = self.rng, np.array([0.0, 0.0, 1.0])
        finger_colour = colour if rng.random() < 0.4 else random_colour(rng)
        prisms = [Prism(tip + side * across * (opening / 2 + finger[0]) + up * finger[2], finger, 4, yaw, finger_colour,
                        rng) for side in (-1, 1)]  # fmt: skip
        top = tip + up * 2 * finger[2]
        palm = np.array([max(0.15, opening / 2 + 2 * finger[0]), rng.uniform(0.06, 0.2), rng.uniform(0.04, 0.15)])
        prisms.append(Prism(top + up * palm[2], palm, 4, yaw, colour, rng))
        wrist = np.array([*[rng.uniform(0.05, 0.16)] * 2, rng.uniform(0.2, 0.8)])
        prisms.append(Prism(top + up * (2 * palm[2] + wrist[2]), wrist, 12, 0.0, random_colour(rng), rng))
        for prism in prisms:
            prism.taper = 1.0
            self._add(None, prism.centre, finger[0] * 2, lambda canvas, prism=prism: canvas.prism(prism))
        if rng.random() < 0.7:  # the arm goes on from the wrist, in one or two links
            joint, link_colour = prisms[-1].centre + up * wrist[2], random_colour(rng)
            for _ in range(rng.integers(1, 3)):
                end = joint + rng.normal(size=3) * (0.8, 0.8, 0.4) + (0, 0, 0.2)
                radius = rng.uniform(0.06, 0.16)
                link = partial(self._link, start=joint, end=end, radius=radius, colour=link_colour)
                self._add(None, (joint + end) / 2, 0.0, link)
                joint = end

    def _link(self, canvas: Canvas, start, end, radius: float, colour: np.ndarray) -> None:
        first, last = (tuple(p) for p in self.camera.project(np.stack([start, end])))
        width = max(2, int(2 * radius * self.camera.scale((start + end) / 2)))
        dark, bright = (tuple(int(v) for v in np.clip(colour * f, 0, 255)) for f in (0.7, 1.0))
        canvas.draw.line([first, last], fill=dark, width=width)
        canvas.draw.line([first, last], fill=bright, width=max(1, width // 2))

    def _heat(self) -> np.ndarray:
        heat = np.zeros((len(KINDS), HEAT_CELLS, HEAT_CELLS), np.float32)
        cells = np.arange(HEAT_CELLS) + 0.5
        for kind, pixels in self.places:
            column, row = pixels * (HEAT_CELLS / DRAWN_SIDE)
            blob = np.exp(-((cells[:, None] - row) ** 2 + (cells[None] - column) ** 2) / (2 * HEAT_SIGMA**2))
            index = KINDS.index(kind)
            heat[index] = np.maximum(heat[index], blob)
        return heat
