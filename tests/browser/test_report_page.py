"""The report's page in a browser: it fits, asks for nothing, and has no errors, on a wide and on a narrow screen."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "reporting"))
from made_runs import changed, make_comparison, make_run

from pglab.reporting import report

pytestmark = pytest.mark.browser
DRIVER = Path("/usr/bin/chromedriver")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.chrome.service import Service

    if not DRIVER.exists():
        pytest.skip(f"there is no {DRIVER}")
    options = webdriver.ChromeOptions()
    # As root Chromium has no sandbox; what is opened here is the project's own page.
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    long = "a-variant-with-a-name-that-does-not-want-to-be-broken-anywhere-at-all-" * 2
    make_comparison(root / "made-20260101-120000", {"none": 80.0, "value": 100.0, long[:120]: 90.0})
    make_run(root / "other", changed(env={"id": "<img src=http://x.example/a.png>"}, note="y" * 5000), finished=False)
    report(root, root / "out", name="<script>document.title='owned'</script>")
    return root / "out" / "report.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page_fits_and_asks_for_nothing(browser: Any, page: Path, width: int, scheme: str) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get_log("performance")
    browser.get(page.as_uri())
    assert browser.execute_script("return window.innerWidth") == width
    # Everything folded is looked at as well.
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert browser.execute_script("return document.body.scrollWidth") <= width
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert page.as_uri() in asked
    assert [a for a in asked if a != page.as_uri() and not a.startswith("data:")] == []
    assert browser.title.startswith("<script>")
    ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert ground == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 28)"}[scheme]
    # Words are never smaller than can be read.
    height = browser.execute_script("return document.querySelector('svg.panel text').getBoundingClientRect().height")
    assert height >= 9
