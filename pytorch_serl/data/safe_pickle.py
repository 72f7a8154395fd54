"""Read a pickle of numpy arrays and plain Python containers without running anything that it names.

A pickle is a program: it names functions and has them called while it loads. Demo files come from other
people, so every name is looked up in a short table here and the file is refused when it is not there. The
table holds no function of numpy's either: arrays and dtypes are first kept as inert records of bytes, shape
and type, and built from those after the pickle has ended. A forged dtype (say, of Python objects made from
raw bytes) therefore never reaches numpy.
"""

import io
import math
import mmap
import pickle
from os import PathLike
from typing import Any, BinaryIO

import numpy as np

from pytorch_serl.data.pickle_bounds import BeyondTheFile, pickle_end
from pytorch_serl.utils.file_kinds import OLD_TORCH, kind_of

PLAIN_KINDS = "biufcSU"  # bool, integers, floats, complex, bytes, text: no Python objects, records, dates
REMEDY = "convert tensors and other objects to numpy arrays (np.asarray) and save the file again"


class UnsafePickleError(ValueError):
    """A pickle names something other than numpy arrays, numpy scalars and plain Python containers."""


class _Refused(Exception):
    """What was refused, in words; safe_load adds the file's name."""


def safe_load(path: str | PathLike) -> Any:
    """Return what the pickle file `path` holds: numpy arrays, numpy scalars and plain Python containers only.

    Arrays that the file stores once are one object in the result too. An OrderedDict comes back as a dict.
    Raises UnsafePickleError where the file names anything else (nothing of it was run), ValueError where it
    is truncated, no pickle, or holds several, and FileNotFoundError.
    """
    return _only(safe_load_all(path), path)


def safe_load_all(path: str | PathLike) -> list[Any]:
    """Return what the pickles hold that stand in `path` one after the other, each as `safe_load` does it."""
    with open(path, "rb") as file:
        return list(_pickles(file, _contents(file), path))


def safe_loads(data: bytes, name: str | PathLike) -> Any:
    """The one pickle that `data` is, as `safe_load` returns it; errors call it `name`."""
    return _only(list(_pickles(io.BytesIO(data), data, name)), name)


def _only(values, name):
    if len(values) > 1:
        raise ValueError(
            f"{name}: got {len(values)} pickles one after the other, wanted one; save what you mean with a single "
            "pickle.dump into a new file"
        )
    return values[0]


def _contents(file):
    """The file's bytes without a copy of them in this process, where its file system can."""
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):  # ValueError: empty
        data = file.read()
        file.seek(0)
        return data


def _pickles(file: BinaryIO, data: bytes | mmap.mmap, name):
    """The pickles in `file`, whose bytes are `data`, one after the other; at least one."""
    place, number = 0, 0
    while place < len(data) or not number:
        try:
            if data[: len(OLD_TORCH)] == OLD_TORCH:
                raise ValueError("tensors")
            end = pickle_end(data, place)
            file.seek(place)
            loaded = _Unpickler(file).load()  # its copy of all bytes is gone after this line
            yield _build(loaded, {})
        except (_Refused, BeyondTheFile) as error:
            raise UnsafePickleError(
                f"{name}: got a pickle with {error}, wanted numpy arrays, numpy scalars and plain Python containers "
                f"only; nothing of it was run; {REMEDY}"
            ) from None
        except Exception as error:  # garbage raises almost anything
            raise ValueError(f"{name}: {_unreadable(data, place, number, error)}") from error
        place, number = end, number + 1


def _unreadable(data, place, number, error):
    """What is wrong with bytes that could not be read as a pickle, of which `number` came before `place`."""
    detail = f"{type(error).__name__}: " + (" ".join(str(error).split())[:120] or "no detail")
    if number:
        whole = "a whole pickle" if number == 1 else f"{number} whole pickles"
        return (
            f"got {whole} and behind {'it' if number == 1 else 'them'}, from byte {place:,} on, {len(data) - place:,} "
            f"bytes that are none ({detail}), wanted a whole pickle file; save it again, or keep its first {place:,} "
            "bytes if the rest may go"
        )
    if kind := kind_of(data):
        return f"got {kind[0]}, wanted a whole pickle file; {kind[1]}"
    return f"got a file that cannot be read as a pickle ({detail}), wanted a whole pickle file; record or copy it again"


class _Dtype:
    """Stands for a numpy.dtype while the pickle loads."""

    __slots__ = ("value",)
    __hash__ = None

    def __init__(self, spec, align=False, copy=False):
        if not isinstance(spec, str) or not spec[1:].isdigit() or np.dtype(spec).kind not in PLAIN_KINDS:
            raise _Refused(f"an array of dtype {str(spec)[:40]!r}")
        self.value = np.dtype(spec)

    def __setstate__(self, state):  # (version, byte order, subarray, names, fields, size, alignment, flags)
        if any(part is not None for part in state[2:5]):
            raise _Refused("an array of structured dtype")
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


