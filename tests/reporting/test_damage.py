"""Unfinished, failed, damaged and hostile runs: what is there is shown, the rest is said, and nothing runs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from made_runs import changed, make_comparison, make_run
from pages import sound

from pglab.errors import PglabError
from pglab.reporting import Report, report


def said(found: Report) -> str:
    lines = [f"{what}: {text}" for what, text in found.problems]
    return "\n".join([*lines, *(f"{o.folder}: {p}" for o in found.origins for p in o.problems)])


def test_a_run_under_way_is_shown_as_far_as_it_is(tmp_path: Path) -> None:
    make_run(tmp_path / "whole", seed=1)
    make_run(tmp_path / "begun", changed(learning_rate=0.1), finished=False)
    log = tmp_path / "begun" / "log.csv"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:60]) + "500,seed0,eval/ret")  # cut off by a crash
    found = report(tmp_path, tmp_path / "out")
    whole, begun = found.sections[0].groups[0].variants
    assert (whole.finished, begun.finished) == (True, False)
    assert 0 < begun.steps < 1000
    assert begun.curve is not None
    assert "not finished" in said(found)
    assert "left out" not in said(found)
    page = sound((tmp_path / "out" / "report.html").read_text())
    assert "not finished at 300 of 1,000 steps" in page.text
    assert "1 of 2 runs finished" in page.text


def test_without_evaluations_training_returns_are_shown(tmp_path: Path) -> None:
    make_run(tmp_path / "run", finished=False)
    log = tmp_path / "run" / "log.csv"
    log.write_text("".join(line for line in log.read_text().splitlines(keepends=True) if "eval/" not in line))
    (v,) = report(tmp_path).sections[0].groups[0].variants
    assert v.curve is None
    assert v.training_curve.iqm.tolist() == pytest.approx([10.0 * k for k in range(1, 11)])


def test_without_rates_there_is_no_panel_by_time_and_it_is_said(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    log = tmp_path / "run" / "log.csv"
    log.write_text("".join(line for line in log.read_text().splitlines(keepends=True) if "SPS" not in line))
    found = report(tmp_path, tmp_path / "out")
    (group,) = found.sections[0].groups
    assert group.variants[0].time_curve is None
    assert any("charts/SPS" in note for note in group.notes)
    assert "by wall time: log.csv has no charts/SPS" in sound((tmp_path / "out" / "report.html").read_text()).text


DAMAGE: dict[str, tuple[str, bytes, str]] = {
    "config that is no YAML": ("config.yaml", b"env: {id: [", "config.yaml is damaged: it is not valid YAML"),
    "config that would run code": ("config.yaml", b"env: !!python/object/apply:os.mkdir [ran]", "not valid YAML"),
    "config of aliases": ("config.yaml", b"a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]", "uses YAML aliases"),
    "config that is a list": ("config.yaml", b"- 1\n", "not a mapping"),
    "config of bytes": ("config.yaml", b"\xff\xfe\x00env", "config.yaml is damaged"),
    "results that are cut off": ("results.json", b'{"members": [', "results.json is damaged: it is not JSON"),
    "results that are deep": ("results.json", b"[" * 100_000, "results.json is damaged"),
    "results of another kind": ("results.json", b'{"evaluations": [{"steps": "x"}]}', "not as pglab writes them"),
    "results that do not fit": ("results.json", b'{"members": [{"seed": 1}], "evaluations": [{"steps": [1, 2], "returns": [[1]]}]}', "not as pglab"),
    "log of another kind": ("log.csv", b"a,b\n1,2\n", "log.csv is damaged: its first line"),
    "log with bad lines": ("log.csv", b'step,member,tag,value\n1,seed0,eval/return,x\n"\n0,seed0,eval/return,3\n', "2 lines that cannot be read"),
    "log that is empty": ("log.csv", b"", "no returns"),
    "log of NUL": ("log.csv", b"\0" * 100, "no returns"),
    "versions that are no object": ("versions.json", b"[1]", "versions.json is damaged"),
    "git that is no JSON": ("git.json", b"{", "git.json is damaged"),
    "measurements that are none": ("variance/report.json", b'{"measured": [{"pairs": 3}]}', "variance/report.json is damaged"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(DAMAGE))
def test_a_damaged_file_is_a_sentence_and_the_rest_is_reported(case: str, tmp_path: Path) -> None:
    name, content, expected = DAMAGE[case]
    make_run(tmp_path / "good")
    make_run(tmp_path / "bad", seed=1)
    (tmp_path / "bad" / "variance").mkdir()
    (tmp_path / "bad" / name).write_bytes(content)
    found = report(tmp_path, tmp_path / "out")
    assert expected in said(found)
    assert len(found.origins) == 2
    assert any(v.name == "good" and v.finished for s in found.sections for g in s.groups for v in g.variants)
    sound((tmp_path / "out" / "report.html").read_text())
    assert not Path("ran").exists()
    json.loads((tmp_path / "out" / "report.json").read_text())


@pytest.mark.parametrize("name", ["config.yaml", "results.json", "log.csv", "command.txt", "versions.json", "git.json"])
def test_a_missing_file_too(name: str, tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    found = report(tmp_path / "run", tmp_path / "out")
    assert len(found.origins) == 1
    sound((tmp_path / "out" / "report.html").read_text())


def test_files_outside_the_run_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("the secret")
    make_run(tmp_path / "runs" / "run")
    (tmp_path / "runs" / "run" / "command.txt").unlink()
    (tmp_path / "runs" / "run" / "command.txt").symlink_to(tmp_path / "secret")
    os.symlink("/", tmp_path / "runs" / "everything")
    found = report(tmp_path / "runs", tmp_path / "out")
    assert "link to outside" in said(found)
    assert all("the secret" not in (tmp_path / "out" / f"report.{kind}").read_text() for kind in ("html", "md", "json"))
    assert len(found.origins) == 1


def test_failed_and_unstarted_variants_of_a_comparison_are_named(tmp_path: Path) -> None:
    make_comparison(tmp_path / "made", {"none": 80.0, "value": 90.0})
    data = yaml.safe_load((tmp_path / "made" / "comparison.yaml").read_text())
    data["groups"]["mc"]["variants"] |= {"late": {}, "broken": {}, "../../etc": {}}
    (tmp_path / "made" / "comparison.yaml").write_text(yaml.safe_dump(data))
    (tmp_path / "made" / "results.json").write_text(
        json.dumps({"failed": {"mc/broken": "Traceback\n\x1b[31mboom <b>"}})
    )
    found = report(tmp_path)
    text = said(found)
    assert "Variant mc/late has no run" in text
    assert "Variant mc/broken failed: \\x1b[31mboom <b>" in text
    assert "Variant mc/../../etc has no run" in text


HOSTILE = {
    "tags": "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "attribute": "\"><svg onload=alert(1)> ' onmouseover=alert(1)",
    "address": "javascript:alert(1) [x](javascript:alert(1)) http://evil.example/ www.evil.example a@evil.example",
    "path": "../../../../etc/passwd",
    "terminal": "\x1b]0;owned\x07\x1b[2J\x9b31m",
    "NUL and direction": "a\0b\u202egnp.exe\ud800",
    "long": "x" * 100_000,
    "markdown": "| a | b |\n\n# heading\n```\n<b>\n- `code` $x$ ![i](http://evil.example/i.png)",
}


@pytest.mark.parametrize("case", list(HOSTILE))
def test_hostile_strings_are_shown_and_do_nothing(case: str, tmp_path: Path) -> None:
    text = HOSTILE[case]
    config = changed(
        learning_rate=text.replace("\ud800", ""),
        note={text[:200].replace("\ud800", ""): text[:50_000].replace("\ud800", "")},
    )
    config["env"] = {"id": text.replace("\ud800", "")}
    make_run(tmp_path / "runs" / "a", config)
    config = {**config, "learning_rate": 1}
    name = "".join(c for c in text[:100] if c not in "/\0\ud800") or "b"
    make_run(tmp_path / "runs" / name, config, seed=1)
    for kind in ("command.txt", "versions.json", "git.json"):
        content = (
            text if kind == "command.txt" else json.dumps({"commit": text, "dirty": text, "torch": text, text: text})
        )
        (tmp_path / "runs" / "a" / kind).write_bytes(content.encode("utf-8", "surrogatepass"))
    results = json.loads((tmp_path / "runs" / "a" / "results.json").read_text())
    results["measurements"][0]["stage"] = text
    (tmp_path / "runs" / "a" / "results.json").write_text(json.dumps(results))
    pair = {"pair": text, "nsr": [1.0, 0.5, 2.0, True], "milliseconds": 1}
    measured = {"environment": text.replace("\ud800", ""), "member": text, "stage": text, "steps": 1, "pairs": [pair]}
    (tmp_path / "runs" / "a" / "variance").mkdir()
    (tmp_path / "runs" / "a" / "variance" / "report.json").write_text(
        json.dumps({"definition": text, "measured": [measured]})
    )
    found = report(tmp_path / "runs", tmp_path / "out", name=text)
    html = (tmp_path / "out" / "report.html").read_text()
    page = sound(html)
    markdown = (tmp_path / "out" / "report.md").read_text()
    data = (tmp_path / "out" / "report.json").read_text()
    for document in (html, markdown, data):
        assert all(c.isprintable() or c == "\n" for c in document)
        assert len(document) < 400_000
    assert "<script" not in html + markdown
    assert "<img" not in html + markdown
    assert "://" not in markdown
    assert not [line for line in markdown.splitlines() if line.startswith(("# heading", "```", "<b>"))]
    assert all(
        line.startswith("![")
        for line in markdown.splitlines()
        if "](" in line.replace("\\](", "").replace("\\]\\(", "")
    )
    assert len(found.sections) == 1
    sound(page_of_fragment(found))
    if case == "terminal":
        assert "\\x1b]0;owned\\x07" in page.text


@pytest.mark.parametrize("value", ["inf", "-inf", None, 1e308, -1e308, 1e200, 1e17, 0, "1e400"])
def test_returns_of_a_run_that_diverged_are_no_trouble(
    value: object, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    make_run(tmp_path / "good", seed=1)
    make_run(tmp_path / "bad", changed(learning_rate=1))
    results = json.loads((tmp_path / "bad" / "results.json").read_text())
    for e in results["evaluations"][3:]:
        e["returns"][0] = [value] * 3
        e["returns"][1][0] = value
    results["measurements"][1]["trace_variance"][0] = value
    results["measurements"][0]["squared_norm"] = [value] * 4
    (tmp_path / "bad" / "results.json").write_text(json.dumps(results))
    report(tmp_path, tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text()
    sound(html)
    assert not re.search(r'(x|y|d|cx|cy|x1|x2|y1|y2)="[^"]*(nan|inf)', html)
    assert not [w for w in recwarn if issubclass(w.category, RuntimeWarning)]


def page_of_fragment(found: Report) -> str:
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return f"<!-- {policy} -->{found._repr_html_()}"


MISTAKES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda p: report(p / "nowhere"), "There is no folder"),
    "no runs": (lambda p: report(p / "empty"), "There are no runs in"),
    "nothing": (lambda p: report([]), "Name at least one"),
    "another's report": (lambda p: report(p / "run", p / "run" / "variance"), "not an earlier report's"),
    "a file": (lambda p: report(p / "run", p / "run" / "log.csv"), "not a folder"),
    "unknown table": (lambda p: report(p / "run").rows("score"), "Did you mean 'scores'?"),
}


@pytest.mark.parametrize("case", list(MISTAKES))
def test_a_mistake_is_one_sentence(case: str, tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "run" / "variance").mkdir()
    (tmp_path / "run" / "variance" / "report.json").write_text('{"measured": []}')
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.yaml").write_text("site: mine\n")
    call, expected = MISTAKES[case]
    with pytest.raises(PglabError, match=expected.replace("?", r"\?")) as caught:
        call(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_report_is_replaced_and_is_no_run(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "run")
    first = report(tmp_path / "runs", tmp_path / "runs" / "report")
    (tmp_path / "runs" / "report" / "report-curves-9.png").write_bytes(b"old")
    again = report(tmp_path / "runs", tmp_path / "runs" / "report")
    assert first.plain()["summary"] == again.plain()["summary"]
    assert not (tmp_path / "runs" / "report" / "report-curves-9.png").exists()
