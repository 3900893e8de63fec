"""examples/quickstart.ipynb runs from top to bottom and shows what it says."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent / "examples" / "quickstart.ipynb"

#: In a process of its own: the kernel's client opens sockets and event loops that outlive a test.
RUN = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, timeout=600, resources={"metadata": {"path": sys.argv[2]}}).execute()
nbformat.write(notebook, sys.argv[3])
"""


def test_no_outputs_are_committed():
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None


@pytest.mark.slow
def test_it_runs(tmp_path):
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    done = tmp_path / "done.ipynb"
    command = [sys.executable, "-c", RUN, str(NOTEBOOK), str(NOTEBOOK.parent), str(done)]
    subprocess.run(command, check=True)
    cells = json.loads(done.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    shown = [output["data"] for output in outputs if "data" in output]
    assert sum("image/png" in data for data in shown) == 1
    assert sum("<audio" in "".join(data.get("text/html", "")) for data in shown) == 2
    table = ast.literal_eval("".join(shown[-1]["text/plain"]))
    assert list(table)[:2] == ["noisy", "models/fcn.h5"] and len(table) == 5
    assert table["models/fcn.h5"]["PESQ-WB"] > table["noisy"]["PESQ-WB"]
    packed = next(name for name in table if name.startswith("model.icse"))
    assert int(packed.split()[1].replace(",", "")) < 200_000
    assert list(table)[-1] == "chosen: expert_typing"
    printed = "".join("".join(output["text"]) for output in outputs if "text" in output)
    assert "picks       " in printed  # what a command prints is there, too
