"""The cameras of the tabletop task, drawn in plain numpy: no renderer, no GPU, about half a millisecond a picture.

Everything is made of one primitive: a quadrilateral with a horizontal upper and lower edge, drawn with
sub-pixel coverage. Seen by a camera that is not rolled, the front and the top of an upright box have exactly
this shape, in true perspective. The scene is described by plain numbers in metres; x right, y away from the
viewer, z up, the table at z = 0.
"""

import math

import numpy as np

FINGER_LENGTH = 0.055  # m, from the fingertips to the palm
FINGER_THICKNESS = 0.010  # m, along the closing axis x
FINGER_HALF_WIDTH = 0.008  # m, along y
PEG_HALF = 0.008  # m
PEG_LENGTH = 0.040  # m, from the peg's tip to the fingertips
PLATE_HALF = 0.030  # m, the coloured plate around a hole
PIXELS = np.arange(0.5, 4096, dtype=np.float32)  # pixel centres
TEXTURE_STEP = 0.002  # m per texel of the table seen by a wrist camera
TEXTURE_MARGIN = 0.22  # m of floor around the workspace in that texture

COLOURS = {
    "cube0_top": (236, 88, 62),
    "cube0_front": (188, 52, 38),
    "cube1_top": (70, 128, 228),
    "cube1_front": (40, 84, 176),
    "plate0": (24, 128, 140),
    "plate1": (112, 84, 168),
    "rim": (222, 238, 236),
    "hole": (14, 18, 22),
    "peg_top": (250, 206, 84),
    "peg_front": (226, 160, 34),
    "finger_left": (62, 66, 76),
    "finger_right": (48, 51, 60),
    "pad": (24, 25, 29),
    "palm_top": (148, 154, 164),
    "palm_front": (106, 111, 122),
    "arm": (222, 224, 228),
    "shadow": (20, 20, 28),
}


def draw_quad(image, top, bottom, colour, alpha=1.0, soft=1.0):
    """Blends a quadrilateral with horizontal upper and lower edges into `image`, in place.

    Args:
        image: uint8 (3, H, W); planes are several times faster here than interleaved colours.
        top, bottom: edges `(v, left, right)` in pixels, fractions count; a pixel's centre is at +0.5.
        colour: float32 (3, 1, 1), 0 to 255.
        alpha: opacity, 0 to 1.
        soft: width in pixels of the ramp at the border; 1 is plain anti-aliasing, more is a blurred shadow.
    """
    if top[0] > bottom[0]:
        top, bottom = bottom, top
    (v0, l0, r0), (v1, l1, r1) = top, bottom
    half = soft / 2
    row0, row1 = max(math.floor(v0 - half), 0), min(math.ceil(v1 + half), image.shape[1])
    col0, col1 = max(math.floor(min(l0, l1) - half), 0), min(math.ceil(max(r0, r1) + half), image.shape[2])
    if row0 >= row1 or col0 >= col1:
        return
    v, u = PIXELS[row0:row1], PIXELS[col0:col1]
    cover_v = (_before(v1, v, soft) - _before(v0, v, soft)) * alpha  # (h,)
    if l0 == l1 and r0 == r1:
        cover = cover_v[:, None] * (_before(r0, u, soft) - _before(l0, u, soft))  # (h, w)
    else:
        height = max(v1 - v0, 1e-3)
        t = np.minimum(np.maximum((v - v0) / height, 0), 1)[:, None]
        left, right = l0 + (l1 - l0) * t, r0 + (r1 - r0) * t  # (h, 1)
        soft_l, soft_r = max(soft, abs(l1 - l0) / height), max(soft, abs(r1 - r0) / height)  # columns per row
        cover = _before(right, u, soft_r) - _before(left, u, soft_l)
        cover = np.maximum(cover, 0) * cover_v[:, None]  # (h, w)
    patch = image[:, row0:row1, col0:col1]
    blend = colour - patch
    blend *= cover
    blend += patch
    blend += 0.5
    patch[...] = blend


def _before(edge, pixels, soft):
    """Share of each pixel that lies before `edge`, 0 to 1; the edge is blurred over `soft` pixels."""
    share = (edge + 0.5 * soft - pixels) * (1 / soft)
    return np.minimum(np.maximum(share, 0, out=share), 1, out=share)


def _interleave(planes):
    """(3, H, W) to a new (H, W, 3)."""
    image = np.empty((*planes.shape[1:], 3), np.uint8)
    for c in range(3):
        image[:, :, c] = planes[c]
    return image


