"""Finding, downloading and saving the frozen backbone, with made-up files and a local server."""

import http.server
import pickle
import socket
import sys
import threading
import types

import numpy as np
import pytest
import torch

from pytorch_serl.data.safe_pickle import UnsafePickleError
from pytorch_serl.hil_serl import names
from pytorch_serl.networks import shipped
from pytorch_serl.networks.resnet import ResNet10
from pytorch_serl.training import backbone


def published_params(seed: int = 0, wrap=lambda x: x) -> dict:
    """A nested dict as in the published file: ResNet-10 in flax layout and ImageNet's classifier beside it."""
    rng = np.random.default_rng(seed)
    shapes = {name: tuple(v.shape) for name, v in ResNet10().state_dict().items()}
    nested: dict = {
        "output_head": {"kernel": wrap(np.zeros((512, 10), np.float32)), "bias": wrap(np.zeros(10, np.float32))}
    }
    for name, (path, layout) in names.resnet10_table().items():
        *parents, leaf = path.split("/")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = wrap(rng.standard_normal(layout.flax_shape(shapes[name]), dtype=np.float32) * 0.1)
    return nested


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "resnet10_params.pkl"
    path.write_bytes(pickle.dumps(published_params()))
    return path


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(backbone, "PUBLISHED_PATH", tmp_path / "home" / ".serl" / "resnet10_params.pkl")
    return backbone.PUBLISHED_PATH


