"""notebooks/tour.ipynb runs from top to bottom in its short form, and what is stored in it is whole, small and clean.

Its outputs are stored by
    export TQDM_DISABLE=1        (no progress bars in it)
    jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False notebooks/tour.ipynb
    jupyter nbconvert --coalesce-streams notebooks/tour.ipynb
"""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.runs import ROOT

NOTEBOOK = ROOT / "notebooks" / "tour.ipynb"
FIGURES = {"image/png": 6, "image/jpeg": 1, "image/gif": 1}


def read(path):
    """The cells and the code cells of a notebook file."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return cells, [cell for cell in cells if cell["cell_type"] == "code"]


def count_figures(code):
    kinds = [kind for cell in code for output in cell["outputs"] for kind in output.get("data", {})]
    return {kind: kinds.count(kind) for kind in FIGURES}


def kinds_of_output(cell):
    """What a cell shows, whatever the numbers: names of streams (without progress bars') and kinds of data."""
    kinds = {o.get("name") or kind for o in cell["outputs"] for kind in o.get("data", {"": None})}
    return kinds - {"stderr"}


def test_the_stored_notebook_is_executed_small_and_clean():
    text = NOTEBOOK.read_text(encoding="utf-8")
    cells, code = read(NOTEBOOK)
    assert len(text) < 1_000_000
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))  # in one go
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"]
    assert count_figures(code) == FIGURES
    assert json.loads(text)["metadata"]["kernelspec"]["name"] == "python3"
    words = re.sub(r'"image/(png|jpeg|gif)": "[^"]*"', "", text)
    assert not re.search(r"/tmp|/home|/root|/Users|\\\\Users|site-packages|Warning", words)
    for before, cell in zip(cells, cells[1:]):  # each code cell is explained
        assert cell["cell_type"] == "markdown" or before["cell_type"] == "markdown", "".join(cell["source"])


@pytest.mark.slow
def test_it_runs_from_a_clone_with_nothing_recorded(tmp_path):
    for package in ("nbconvert", "ipykernel"):
        pytest.importorskip(package, reason="pip install -r requirements/notebook.txt")
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--output-dir", tmp_path, NOTEBOOK]
    environment = os.environ | {"TOUR_SHORT": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("MPLBACKEND", None)  # another backend than the notebook's own draws nothing into it
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    stored, executed = read(NOTEBOOK)[1], read(tmp_path / NOTEBOOK.name)[1]
    assert count_figures(executed) == FIGURES
    for ours, theirs in zip(stored, executed, strict=True):
        assert ours["source"] == theirs["source"] and kinds_of_output(ours) == kinds_of_output(theirs)