def table_colour(x, y, half_x):
    """Colour of the bare table at x, y (any shape, m): a light mat with a 5 cm grid on a wooden bench."""
    grain = np.sin(31 * y + 2.2 * np.sin(9 * x)) + 0.6 * np.sin(83 * y + 3 * np.sin(13 * x + 1))
    wood = np.stack([142 + 6 * grain, 112 + 5 * grain, 84 + 4 * grain], -1)
    mottle = np.sin(47 * x + 20 * y) * np.sin(39 * y - 16 * x) + np.sin(91 * x + 1.3) * np.sin(77 * y)
    mat = np.stack([206 + 2.5 * mottle, 208 + 2.5 * mottle, 202 + 2 * mottle], -1)
    line = np.minimum(np.abs((x + 0.025) % 0.05 - 0.025), np.abs((y + 0.025) % 0.05 - 0.025)) < 0.0011
    mat = np.where(line[..., None], mat - 20, mat)
    edge = np.maximum(np.abs(x) - (half_x + 0.02), np.abs(y) - 0.17)
    mat = np.where((edge > -0.006)[..., None], mat - 46, mat)
    return np.where((edge < 0)[..., None], mat, wood)


def rotate(rpy, x, y, z):
    """Rotates the point by roll, pitch, yaw (about x, then y, then z); plain floats."""
    sr, cr, sp, cp = math.sin(rpy[0]), math.cos(rpy[0]), math.sin(rpy[1]), math.cos(rpy[1])
    sy, cy = math.sin(rpy[2]), math.cos(rpy[2])
    y, z = cr * y - sr * z, sr * y + cr * z
    x, z = cp * x + sp * z, cp * z - sp * x
    return cy * x - sy * y, sy * x + cy * y, z


