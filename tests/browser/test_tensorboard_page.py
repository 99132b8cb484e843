"""TensorBoard's pages of a comparison, as a reader sees them in a browser.

With PGLAB_SCREENSHOTS=docs/figures in the environment a longer comparison is trained (about half a minute), and what is seen
is saved there as `tensorboard_*.png`.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from board_server import ask, experiment, metrics, rows, serve

from pglab.cli.board import page
from pglab.comparing import compare

pytestmark = [pytest.mark.browser, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

SCREENSHOTS = os.environ.get("PGLAB_SCREENSHOTS")
BROWSERS, DRIVERS = ("chromium", "chromium-browser", "google-chrome"), ("chromedriver",)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1500,1150",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE localhost",  # nothing is asked of another machine
)  # fmt: skip
TINY: dict[str, Any] = {
    "name": "tiny",
    "groups": {
        "monte_carlo": {
            "title": "Monte-Carlo returns",
            "base": {
                "env": {"id": "CartPole-v1", "num_envs": 4},
                "agent": {"name": "on_policy", "collect": "episodes"},
                "seeds": 3,
                "total_steps": 2_000,
                "log_every": 400,
                "evaluation": {"every": 500, "episodes": 4, "final_episodes": 4},
                "measurement": {"at": [0, 1], "replicates": 8},
            },
            "variants": {"none": {}, "leave_one_out": {"baseline": "leave_one_out"}},
        }
    },
}
# Looks through every shadow root, which an ordinary query does not.
DEEP = """
const found = [];
const visit = (node, inside) => {
  if (node.matches && node.matches(arguments[0])) inside = true;
  if (inside && node.matches && node.matches(arguments[1])) found.push(node);
  for (const child of [...(node.shadowRoot ? node.shadowRoot.children : []), ...node.children]) visit(child, inside);
};
visit(document.documentElement, false);
"""


def found_program(names: tuple[str, ...]) -> str:
    for name in names:
        path = shutil.which(name)
        if path is not None:
            return path
    pytest.skip(f"none of {', '.join(names)} is installed")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("comparison") / "runs"
    if not SCREENSHOTS:
        return compare(TINY, root=root, quiet=True)
    longer = [("seeds", 4), ("total_steps", 60_000), ("evaluation.every", 5_000)]
    return compare("cartpole", root, 2, longer, ["none", "leave_one_out", "value"], command="pglab compare", quiet=True)


@pytest.fixture(scope="module")
def url(compared: Any) -> str:
    with contextlib.chdir(compared.folder.parents[1]):  # the pages show the folder as it is given
        return serve(Path("runs") / compared.folder.name, sum(row.seeds + 1 for row in compared.rows) + 1)


@pytest.fixture(scope="module")
def browser(compared: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = found_program(BROWSERS)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, Service(found_program(DRIVERS)))
    yield driver
    driver.quit()


def look(browser: Any, address: str, name: str, ready: Callable[[], bool]) -> None:
    """Open a page, wait until it is ready, and keep what is seen of it."""
    browser.get("about:blank")  # another part behind the # alone would not load the page anew
    browser.get(address)
    deadline = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < deadline, f"{address} never showed what was waited for"
        time.sleep(0.2)
    time.sleep(1.0)  # charts are still moving into place
    keep(browser.get_screenshot_as_png(), name)
    asked = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    base = address.partition("#")[0]
    assert asked
    assert all(a.startswith((base, "data:", "blob:", "chrome:")) for a in asked), asked


def keep(png: bytes, name: str) -> None:
    from PIL import Image

    with Image.open(io.BytesIO(png)) as seen:
        assert len(set(seen.convert("L").resize((64, 64)).getdata())) > 8  # not an empty page
        if not SCREENSHOTS or not name:
            return
        small = seen.convert("RGB").resize((1200, round(1200 * seen.height / seen.width)), Image.Resampling.LANCZOS)
        path = Path(SCREENSHOTS) / f"tensorboard_{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small.quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
        assert path.stat().st_size < 200_000


def count(browser: Any, inside: str, selector: str) -> int:
    return browser.execute_script(f"{DEEP} return found.length;", inside, selector)


def texts(browser: Any, inside: str, selector: str) -> str:
    return browser.execute_script(
        f"{DEEP} return found.map(node => node.textContent.trim()).join('\\n');", inside, selector
    )


def test_the_endpoints_hold_the_layout_every_run_and_a_row_per_variant(compared: Any, url: str) -> None:
    layout = ask(url, "data/plugin/custom_scalars/layout")
    titles = [category["title"] for category in layout["category"]]
    assert titles[0] == "Over seeds: return and gradient noise"
    assert len(titles) == len(set(titles))
    tags = ask(url, "data/plugin/scalars/tags")
    for category in layout["category"]:
        for chart in category["chart"]:
            for series in chart.get("margin", {}).get("series", []):
                for row in compared.rows:
                    run = f"{row.group}/{row.variant}/tensorboard/aggregate"
                    assert {series["value"], series["lower"], series["upper"]} <= set(tags[run]), chart["title"]
    found = {row["hparams"]["variant"]: row for row in rows(url)}
    assert set(found) == {row.variant for row in compared.rows}
    for row in compared.rows:
        shown = found[row.variant]
        assert len(shown["sessions"]) == row.seeds
        each = [metrics(session)["eval/return"] for session in shown["sessions"]]
        assert metrics(shown)["eval/return"] == pytest.approx(sum(each) / len(each))
        assert min(each) == pytest.approx(row.worst, rel=1e-6)
    assert {"variant", "estimator", "baseline", "agent", "environment", "learning_rate", "seeds"} <= {
        info["name"] for info in experiment(url)["hparamInfos"]
    }


def test_the_first_page_shows_a_band_per_variant(compared: Any, url: str, browser: Any) -> None:
    areas = 2 * len(compared.rows)  # of returns and evaluation returns; the noise's interval may be open above
    card = "tf-custom-scalar-margin-chart-card"
    for name, fragment in (("bands", page([compared.folder])), ("", "custom_scalars")):
        look(browser, f"{url}#{fragment}", name, lambda: count(browser, card, "path.area") >= areas)
        said = texts(browser, "tf-custom-scalar-dashboard", "div")
        assert "Matches" in said
        assert "lacks data" not in said  # members have none of a band's tags, not a part of them
        assert "do not match" not in said
        boxes = texts(browser, "tf-runs-selector", ".item-label-container").split()
        assert any("aggregate" in box for box in boxes)
        assert any("seed" in box for box in boxes) == (not name)


def test_the_table_of_hyperparameters_has_a_row_per_variant(compared: Any, url: str, browser: Any) -> None:
    def cells() -> list[str]:
        return texts(browser, "tf-hparams-table-view", "vaadin-grid-cell-content").splitlines()

    browser.set_window_size(1900, 900)  # all columns
    look(browser, f"{url}#hparams", "hparams", lambda: all(row.variant in cells() for row in compared.rows))
    assert f"Number of matching session groups: {len(compared.rows)}" in " ".join(
        texts(browser, "tf-hparams-query-pane", ".section").split()
    )


def test_the_figures_are_on_the_page_of_images(compared: Any, url: str, browser: Any) -> None:
    browser.set_window_size(1500, 1150)

    def drawn() -> bool:
        boxes = (
            f"{DEEP} found.filter(box => !box.checked && box.textContent.includes('actual')).map(box => box.click());"
        )
        browser.execute_script(boxes, "tf-image-dashboard", "paper-checkbox")
        sizes = browser.execute_script(f"{DEEP} return found.map(i => i.naturalWidth);", "tf-image-loader", "img")
        return len(sizes) == 2 and min(sizes) > 300

    look(browser, f"{url}#images", "images", drawn)
