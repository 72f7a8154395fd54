"""numpy-only helpers for the goldens (no JAX needed).  Layout is flax layout everywhere."""

import zlib

import numpy as np


def _gen(seed, tag):
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([int(seed), zlib.crc32(tag.encode())])))


def recipe_tensor(path, shape, seed):
    """Deterministic test parameter for flax path `path` (without the leading 'params/')."""
    n = _gen(seed, path).standard_normal(shape)
    leaf = path.rsplit("/", 1)[-1]
    if leaf == "kernel":
        if len(shape) == 4 and "SpatialLearnedEmbeddings" in path:
            s = np.sqrt(1.0 / (shape[0] * shape[1] * shape[2]))
            out = n * s
        elif len(shape) == 4:
            out = n * np.sqrt(2.0 / (shape[0] * shape[1] * shape[2]))
        else:
            out = n * np.sqrt(1.0 / shape[-2])
    elif leaf == "bias":
        out = 0.1 * n
    elif leaf == "scale":
        out = 1.0 + 0.1 * n
    elif leaf == "lagrange":
        out = -2.0 + 0.1 * n
    else:
        raise KeyError(path)
    return np.asarray(out, np.float32)


def recipe_params(shapes, seed):
    return {p: recipe_tensor(p, tuple(s), seed) for p, s in shapes.items()}


def recipe_target(shapes, seed):
    """target = 0.8*params(seed) + 0.2*params(seed+1000), except frozen 'pretrained_encoder' (== params)."""
    a, b = recipe_params(shapes, seed), recipe_params(shapes, seed + 1000)
    f = np.float32
    return {p: (a[p] if "pretrained_encoder" in p else (f(0.8) * a[p] + f(0.2) * b[p])) for p in shapes}


def probe_dot(x):
    """<x, cos(0.7*k)> over the C-order flattening (float64): order-sensitive fingerprint."""
    v = np.asarray(x, np.float64).ravel()
    return float(v @ np.cos(0.7 * np.arange(v.size)))


def load_case(path):
    """Returns dict of arrays.  Adds params/* and target/* by recipe when the file is a *.small.npz."""
    z = dict(np.load(path, allow_pickle=False))
    paths = [str(p) for p in z["meta/param_paths"]]
    if f"params/{paths[0]}" not in z:
        shapes = {p: tuple(int(v) for v in str(s).split(",") if v) for p, s in zip(paths, z["meta/param_shapes"])}
        seed = int(z["meta/seed"])
        z.update({f"params/{k}": v for k, v in recipe_params(shapes, seed).items()})
        if z["meta/kind"] != "classifier":
            z.update({f"target/{k}": v for k, v in recipe_target(shapes, seed).items()})
    return z
