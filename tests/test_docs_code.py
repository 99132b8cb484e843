"""The documents' code runs, and what they quote of pglab is what pglab has. `extending.md` has tests of its own."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import matplotlib.pyplot as plt
import pytest
from documents import PAGES, ROOT, Block, blocks, name_of

from pglab.baselines import BASELINES
from pglab.estimators import ESTIMATORS
from pglab.estimators.learned import Learned

QUOTED = re.compile(r"# (pglab/\S+\.py)\n")
RUN = [p for p in PAGES if blocks(p, "python") and p.name != "extending.md"]
REDUCED = {"20_000}": "1_000}", "n_eval_episodes=8": "n_eval_episodes=1", "8_000}": "1_000}"}
"""What is made smaller here than on the page."""
NOTEBOOK = ROOT / "examples" / "variance_tour.ipynb"
NOTEBOOK_REDUCED = {
    "total_steps = 20_000": "total_steps = 1_000",
    "replicates = 64": "replicates = 8",
    "reference = 2048": "reference = 64",
}


@pytest.fixture
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder to write to, short fits, no windows, and registries that forget what a page registers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Learned, "fit_updates", 100)
    for registry in (ESTIMATORS, BASELINES):
        monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    registered = dict(gymnasium.registry)
    plt.switch_backend("agg")
    yield
    plt.close("all")
    for new in set(gymnasium.registry) - set(registered):
        del gymnasium.registry[new]


def reduced(code: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        code = code.replace(old, new)
    return code


def session(page: Path) -> list[Block]:
    return [b for b in blocks(page, "python") if not QUOTED.match(b.text)]


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_a_pages_code_runs_from_top_to_bottom(page: Path, apart: None):
    scope: dict[str, Any] = {"__name__": "page"}
    for block in session(page):
        code = "\n" * (block.line - 1) + reduced(block.text, REDUCED)
        exec(compile(code, name_of(page), "exec"), scope)


def test_the_environment_of_the_questions_trains(apart: None):
    import pglab

    (code,) = [b.text for b in session(ROOT / "docs" / "faq.md") if "my_env.py" in b.text]
    exec(compile(code, "my_env.py", "exec"), {"__name__": "my_env"})
    settings = {"env": {"id": "Corridor-v0", "vectorization": "sync"}, "seeds": 1, "total_steps": 256, "threads": 1}
    assert pglab.train({**settings, "evaluation": {"episodes": 1, "final_episodes": 1}}, "run").finished


def test_what_a_page_quotes_stands_in_the_file_that_it_names():
    found = 0
    for page in PAGES:
        for block in blocks(page, "python"):
            named = QUOTED.match(block.text)
            if named:
                found += 1
                source = (ROOT / named[1]).read_text(encoding="utf-8")
                quoted = textwrap.dedent(block.text[named.end() :])
                assert quoted in textwrap.dedent(source) or block.text[named.end() :] in source, (
                    name_of(page),
                    block.line,
                )
    assert found > 15


# -- the notebook


def cells(kind: str) -> list[dict[str, Any]]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [c for c in notebook["cells"] if c["cell_type"] == kind]


def test_the_notebook_is_small_and_was_run_in_order():
    assert NOTEBOOK.stat().st_size < 200_000
    assert [c["execution_count"] for c in cells("code")] == list(range(1, len(cells("code")) + 1))
    assert not [o for c in cells("code") for o in c["outputs"] if o["output_type"] == "error"]
    assert any("image/png" in o.get("data", {}) for c in cells("code") for o in c["outputs"])
    assert not re.search(r"/(work|home|tmp|root|Users)/", NOTEBOOK.read_text(encoding="utf-8"))


def test_the_notebooks_cells_run(apart: None):
    scope: dict[str, Any] = {"__name__": "notebook"}
    text = "".join("".join(c["source"]) for c in cells("code"))
    assert all(old in text for old in NOTEBOOK_REDUCED)
    for i, cell in enumerate(cells("code")):
        code = reduced("".join(cell["source"]), NOTEBOOK_REDUCED)
        code = "\n".join(line for line in code.splitlines() if not line.startswith("%"))
        exec(compile(code, f"cell {i + 1}", "exec"), scope)
