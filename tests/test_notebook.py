"""docs/first_run.ipynb was run to its end, and names what there is."""

import ast
import json
import pathlib

import tpmm_jax as tpmm

NOTEBOOK = pathlib.Path(__file__).parents[1] / "docs" / "first_run.ipynb"


def test_the_notebook_was_run_to_its_end_and_names_what_there_is():
    text = NOTEBOOK.read_text(encoding="utf-8")
    cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == [*range(1, len(cells) + 1)]
    kinds = {output["output_type"] for cell in cells for output in cell["outputs"]}
    assert kinds == {"stream", "execute_result"}
    tree = ast.parse("\n".join("".join(cell["source"]) for cell in cells))
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "tpmm"
    }
    assert used and all(hasattr(tpmm, name) for name in used)
    assert "/home/" not in text and "/root/" not in text