class _Array:
    """Stands for a numpy.ndarray while the pickle loads: its bytes, dtype, shape and memory order."""

    __slots__ = ("raw", "dtype", "shape", "order", "axes", "value")
    __hash__ = None

    def __init__(self, raw=b"", dtype=None, shape=(0,), order="C", axes=None):
        self.raw, self.dtype, self.shape, self.order, self.axes = raw, dtype, shape, order, axes
        self.value = None

    def __setstate__(self, state):
        _, shape, dtype, is_fortran, raw = state
        self.__init__(raw, dtype, shape, "F" if is_fortran else "C")

    def build(self):
        if self.value is None:
            dtype = np.dtype("i1") if self.dtype is None else _dtype_value(self.dtype)
            if math.prod(self.shape) * dtype.itemsize != len(self.raw):
                raise ValueError(f"an array of shape {self.shape} and dtype {dtype} in {len(self.raw)} bytes")
            order = "F" if self.order == "F" else "C"
            array = np.frombuffer(self.raw, dtype) if self.raw else np.empty(0, dtype)
            array = array.reshape(self.shape, order=order)
            if self.axes is not None:
                array = array.transpose(self.axes)
            self.value = array if array.flags.writeable else array.copy(order="K")
            self.raw = None  # so that a file's arrays are in memory once, not twice
        return self.value


def _dtype_value(dtype):
    if type(dtype) is not _Dtype:
        raise _Refused(f"an array whose dtype is a {type(dtype).__name__}")
    return dtype.value


def _scalar(dtype, raw):
    value = _dtype_value(dtype)
    if type(raw) is not bytes or len(raw) != value.itemsize:
        raise _Refused(f"a numpy scalar of {type(raw).__name__} data")
    return np.frombuffer(raw, value)[0]


def _encode(text, encoding):
    """Protocols 0 to 2 write bytes as latin1 text; no other codec is admitted."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _Refused(f"bytes in the codec {str(encoding)[:40]!r}")
    return text.encode("latin1")


def _of_bytes(kind):
    def make(data=b"", encoding=None):
        if encoding is not None:  # bytearray in protocols 0 to 2
            data = _encode(data, encoding)
        if type(data) is not bytes:  # a number would ask for that much memory
            raise _Refused(f"{kind.__name__} made from a {type(data).__name__}")
        return kind(data)

    return make


def _jax_array(function, args, state, _aval):
    """A jax array is pickled as a numpy array and jax's own note on its type; only the former is wanted."""
    array = function(*args) if type(function) is _Admitted else None
    if type(array) is not _Array:
        raise _Refused("a jax array that is not made of a numpy array")
    array.__setstate__(state)
    return array


class _Admitted:
    """A function that a pickle may call but not change: pickles can set attributes of what they look up."""

    __slots__ = ("_function",)

    def __init__(self, function):
        self._function = function

    def __call__(self, *args):
        return self._function(*args)

    def __setstate__(self, state):
        raise _Refused("a changed attribute of an admitted function")


_NUMPY_CORES = ("numpy.core", "numpy._core")  # numpy 1, numpy 2
_ADMITTED = {
    ("numpy", "ndarray"): None,  # only ever an argument of _reconstruct, which does not need it
    ("numpy", "dtype"): _Admitted(_Dtype),
    ("_codecs", "encode"): _Admitted(_encode),
    ("collections", "OrderedDict"): dict,
    # jax arrays: HIL-SERL's published resnet10_params.pkl
    ("jax._src.array", "_reconstruct_array"): _Admitted(_jax_array),
}
for _core in _NUMPY_CORES:
    _ADMITTED[f"{_core}.multiarray", "_reconstruct"] = _Admitted(lambda *ignored: _Array())
    _ADMITTED[f"{_core}.multiarray", "scalar"] = _Admitted(_scalar)
    _ADMITTED[f"{_core}.numeric", "_frombuffer"] = _Admitted(_Array)
for _builtins in ("builtins", "__builtin__"):  # protocols 0 to 2 use Python 2's name
    _ADMITTED.update({(_builtins, kind.__name__): kind for kind in (set, frozenset, complex, slice)})
    _ADMITTED.update({(_builtins, kind.__name__): _Admitted(_of_bytes(kind)) for kind in (bytes, bytearray)})


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in _ADMITTED:
            raise _Refused(f"the name {str(module)[:60]!r} {str(name)[:60]!r}")
        return _ADMITTED[module, name]


def _build(value, seen):
    """Replace every stand-in inside `value` by its array or dtype; `seen` maps id -> (original, result)."""
    kind = type(value)
    if kind is _Array:
        return value.build()
    if kind is _Dtype:
        return value.value
    if kind is _Admitted or isinstance(value, type):
        raise _Refused("a function or class as a value")
    if kind not in (list, dict, tuple):
        return value
    if id(value) in seen:
        return seen[id(value)][1]
    if kind is tuple:
        result = tuple(_build(item, seen) for item in value)
        seen[id(value)] = (value, result)  # kept, so that no other object can get this id
        return result
    seen[id(value)] = (value, value)
    for key in range(len(value)) if kind is list else list(value):
        value[key] = _build(value[key], seen)
    return value
