"""Pickles that try to run code are refused; arrays and containers of every protocol come back unchanged."""

import os
import pickle
import sys
import types

import numpy as np
import pytest

from pytorch_serl.data.demos import read_demos
from pytorch_serl.data.safe_pickle import UnsafePickleError, safe_load


def call(module, name, *args):
    """A protocol 0 pickle that calls module.name(*args); args are text."""
    texts = b"".join(b"V" + arg.encode() + b"\n" for arg in args)
    return f"c{module}\n{name}\n(".encode() + texts + b"tR."


def stack_global(module, name):
    names = b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name))
    return b"\x80\x04" + names + b"\x93"


class Evil:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def attacks(marker):
    touch, code = f"touch {marker}", f"open({str(marker)!r}, 'w')"
    array = pickle.dumps(np.arange(3.0), 2)
    return {
        "os.system": call("os", "system", touch),
        "posix.system": call("posix", "system", touch),
        "eval": call("builtins", "eval", code),
        "python2 eval": call("__builtin__", "eval", code),
        "getattr": call("builtins", "getattr", "a", "b"),
        "nested": pickle.dumps([{"observations": {"image": Evil(touch)}}]),
        "inside tuple": pickle.dumps(({"a": (1, [Evil(touch)])},)),
        "runstring": call("numpy.testing", "runstring", code, ""),
        "f2py": call("numpy.f2py", "compile", code),
        "numpy.load": call("numpy", "load", str(marker)),
        "import": call("importlib", "import_module", "this"),
        "dotted attribute": stack_global("numpy", "ndarray.__reduce__") + b".",
        "dotted module": stack_global("numpy._core.multiarray", "_reconstruct.__globals__") + b".",
        "codec": call("_codecs", "encode", "x", "rot13"),
        "decode": call("_codecs", "decode", "x", "zip"),
        "old instance": b"(Vtouch " + str(marker).encode() + b"\nios\nsystem\n.",
        "changed function": stack_global("_codecs", "encode") + b"}\x8c\x01aK\x01sb.",
        "class as value": stack_global("builtins", "set") + b".",
        "memory bomb": b"cbuiltins\nbytearray\n(I99999999999\ntR.",
        "object array": pickle.dumps(np.array([{}, None])),
        "structured array": pickle.dumps(np.zeros(2, [("a", "i4")])),
        "forged dtype": array.replace(b"f8", b"O8"),
        "dtype as text": call("numpy._core.numeric", "_frombuffer", "abc", "O8"),
        "tensor": call("torch._utils", "_rebuild_tensor_v2"),
    }


@pytest.mark.parametrize("name", attacks("x"))
def test_code_is_refused_and_not_run(tmp_path, name):
    marker, path = tmp_path / "marker", tmp_path / "evil.pkl"
    path.write_bytes(attacks(marker)[name])
    with pytest.raises(UnsafePickleError, match="evil.pkl: got .*nothing of it was run") as error:
        safe_load(path)
    assert not marker.exists() and "\n" not in str(error.value)
    with pytest.raises(UnsafePickleError):
        read_demos(path, "image", "single-arm-fixed-gripper")
    assert not marker.exists()


def test_the_attack_would_work_with_pickle(tmp_path):
    pickle.loads(attacks(tmp_path / "marker")["os.system"])
    assert (tmp_path / "marker").exists()


def test_refusal_names_what_was_refused(tmp_path):
    path = tmp_path / "evil.pkl"
    path.write_bytes(call("os", "system", "true"))
    with pytest.raises(UnsafePickleError, match="'os' 'system'"):
        safe_load(path)


def assert_same(got, wanted):
    assert type(got) is type(wanted)
    if isinstance(wanted, dict):
        assert list(got) == list(wanted)
        for key in wanted:
            assert_same(got[key], wanted[key])
    elif isinstance(wanted, (list, tuple)):
        assert len(got) == len(wanted)
        for left, right in zip(got, wanted, strict=True):
            assert_same(left, right)
    elif isinstance(wanted, np.ndarray):
        assert got.dtype == wanted.dtype and got.shape == wanted.shape and got.flags.writeable
        np.testing.assert_array_equal(got, wanted)
    else:
        assert got == wanted


CONTAINERS = {
    "image": np.arange(24, dtype=np.uint8).reshape(2, 4, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "transposed": np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1),
    "strided": np.arange(10)[::2],
    "big endian": np.arange(3, dtype=">f4"),
    "empty": np.zeros((0, 3), np.float32),
    "0-d": np.array(2.5),
    "text": np.array(["a", "bcd"]),
    "bool": np.array([True, False]),
    "scalars": [np.float64(1.5), np.float32(0.1), np.int64(-3), np.bool_(True), np.uint8(200), np.float16(2)],
    "plain": (1, -2.5, "x", None, True, 3 + 4j, b"\x00\xff", b"", bytearray(b"ab"), {1, 2}, frozenset("a"), 1 << 80),
    "dtype": np.dtype(">i4"),
    "nested": {"a": ({"b": [np.ones(2)]},)},
}


@pytest.mark.parametrize("numpy_1_names", [False, True])
@pytest.mark.parametrize("protocol", range(6))
def test_all_protocols_and_both_numpys(tmp_path, protocol, numpy_1_names):
    data = pickle.dumps(CONTAINERS, protocol)
    if numpy_1_names:
        data = rename_core(data, protocol)
    path = tmp_path / "good.pkl"
    assert (b"numpy.core." in data) != (b"numpy._core." in data)
    path.write_bytes(data)
    assert_same(safe_load(path), CONTAINERS)


def rename_core(data, protocol):
    """Write numpy 1's module names, numpy.core.*, for numpy 2's, numpy._core.*, or the other way round."""
    names = (b"numpy._core.", b"numpy.core.")
    old, new = names if names[0] in data else names[::-1]
    if protocol < 4:
        return data.replace(b"c" + old, b"c" + new)
    for name in (b"multiarray", b"numeric"):  # text after its length
        data = data.replace(bytes([len(old + name)]) + old + name, bytes([len(new + name)]) + new + name)
    return data[:2] + data[11:]  # without the frame, whose size has changed


class JaxArray:
    """Pickled as jax pickles its arrays: numpy's own parts and a note on the type."""

    def __init__(self, array):
        self.array = array

    def __reduce__(self):
        parts = (*self.array.__reduce__(), {"weak_type": False})
        return sys.modules["jax._src.array"]._reconstruct_array, parts


def test_jax_arrays_come_back_as_numpy(tmp_path, monkeypatch):
    def _reconstruct_array():
        raise AssertionError("jax must not be called")

    _reconstruct_array.__module__, _reconstruct_array.__qualname__ = "jax._src.array", "_reconstruct_array"
    for name in ("jax", "jax._src", "jax._src.array"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["jax._src.array"]._reconstruct_array = _reconstruct_array
    array, path = np.arange(6, dtype=np.float32).reshape(2, 3), tmp_path / "jax.pkl"
    path.write_bytes(pickle.dumps({"kernel": JaxArray(array)}))
    assert_same(safe_load(path), {"kernel": array})


def test_shared_and_self_containing_objects(tmp_path):
    array, loop = np.arange(3), [1]
    loop.append(loop)
    path = tmp_path / "shared.pkl"
    path.write_bytes(pickle.dumps({"a": array, "b": (array,), "loop": loop}))
    got = safe_load(path)
    assert got["a"] is got["b"][0] and got["loop"][1] is got["loop"]