class Overhead:
    """A camera in front of the table, a metre away, looking down at it by 55 degrees."""

    def __init__(self, size, half_x):
        self.size = size
        tilt, distance = math.radians(55), 1.0
        self._sin, self._cos = math.sin(tilt), math.cos(tilt)
        look_at_y, look_at_z = 0.0, 0.055
        self._y, self._z = look_at_y - distance * self._cos, look_at_z + distance * self._sin
        self._focal = size / 2 * distance / (half_x + 0.05)
        self.background = self._draw_background(half_x)

    def edge(self, x, y, z, half):
        """The image of the line from (x - half, y, z) to (x + half, y, z): row, left and right in pixels."""
        dy, dz = y - self._y, z - self._z
        scale = self._focal / (dy * self._cos - dz * self._sin)
        middle = self.size / 2
        row = middle - scale * (dy * self._sin + dz * self._cos)
        return row, middle + scale * (x - half), middle + scale * (x + half)

    def _draw_background(self, half_x):
        fine = (np.arange(2 * self.size) + 0.5) / 2 - self.size / 2  # two samples a pixel
        right, up = fine[None, :] / self._focal, -fine[:, None] / self._focal
        down = self._sin - up * self._cos  # the ray's fall per metre along the optical axis
        length = self._z / down
        colour = table_colour(length * right, self._y + length * (self._cos + up * self._sin), half_x)
        s = self.size
        return colour.reshape(s, 2, s, 2, 3).mean((1, 3)).transpose(2, 0, 1).round().clip(0, 255).astype(np.uint8)

    def draw(self, background, scene, colours):
        """Draws all arms' objects and tools on a copy of `background`, (3, S, S); returns (S, S, 3)."""
        image = background.copy()
        for arm in scene:
            self._draw_marks(image, arm, colours)
        for arm in scene:
            _, y, z = arm["tool"]
            behind = arm["kind"] == "cube" and not arm["held"] and y > arm["object"][1] + 0.01
            behind = behind and z < arm["object"][2] + arm["half"] - 0.003
            if behind:
                self._draw_tool(image, arm, colours)
            if arm["kind"] == "cube":
                self._draw_cube(image, arm, colours)
            if not behind:
                self._draw_tool(image, arm, colours)
        return _interleave(image)

    def _draw_marks(self, image, arm, colours):
        """What lies flat on the table: the hole with its plate, and the shadows."""
        x, y, z = arm["tool"]
        if arm["kind"] == "hole":
            ox, oy, half = arm["object"][0], arm["object"][1], arm["half"]
            for name, h in ((f"plate{arm['index']}", PLATE_HALF), ("rim", half + 0.004), ("hole", half)):
                self._flat(image, ox, oy, 0, h, h, colours[name])
        else:
            ox, oy, oz = arm["object"]
            soft = 3 + 60 * (oz - arm["half"])
            self._flat(image, ox, oy, 0, arm["half"] + 0.003, arm["half"] + 0.003, colours["shadow"], 0.4, soft)
        half = 0.045 if arm["kind"] == "cube" else 0.025
        self._flat(image, x, y, 0, half, 0.014, colours["shadow"], 0.5 - 1.5 * max(z, 0), 3 + 25 * max(z, 0))

    def _flat(self, image, x, y, z, half_x, half_y, colour, alpha=1.0, soft=1.0):
        draw_quad(image, self.edge(x, y + half_y, z, half_x), self.edge(x, y - half_y, z, half_x), colour, alpha, soft)

    def _draw_cube(self, image, arm, colours):
        (x, y, z), half, name = arm["object"], arm["half"], f"cube{arm['index']}"
        front = self.edge(x, y - half, z + half, half)
        draw_quad(image, front, self.edge(x, y - half, z - half, half), colours[name + "_front"])
        draw_quad(image, self.edge(x, y + half, z + half, half), front, colours[name + "_top"])
        if not arm["held"]:  # the tool's shadow falls on the cube as well
            tx, ty, tz = arm["tool"]
            left, right = max(x - half, tx - 0.045), min(x + half, tx + 0.045)
            near, far = max(y - half, ty - 0.014), min(y + half, ty + 0.014)
            if left < right and near < far:
                self._flat(
                    image,
                    (left + right) / 2,
                    (near + far) / 2,
                    z + half,
                    (right - left) / 2,
                    (far - near) / 2,
                    colours["shadow"],
                    0.45 - 1.5 * tz,
                )

    def _draw_tool(self, image, arm, colours):
        (x, y, z), rpy, lift = arm["tool"], arm["rpy"], 0.0
        if arm["kind"] == "hole":
            lift = PEG_LENGTH
            px, py, pz = rotate(rpy, 0, 0, PEG_LENGTH + 0.02)
            share = min(max(-z / pz, 0), 1)  # the part of the peg that is in the hole
            draw_quad(
                image,
                self.edge(x + px, y + py, z + pz, PEG_HALF),
                self.edge(x + px * share, y + py * share - PEG_HALF, max(z, 0), PEG_HALF),
                colours["peg_front"],
            )
        for side, name in ((-1, "finger_left"), (1, "finger_right")):
            offset = side * (arm["gap"] + FINGER_THICKNESS / 2)
            tip, base = rotate(rpy, offset, 0, lift), rotate(rpy, offset, 0, lift + FINGER_LENGTH)
            low = self.edge(x + tip[0], y + tip[1], max(z + tip[2], 0), FINGER_THICKNESS / 2)
            high = self.edge(x + base[0], y + base[1], z + base[2], FINGER_THICKNESS / 2)
            draw_quad(image, high, low, colours[name])
            draw_quad(image, tuple(b + 0.25 * (t - b) for b, t in zip(low, high, strict=True)), low, colours["pad"])
        palm, top = rotate(rpy, 0, 0, lift + FINGER_LENGTH), rotate(rpy, 0, 0, lift + FINGER_LENGTH + 0.026)
        arm_end = rotate(rpy, 0, 0, lift + FINGER_LENGTH + 0.20)
        low = self.edge(x + palm[0], y + palm[1] - 0.016, z + palm[2], 0.048)
        high = self.edge(x + top[0], y + top[1] - 0.016, z + top[2], 0.048)
        draw_quad(image, high, low, colours["palm_front"])
        draw_quad(image, self.edge(x + top[0], y + top[1] + 0.016, z + top[2], 0.048), high, colours["palm_top"])
        draw_quad(
            image,
            self.edge(x + arm_end[0], y + arm_end[1], z + arm_end[2], 0.015),
            self.edge(x + top[0], y + top[1] - 0.004, z + top[2], 0.017),
            colours["arm"],
        )