def serve(content: bytes, length: int | None = None):
    """A local server that answers every GET with `content`; returns it and its URL."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content) if length is None else length))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}/resnet10_params.pkl"


def test_nothing_at_hand_is_the_shipped_one_and_says_why(tmp_path, home):
    resnet, line = backbone.find_backbone(own=tmp_path / "absent.pt")
    assert shipped.is_shipped(resnet) and not resnet.training and not any(p.requires_grad for p in resnet.parameters())
    assert line.startswith("backbone: the shipped one") and shipped.SHIPPED_SHA256[:12] in line and "\n" not in line
    assert str(home) in line and str(tmp_path / "absent.pt") in line and "WARNING" not in line


@pytest.mark.parametrize("there", ["nothing", "published", "own"])
def test_random_only_when_asked_for_and_then_whatever_is_there(there, tmp_path, home, published):
    own = tmp_path / "own.pt"
    if there == "published":
        home.parent.mkdir(parents=True)
        home.write_bytes(published.read_bytes())
    if there == "own":
        backbone.save_backbone(own, ResNet10(), "own")
    resnet, line = backbone.find_backbone("random", own=own, download=True)  # nothing is fetched for it either
    assert resnet is None and "random, frozen" in line and "WARNING" in line


def test_order_of_choice(tmp_path, home, published):
    own = tmp_path / "own.pt"
    mine = ResNet10()
    backbone.save_backbone(own, mine, "trained on 500 own frames")
    found, line = backbone.find_backbone(own=own)
    assert "trained on 500 own frames" in line and str(own) in line
    assert all(torch.equal(a, b) for a, b in zip(found.state_dict().values(), mine.state_dict().values(), strict=True))
    assert not any(p.requires_grad for p in found.parameters()) and not found.training

    home.parent.mkdir(parents=True)
    home.write_bytes(published.read_bytes())
    found, line = backbone.find_backbone(own=own)
    assert line == f"backbone: published HIL-SERL weights ({home})"
    kernel = published_params()["ResNetBlock_1"]["Conv_0"]["kernel"]  # HWIO
    assert np.array_equal(found.blocks[1].conv1.weight.numpy(), kernel.transpose(3, 2, 0, 1))

    _, line = backbone.find_backbone(path=own)
    assert "own frames" in line


def test_wrapped_and_jax_pickles(tmp_path, published, monkeypatch):
    expected = backbone.read_backbone(published)[0].state_dict()
    module = types.ModuleType("jax._src.array")

    def _reconstruct_array(fun, args, arr_state, aval_state):
        raise AssertionError("called by the pickle")

    _reconstruct_array.__module__ = "jax._src.array"
    _reconstruct_array.__qualname__ = "_reconstruct_array"
    module._reconstruct_array = _reconstruct_array

    class JaxArray:  # pickles as jax 0.4 does
        def __init__(self, value):
            self.value = value

        def __reduce__(self):
            function, args, state = self.value.__reduce__()
            return _reconstruct_array, (function, args, state, {"weak_type": False, "named_shape": {}})

    with monkeypatch.context() as patch:
        for name in ("jax", "jax._src"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, "jax._src.array", module)
        jax_pickle = pickle.dumps(published_params(wrap=JaxArray))
    for i, content in enumerate(
        (
            jax_pickle,
            pickle.dumps({"params": published_params()}),
            pickle.dumps({"params": {"pretrained_encoder": published_params()}}),
        )
    ):
        path = tmp_path / f"{i}.pkl"
        path.write_bytes(content)
        state = backbone.read_backbone(path)[0].state_dict()
        assert all(torch.equal(state[k], v) for k, v in expected.items())


def test_bad_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="absent.pkl: no such backbone file"):
        backbone.find_backbone(path=tmp_path / "absent.pkl")

    params = published_params()
    params["conv_extra"] = params.pop("conv_init")
    params["ResNetBlock_3"]["Conv_1"]["kernel"] = np.zeros((3, 3, 512, 511), np.float32)
    params["norm_init"]["bias"] = np.full(64, np.nan, np.float32)
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps(params))
    with pytest.raises(ValueError) as error:
        backbone.find_backbone(path=tmp_path / "bad.pkl")
    for text in (
        "bad.pkl",
        "conv_extra/kernel: unknown",
        "conv_init/kernel: missing, wanted (7, 7, 3, 64)",
        "ResNetBlock_3/Conv_1/kernel: shape is (3, 3, 512, 511), wanted (3, 3, 512, 512)",
        "norm_init/bias: float32 values that are not all finite",
    ):
        assert text in str(error.value)

    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match="list.pkl: holds a list"):
        backbone.find_backbone(path=tmp_path / "list.pkl")
    (tmp_path / "evil.pkl").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(UnsafePickleError, match="evil.pkl"):
        backbone.find_backbone(path=tmp_path / "evil.pkl")
    torch.save({"kind": "SACAgent"}, tmp_path / "agent.pt")
    with pytest.raises(ValueError, match="agent.pt: not a backbone file .its kind is 'SACAgent'"):
        backbone.find_backbone(path=tmp_path / "agent.pt")
    torch.save({"kind": "backbone", "state": {"conv_init.weight": torch.zeros(2)}, "source": ""}, tmp_path / "odd.pt")
    with pytest.raises(
        ValueError, match="odd.pt does not hold a ResNet-10.*conv_init.weight is .2,., wanted .64, 3, 7, 7."
    ):
        backbone.find_backbone(path=tmp_path / "odd.pt")


def test_download(tmp_path, home, published, monkeypatch):
    server, url = serve(published.read_bytes())
    monkeypatch.setattr(backbone, "PUBLISHED_URL", url)
    found, line = backbone.find_backbone(download=True)
    server.shutdown()
    assert "published" in line and found is not None
    assert home.read_bytes() == published.read_bytes()
    assert [p.name for p in home.parent.iterdir()] == ["resnet10_params.pkl"]


def test_download_that_fails_leaves_nothing(home, published):
    with socket.socket() as unused:  # bound and not listening: refuses
        unused.bind(("127.0.0.1", 0))
        refused = f"http://127.0.0.1:{unused.getsockname()[1]}/resnet10_params.pkl"
        with pytest.raises(backbone.DownloadError, match="could not download .*refused.*put it at") as error:
            backbone.download_published(home, refused)
    assert isinstance(error.value, OSError) and "\n" not in str(error.value)

    content = published.read_bytes()
    server, url = serve(content[: len(content) // 2], len(content))
    with pytest.raises(backbone.DownloadError, match="could not download"):
        backbone.download_published(home, url)
    server.shutdown()

    server, url = serve(b"<html>log in to the hotel's network</html>")
    with pytest.raises(ValueError, match="what came is not the published ResNet-10"):
        backbone.download_published(home, url)
    server.shutdown()
    assert list(home.parent.iterdir()) == []


def test_read_hil_serl_params(tmp_path):
    flat = {"params/modules_temperature/lagrange": np.float32(-1.0), "modules_actor/Dense_0/bias": np.arange(6.0)}
    np.savez(tmp_path / "agent.npz", **flat)
    nested = {
        "params": {
            "modules_temperature": {"lagrange": np.float32(-1.0)},
            "modules_actor": {"Dense_0": {"bias": np.arange(6.0)}},
        }
    }
    (tmp_path / "agent.pkl").write_bytes(pickle.dumps(nested))
    for name in ("agent.npz", "agent.pkl"):
        read = backbone.read_hil_serl_params(tmp_path / name)
        assert set(read) == {"modules_temperature/lagrange", "modules_actor/Dense_0/bias"}
        assert read["modules_temperature/lagrange"] == -1 and read["modules_actor/Dense_0/bias"].shape == (6,)
    np.savez(tmp_path / "objects.npz", x=np.array([{}], object))
    with pytest.raises(ValueError, match="objects.npz"):
        backbone.read_hil_serl_params(tmp_path / "objects.npz")
    with pytest.raises(ValueError, match="nothing.npz: no such file"):
        backbone.read_hil_serl_params(tmp_path / "nothing.npz")
