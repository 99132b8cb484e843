"""The documents hold what the code has: names, links, anchors, commands."""

from __future__ import annotations

import importlib
import re
import shlex
from functools import cache
from typing import Any

import pytest
from documents import PAGES, ROOT, Command, anchors, commands, links, name_of, prose

from pglab.baselines import BASELINES
from pglab.cli import app
from pglab.config import Config, override
from pglab.errors import PglabError
from pglab.estimators import ESTIMATORS
from pglab.lab.comparison import variants_of
from pglab.shipped import config_data, shipped_names


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


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_within_the_project_leads_somewhere(page):
    for path, anchor in links(page):
        target = page.parent / path if path else page
        assert target.exists(), path
        if anchor:
            assert anchor in anchors(target), f"{path}#{anchor}"


def test_formulas_end_on_the_line_they_begin_on():
    text = re.sub(r"^\$\$\n.*?^\$\$$", "", prose(ROOT / "docs" / "mathematics.md"), flags=re.S | re.M)
    assert "$$" not in text
    for line in text.splitlines():
        assert re.sub(r"`[^`]*`", "", line).count("$") % 2 == 0, line


# -- commands


class Understood(Exception):
    """Raised in place of running a command whose arguments were understood."""


def understood(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, list[tuple[str, object]]]:
    """The options and settings that the verb's own parser reads from a command. PglabError as on the command line."""
    verb, rest = words[1], list(words[2:])
    assert verb in app.VERBS, verb
    module = importlib.import_module(f"pglab.cli.{verb}")

    def split(parser: app.Parser, arguments: list[str]) -> Any:
        raise Understood(app.split(parser, arguments))

    def parse_args(parser: app.Parser, arguments: list[str]) -> Any:  # verbs that take no settings
        raise Understood((super(app.Parser, parser).parse_args(arguments), []))

    with monkeypatch.context() as patched:
        if hasattr(module, "split"):
            patched.setattr(module, "split", split)
        else:
            patched.setattr(app.Parser, "parse_args", parse_args)
        try:
            module.main(rest)
        except Understood as found:
            return found.args[0]
    raise AssertionError("the verb did not read its arguments")


def hold(words: tuple[str, ...], options: Any, settings: list[tuple[str, object]]) -> None:
    """That names and settings of a command exist: shipped configs and variants, fields, estimators and their options."""
    verb, plugin = words[1], bool(getattr(options, "plugin", None))
    if verb == "list":
        from pglab.cli.list import KINDS

        assert options.what in KINDS
    elif verb == "check":
        if options.name and not plugin:
            registry = ESTIMATORS if options.name in ESTIMATORS.names() else BASELINES
            fields = registry.get(options.name).model_fields
            assert all(path in fields for path, _ in settings)
    elif verb == "compare" and options.comparison in shipped_names():
        from pglab.comparing import read_comparison

        assert variants_of(read_comparison(options.comparison), settings, options.only)
    elif verb in ("train", "variance"):
        source = options.config if verb == "train" else options.source
        known = source is not None and source.partition("/")[0] in shipped_names()
        data = config_data(source) if known else {"env": {"id": "CartPole-v1"}}
        for path, value in settings:
            new = plugin and path in ("estimator", "baseline")
            data = data if new else override(data, path, value)
        Config.read(data)


@cache
def fields() -> set[str]:
    from pglab.cli.list import _settings

    return {re.sub(r"\(\w+\)", "", row["setting"]) for row in _settings()}


def is_setting(path: str) -> bool:
    """A field, a group of fields, or an option of a part (of which only the part is looked at)."""
    return any(f == path or f.startswith(f"{path}.") or path.startswith(f"{f}.") for f in fields())


def checked(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    words = command.words
    if command.inline and (len(words) == 1 or words[1].isupper()):
        return
    if words[1].startswith("-") or words[2:] == ("--help",):
        assert words[1] in ("--help", "--version", *app.VERBS)
        return
    try:
        options, settings = understood(words, monkeypatch)
    except PglabError as error:
        if command.inline and re.search("required|expected one argument", str(error)):
            return
        raise
    if not command.inline:
        hold(words, options, settings)
    elif words[1] != "check":
        assert all(is_setting(path) for path, _ in settings)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_is_one_that_there_is(page, monkeypatch):
    for command in commands(page, "pglab"):
        try:
            checked(command, monkeypatch)
        except (PglabError, AssertionError) as error:
            raise AssertionError(f"{command}: {error}") from error


@pytest.mark.parametrize("verb", app.VERBS)
def test_the_commands_that_help_shows_are_ones_that_there_are(verb, monkeypatch):
    module = importlib.import_module(f"pglab.cli.{verb}")
    shown = re.findall(r"^  (pglab .+)$", module.DESCRIPTION, re.M)
    assert shown
    for line in shown:
        checked(Command(tuple(shlex.split(line, comments=True)), inline=False), monkeypatch)


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize(
    "wrong", ["pglab trian", "pglab train --nmae x", "pglab list --al", "pglab compare cartpole --see 8"]
)
def test_a_command_that_is_not_there_is_noticed(wrong, inline, monkeypatch):
    with pytest.raises((PglabError, AssertionError)):
        checked(Command(tuple(wrong.split()), inline), monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_script_has_the_options_that_are_shown(page):
    for command in commands(page, "python"):
        scripts = [w for w in command.words if w.endswith(".py") and "/" in w]
        for script in scripts:
            text = (ROOT / script).read_text(encoding="utf-8")
            for option in re.findall(r"(?<=\s)--[\w-]+", " " + " ".join(command.words)):
                assert f'"{option}"' in text, f"{command}: {option}"