class Wrist:
    """A camera on an arm's wrist that looks straight down, the fingertips in its lower half.

    It moves with the tool but is kept level, so that left in the picture is always left of the tool;
    the tool's own tilt shows in the fingers. Its picture covers about 30 cm of table at the start height.
    """

    def __init__(self, size, kind):
        self.size = size
        self._back = 0.035  # m behind the tool (+y)
        self._height = 0.11 if kind == "cube" else 0.13  # m above the tool's tip
        self._focal = size / 2 / 0.80
        self._horizon = 0.44 * size  # the row straight below the camera

    def draw(self, texture, origin, arm, colours):
        """Draws what the camera of `arm` sees: uint8 (S, S, 3).

        `texture` is the table as uint32 texels, `origin` its corner (x, y) in m.
        """
        image = self._table(texture, origin, arm)
        x, y, z = arm["tool"]
        ox, oy, oz, half = arm["object"][0] - x, arm["object"][1] - y, arm["object"][2] - z, arm["half"]
        if arm["kind"] == "cube":
            front = self._edge(ox, oy - half, oz + half, half)
            self._flat(image, ox, oy, oz - half, half + 0.003, colours["shadow"], 0.35, 4.0)
            if oy > self._back:  # the camera sees the side that faces it
                draw_quad(
                    image, front, self._edge(ox, oy - half, oz - half, half), colours[f"cube{arm['index']}_front"]
                )
            else:
                far = self._edge(ox, oy + half, oz + half, half)
                draw_quad(image, far, self._edge(ox, oy + half, oz - half, half), colours[f"cube{arm['index']}_front"])
            self._flat(image, ox, oy, oz + half, half, colours[f"cube{arm['index']}_top"])
        else:
            for name, h in ((f"plate{arm['index']}", PLATE_HALF), ("rim", half + 0.004), ("hole", half)):
                self._flat(image, ox, oy, -z, h, colours[name])
        self._draw_tool(image, arm, colours)
        return _interleave(image)

    def _edge(self, x, y, z, half):
        """The image of a line around (x, y, z), relative to the tool's tip: row, left and right in pixels."""
        scale = self._focal / max(self._height - z, 0.01)
        row = self._horizon - scale * (y - self._back)
        return row, self.size / 2 + scale * (x - half), self.size / 2 + scale * (x + half)

    def _flat(self, image, x, y, z, half, colour, alpha=1.0, soft=1.0):
        draw_quad(image, self._edge(x, y + half, z, half), self._edge(x, y - half, z, half), colour, alpha, soft)

    def _table(self, texture, origin, arm):
        x, y, z = arm["tool"]
        metres = (self._height + z) / self._focal / TEXTURE_STEP  # texels per pixel
        pixels = np.arange(self.size) + 0.5
        cols = (pixels - self.size / 2) * metres + (x - origin[0]) / TEXTURE_STEP
        rows = (self._horizon - pixels) * metres + (y + self._back - origin[1]) / TEXTURE_STEP
        cols = np.minimum(np.maximum(cols, 0), texture.shape[1] - 1).astype(np.intp)
        rows = np.minimum(np.maximum(rows, 0), texture.shape[0] - 1).astype(np.intp)
        texels = texture[rows[:, None], cols[None, :]]  # (S, S) uint32
        return np.ascontiguousarray(texels.view(np.uint8).reshape(self.size, self.size, 4).transpose(2, 0, 1)[:3])

    def _draw_tool(self, image, arm, colours):
        rpy, lift = arm["rpy"], 0.0
        if arm["kind"] == "hole":
            lift = PEG_LENGTH
            sunk = min(arm["tool"][2], 0)
            base = rotate(rpy, 0, 0, PEG_LENGTH)
            draw_quad(
                image,
                self._edge(0, PEG_HALF, -sunk, PEG_HALF),
                self._edge(base[0], base[1] + PEG_HALF, base[2], PEG_HALF),
                colours["peg_front"],
            )
        sideways = image.transpose(0, 2, 1)
        for side, name in ((-1, "finger_left"), (1, "finger_right")):
            faces = []
            for height in (lift, lift + 0.008, lift + 0.075):  # the rubber pad, then the finger
                inner, middle = side * arm["gap"], side * (arm["gap"] + FINGER_THICKNESS / 2)
                x, y, z = rotate(rpy, inner, 0, height)
                row, left, _ = self._edge(x, y + FINGER_HALF_WIDTH, z, 0)
                inside = left, row, self._edge(x, y - FINGER_HALF_WIDTH, z, 0)[0]
                x, y, z = rotate(rpy, middle, FINGER_HALF_WIDTH, height)
                faces.append((inside, self._edge(x, y, z, FINGER_THICKNESS / 2)))
            for low, high, colour in ((faces[0], faces[2], name), (faces[0], faces[1], "pad")):
                if arm["gap"] > 0.01:
                    draw_quad(sideways, low[0], high[0], colours["palm_front" if colour != "pad" else "pad"])
                draw_quad(image, low[1], high[1], colours[colour])


def table_texture(half_x):
    """The bare table as seen from straight above: uint8 (rows along y, columns along x, 4) and its corner."""
    corner = -(half_x + TEXTURE_MARGIN), -(0.15 + TEXTURE_MARGIN)
    rows, cols = round(-2 * corner[1] / TEXTURE_STEP), round(-2 * corner[0] / TEXTURE_STEP)
    x = corner[0] + (np.arange(2 * cols) + 0.5) * TEXTURE_STEP / 2  # two samples a texel
    y = corner[1] + (np.arange(2 * rows) + 0.5) * TEXTURE_STEP / 2
    colour = table_colour(x[None, :], y[:, None], half_x).reshape(rows, 2, cols, 2, 3).mean((1, 3))
    texture = np.zeros((rows, cols, 4), np.uint8)
    texture[:, :, :3] = colour.round().clip(0, 255)
    return texture, corner
