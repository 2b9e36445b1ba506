"""The notebooks: each runs from its source in a fresh kernel, and opens in Colab as what its source says."""

import ast
from pathlib import Path

import jupytext
import nbclient
import nbformat
import pytest

from scratchlm.models import MODELS

FOLDER = Path(__file__).parent.parent / "notebooks"
SOURCES = sorted(FOLDER.glob("*.py"))
SECTIONS = ["Set up", "Build it", "Check it", "Look inside", "Break it", "Exercises"]
REPOSITORY = "OWNER/scratchlm"
OFFLINE = """
import socket

def refuse(self, address, *rest):
    raise OSError(f"a notebook tried to reach {address}")

socket.socket.connect = refuse
"""


def cells(path):
    return jupytext.read(path).cells


def written(path, kind):
    return [cell.source for cell in cells(path) if cell.cell_type == kind]


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_has_its_parts(source):
    prose, code = written(source, "markdown"), written(source, "code")
    for cell in code:
        ast.parse(cell)
    title, *sections = [line for cell in prose for line in cell.splitlines() if line.startswith(("# ", "## "))]
    assert title.startswith("# ")
    places = [sections.index(f"## {name}") for name in SECTIONS]
    assert places == sorted(places)
    assert source.stem not in MODELS or "## Overfit one batch" in sections
    link = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/notebooks/{source.stem}.ipynb"
    assert f"[Open in Colab]({link})" in prose[0]
    assert code[0] == written(SOURCES[0], "code")[0], "the set-up is the same cell in all of them"
    assert f'REPOSITORY = "https://github.com/{REPOSITORY}"' in code[0]
    answers = [cell for cell in code if cell.startswith("# @title Answer")]
    assert len(answers) >= 3
    assert sum(cell.startswith("# your own") for cell in code) == len(answers)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_colab_opens_what_the_source_says(source):
    """What `jupytext --to ipynb` makes, apart from the cells' ids, which it draws."""
    made = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    plain = [(cell.cell_type, cell.source, cell.metadata) for cell in cells(source)]
    assert [(cell.cell_type, cell.source, cell.metadata) for cell in made.cells] == plain, (
        f"make {source.with_suffix('.ipynb').name} anew: jupytext --to ipynb --update notebooks/{source.name}"
    )
    assert not any(cell.get("outputs") for cell in made.cells), "outputs are for the reader's machine to make"


def test_the_index_names_them_all():
    index = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"({source.stem}.ipynb)" in index for source in SOURCES)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_runs(source, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = jupytext.read(source)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(OFFLINE))
    notebook.cells.append(nbformat.v4.new_code_cell("import time\n\ntime.process_time()"))
    place = {"metadata": {"path": str(FOLDER)}}
    nbclient.NotebookClient(notebook, kernel_name="python3", resources=place).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output.text for output in outputs if output.get("name") == "stderr"], "it warns of nothing"
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    seconds = float(outputs[-1].data["text/plain"])  # of one core: what else the machine does counts for nothing
    assert seconds < 180
