"""The documents hold what the code has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pglab.baselines import BASELINES
from pglab.estimators import ESTIMATORS

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "configs").glob("*/RESULTS.md")])


def shipped(registry) -> list[str]:
    """Other tests register methods of their own."""
    return [n for n in registry.names() if registry.get(n).__module__.startswith("pglab.")]


def test_the_gallery_has_every_estimator_with_its_figure():
    page = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    found = re.findall(r"^## (\w+)$", page, re.M)
    assert found == shipped(ESTIMATORS)
    for name in found:
        assert f"figures/gallery/{name}.png" in page
        assert (ROOT / "docs" / "figures" / "gallery" / f"{name}.png").is_file()
        assert ESTIMATORS.get(name).paper in page


def test_the_readme_names_every_estimator_and_baseline():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [n for n in [*shipped(ESTIMATORS), *shipped(BASELINES)] if f"`{n}`" not in page]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("block", range(3))
def test_code_of_the_page_on_objectives_runs(block, capsys):
    page = (ROOT / "docs" / "objectives.md").read_text(encoding="utf-8")
    exec(compile(re.findall(r"```python\n(.*?)```", page, re.S)[block], "docs/objectives.md", "exec"), {})
    assert "tensor" in capsys.readouterr().out
