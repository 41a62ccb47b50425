"""The notebook runs from top to bottom, and holds no output by hand."""

import json
from pathlib import Path

import pytest

TOUR = Path(__file__).parents[1] / "notebooks" / "tour.ipynb"


def test_it_is_kept_without_outputs():
    cells = json.loads(TOUR.read_text(encoding="utf-8"))["cells"]
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in cells)


@pytest.mark.long
def test_it_runs_from_top_to_bottom_and_what_it_says_is_so(tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="needs the dev extra")
    nbformat = pytest.importorskip("nbformat", reason="needs the dev extra")
    notebook = nbformat.read(TOUR, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
    results = [
        json.loads((tmp_path / "runs" / run / "result.json").read_text())["accuracy"]
        for run in ("first", "others")
    ]
    assert min(results) > 0.8
    said = "".join(
        output.get("text", "") for cell in notebook.cells if cell.cell_type == "code"
        for output in cell.outputs
    )  # fmt: skip
    assert said.count("photos/others/val/") >= 4
    for page in ("look.html", "report.html"):
        assert (tmp_path / page).stat().st_size > 10_000
