"""What the rooms of pytorch_serl may know of each other: imports run downwards, and in no circle."""

import ast

from tests.runs import ROOT

BELOW = {  # room -> whose modules it may import, besides its own
    "utils": set(),
    "networks": {"utils"},
    "agents": {"networks", "utils"},
    "hil_serl": {"agents", "networks", "utils"},
    "data": {"utils"},  # nothing of agents: what a transition is does not depend on who learns from it
    "envs": {"utils"},  # nothing of data either: an environment and a demo file agree by the format in docs, and checks
    "training": {"agents", "data", "envs", "hil_serl", "networks", "utils"},
    "export": {"agents", "data", "envs", "hil_serl", "networks", "training", "utils"},
    "scaling": {"agents", "data", "envs", "hil_serl", "networks", "training", "utils"},
}
PACKAGE = "pytorch_serl"


def modules():
    """Every module of the package by its dotted name."""
    names = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports(name, text, known):
    """The modules of the package that `text`, the module `name`, imports anywhere, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} imports relatively; wanted the whole name"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & known) or {node.module}
        elif isinstance(node, ast.Call) and any(
            isinstance(x, ast.Constant) and str(x.value).split(":")[0] in known for x in node.args
        ):  # importlib.import_module and gymnasium.register take names
            found |= {str(x.value).split(":")[0] for x in node.args if isinstance(x, ast.Constant)} & known
    return {module for module in found if module.split(".")[0] == PACKAGE} - {name}


def room(module):
    return module.split(".")[1] if "." in module else None


def arrows():
    known = modules()
    return {name: imports(name, path.read_text(), known.keys()) for name, path in known.items()}


def upward(table):
    """Arrows from a room to one that it may not know."""
    return [
        f"{name} -> {other}"
        for name, others in table.items()
        for other in sorted(others)
        if room(other) not in {room(name), *BELOW.get(room(name), set())}
    ]


def circle(table):
    """Modules that import each other in a circle, or None."""
    left = {name: set(others) for name, others in table.items()}
    while free := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in free}
    return sorted(left) or None


def test_imports_run_downwards():
    assert {room(name) for name in modules()} - {None} == BELOW.keys(), "a room that this test does not know"
    assert upward(arrows()) == []


def test_imports_run_in_no_circle():
    assert circle(arrows()) is None


def test_no_room_imports_a_script():
    scripts = {path.stem for path in ROOT.glob("*.py")}
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            named = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            named += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert not scripts & {str(module).split(".")[0] for module in named}, (name, named)


def test_agents_and_networks_know_of_other_processes_in_one_place():
    """Where gradients are averaged: `SACAgent.average`, which scaling/torchrun.py sets."""
    for name, path in modules().items():
        if room(name) in ("agents", "networks"):
            text = path.read_text()
            assert not any(word in text for word in ("torch.distributed", "world_size", "rank("))
            assert name == "pytorch_serl.agents.sac" or ".average(" not in text


def test_this_test_sees_what_it_looks_for():
    known = set(modules())
    lazy = "def f():\n    from pytorch_serl.scaling import torchrun\n    import pytorch_serl.data.demos\n"
    found = imports("pytorch_serl.training.run", lazy, known)
    assert found == {"pytorch_serl.scaling.torchrun", "pytorch_serl.data.demos"}
    assert [arrow.split()[-1] for arrow in upward({"pytorch_serl.training.run": found})] == [
        f"{PACKAGE}.scaling.torchrun"
    ]
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["a", "b", "c"]
