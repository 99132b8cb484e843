"""The `pglab` command: finds the verb, prints mistakes as one sentence."""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from pglab.errors import PglabError

VERBS = {
    "train": "train one config: many seeds (and swept values) at once",
    "compare": "train several variants and write their table and figures",
    "variance": "measure every estimator's gradient at frozen policies: noise, bias, cost",
    "report": "write one page on any number of runs: curves, scores, noise, settings",
    "evaluate": "play episodes with a trained run on gymnasium's own environment",
    "resume": "go on with an interrupted run or comparison",
    "board": "look at runs in TensorBoard",
    "check": "hold an estimator, baseline or distribution to exact gradients",
    "list": "show estimators, baselines, environments, configs, settings, the schema or runs",
}

HELP = """\
usage: pglab VERB [options]

pglab trains populations of policy-gradient agents, by the score function or by
reparameterization, and compares their gradient estimators.

verbs:
{verbs}

Start with:  pglab compare cartpole
Help:        pglab VERB --help
"""


def run(arguments: list[str]) -> int:
    """The exit status of `pglab ARGUMENTS`."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(HELP.format(verbs="\n".join(f"  {verb:<10}{text}" for verb, text in VERBS.items())), end="")
        return 0 if arguments else 2
    if arguments[0] in ("--version", "-V"):
        from pglab import __version__

        print(f"pglab {__version__}")
        return 0
    verb, rest = arguments[0], arguments[1:]
    try:
        if verb not in VERBS:
            from pglab.errors import unknown

            raise unknown("verb", verb, VERBS)
        return importlib.import_module(f"pglab.cli.{verb}").main(rest)
    except PglabError as error:
        from pglab.tracking.text import visible

        print("\n".join(visible(line) for line in f"pglab: error: {error}".split("\n")), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pglab: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


class Parser(argparse.ArgumentParser):
    """argparse whose mistakes are PglabErrors."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise PglabError(f"{message[0].upper()}{message[1:]}. See `{self.prog} --help`.")


OVERRIDES = """\
settings:
  Any field of the config can be set here by its dotted name, as YAML:
    --env.id Acrobot-v1  --learning_rate 3e-4  --seeds 16
    --baseline leave_one_out  --agent.returns.name gae  --policy.hidden [32,32]
  A list for learning_rate, discount, entropy_weight, agent.returns.lam or
  estimator.temperature is swept: every value trains as members of its own.
  A schedule is a mapping:
    --estimator.temperature "{kind: linear, start: 1.0, end: 0.1}"
  `pglab list settings` shows every field with its default.
"""


def parser(verb: str, description: str, epilog: str = "") -> Parser:
    """A parser for one verb."""
    return Parser(
        prog=f"pglab {verb}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def split(verb_parser: Parser, arguments: list[str]) -> tuple[argparse.Namespace, list[tuple[str, object]]]:
    """The verb's own options, and every `--name value` that is none of them as a setting (dotted path, value)."""
    known = verb_parser._option_string_actions
    own: list[str] = []
    settings: list[str] = []
    words = iter(arguments)
    for word in words:
        if word.startswith("--") and word.partition("=")[0] not in known:
            settings.append(word)
            if "=" not in word:
                settings += [w for w in [next(words, None)] if w is not None]
        else:
            own.append(word)
    return verb_parser.parse_args(own), overrides(settings)


def overrides(rest: list[str]) -> list[tuple[str, object]]:
    """`--a.b value` and `--a.b=value` as (path, value); values are read as YAML. PglabError for anything else."""
    import yaml

    found: list[tuple[str, object]] = []
    i = 0
    while i < len(rest):
        word = rest[i]
        if not word.startswith("--") or len(word) < 3:
            raise PglabError(f"Unexpected argument {word!r}: settings are given as --name value.")
        name, equals, text = word[2:].partition("=")
        if not equals:
            i += 1
            if i >= len(rest):
                raise PglabError(f"Setting --{name} needs a value.")
            text = rest[i]
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise PglabError(f"Setting --{name}: {text!r} is not valid YAML.") from None
        found.append((name.replace("-", "_"), value))
        i += 1
    return found


def add_common(verb_parser: Parser) -> None:
    """Options of every verb that trains."""
    verb_parser.add_argument(
        "--runs", default="runs", metavar="FOLDER", help="where run folders are made (default: runs)"
    )
    verb_parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="FILE.py",
        help="a file or module that registers more names; may be repeated",
    )
    verb_parser.add_argument("--json", metavar="FILE", help="also write the results as JSON")
    verb_parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def load_plugins(names: list[str]) -> None:
    """Installed plug-ins, then the named ones."""
    from pglab.registry import load_installed_plugins, load_plugin

    load_installed_plugins()
    for name in names:
        load_plugin(name)


def write_json_file(path: str | None, value: object) -> None:
    """Write `value` where `--json` says."""
    if path:
        from pathlib import Path

        from pglab.tracking.files import write_json

        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_json(path, value)
