"""`pglab list`."""

from __future__ import annotations

import json
from typing import Any

from pglab.cli.app import load_plugins, parser, write_json_file
from pglab.errors import unknown

KINDS = ("estimators", "baselines", "environments", "configs", "settings", "schema", "runs")
DESCRIPTION = """\
Show what there is: estimators (what they need, serve, and whether they are
unbiased), baselines, torch-native environments, shipped configs, all settings
with their defaults, the JSON Schema of config files for editors, or the runs in
a folder.

  pglab list estimators
  pglab list settings
  pglab list schema
"""


def main(arguments: list[str]) -> int:
    p = parser("list", DESCRIPTION)
    p.add_argument("what", nargs="?", default="estimators", help=f"one of {', '.join(KINDS)} (default: estimators)")
    p.add_argument("--runs", default="runs", metavar="FOLDER", help="where run folders are (default: runs)")
    p.add_argument("--plugin", action="append", default=[], metavar="FILE.py", help="plug-ins to show as well")
    p.add_argument("--json", metavar="FILE", help="also write the list as JSON")
    p.add_argument("--quiet", action="store_true", help="print nothing but errors")
    options = p.parse_args(arguments)
    load_plugins(options.plugin)
    if options.what == "schema":
        found = _schema()
        write_json_file(options.json, found)
        if not options.quiet:
            print(json.dumps(found, indent=1, ensure_ascii=False))
        return 0
    makers = {
        "estimators": _estimators,
        "baselines": _baselines,
        "environments": _environments,
        "configs": _configs,
        "settings": _settings,
        "runs": lambda: _runs(options.runs),
    }
    if options.what not in makers:
        raise unknown("list", options.what, KINDS)
    rows = makers[options.what]()
    write_json_file(options.json, rows)
    if not options.quiet:
        from rich.console import Console

        from pglab.lab.tables import rich_table

        if rows:
            if options.what == "settings":
                for row in rows:
                    print(f"{row['setting']} = {row['default']}\n    {row['meaning']}")
            else:
                Console(highlight=False).print(rich_table(rows, list(rows[0])))
        else:
            print(f"No {options.what} found.")
    return 0


def _schema() -> dict[str, Any]:
    from pglab.schema import schema

    return schema()


def _estimators() -> list[dict[str, Any]]:
    from pglab.estimators import ESTIMATORS

    rows = []
    for name in ESTIMATORS.names():
        e = ESTIMATORS.get(name)
        rows.append(
            {
                "estimator": name,
                "actions": e.served(),
                "needs": ", ".join(sorted(e.needs)),
                "unbiased": e.unbiased,
                "evaluations": e.evaluations,
                "baseline": e.uses_baseline,
                "bias": e.bias or None,
                "paper": e.paper,
            }
        )
    return rows


def _baselines() -> list[dict[str, Any]]:
    from pglab.baselines import BASELINES

    return [
        {
            "baseline": name,
            "needs": ", ".join(sorted(BASELINES.get(name).needs)) or None,
            "unbiased": BASELINES.get(name).unbiased,
            "bias": BASELINES.get(name).bias or None,
            "minimises": BASELINES.get(name).minimises or None,
            "couples rows": BASELINES.get(name).couples_rows,
            "paper": BASELINES.get(name).paper or None,
        }
        for name in BASELINES.names()
    ]


def _environments() -> list[dict[str, Any]]:
    from pglab_envs.registry import TORCH_ENVS

    rows = []
    for name in sorted(n for n in TORCH_ENVS if not n.startswith("pglab/")):
        made = TORCH_ENVS[name](num_envs=1)
        rows.append(
            {
                "environment": name,
                "observations": made.observation_size,
                "actions": _space(made.single_action_space),
                "time limit": made.max_episode_steps,
                "arguments": ", ".join(made.options) or None,
            }
        )
    return rows


def _space(space: Any) -> str:
    """A space in words; one of many equal factors in few."""
    import numpy as np

    sizes = np.ravel(getattr(space, "nvec", 0))
    many = sizes.size > 8 and bool((sizes == sizes[0]).all()) and not space.start.any()
    return f"MultiDiscrete([{sizes[0]}] * {sizes.size})" if many else str(space)


def _configs() -> list[dict[str, Any]]:
    from pglab.config import read_yaml
    from pglab.shipped import shipped, shipped_names

    rows = []
    for name in shipped_names():
        for key, group in read_yaml(shipped() / name / "compare.yaml")["groups"].items():
            rows += [{"config": f"{name}/{key}/{variant}", "comparison": name} for variant in group["variants"]]
    return rows


def _settings() -> list[dict[str, Any]]:
    from pglab.config import ActorCriticConfig, BpttConfig, Config, EvolutionConfig, OnPolicyConfig
    from pglab.registry import Part, Strict

    rows: list[dict[str, Any]] = []

    def walk(model: type[Strict], prefix: str) -> None:
        for name, info in model.model_fields.items():
            default = info.get_default(call_default_factory=True)
            if isinstance(default, Strict) and not isinstance(default, Part) and name != "agent":
                walk(type(default), f"{prefix}{name}.")
                continue
            if name in ("agent", "env"):
                continue
            shown = "required" if info.is_required() else json.dumps(_plain(default))
            rows.append(
                {"setting": prefix + name, "default": shown, "meaning": " ".join((info.description or "").split())}
            )

    from pglab.config import EnvironmentConfig

    walk(EnvironmentConfig, "env.")
    walk(Config, "")
    walk(OnPolicyConfig, "agent(on_policy).")
    walk(ActorCriticConfig, "agent(actor_critic).")
    walk(EvolutionConfig, "agent(evolution).")
    walk(BpttConfig, "agent(bptt).")
    return rows


def _plain(value: Any) -> Any:
    from pglab.registry import Part
    from pglab.schedules import Schedule

    if isinstance(value, Part):
        return value.name
    if isinstance(value, Schedule):
        return value.start
    if isinstance(value, (list, tuple)):
        plain = [_plain(v) for v in value]
        return plain[0] if len(plain) == 1 and isinstance(value[0], Schedule) else plain
    return value


def _runs(folder: str) -> list[dict[str, Any]]:
    from pathlib import Path

    rows = []
    root = Path(folder)
    for path in sorted(root.glob("*")) if root.is_dir() else []:
        if (path / "comparison.yaml").is_file():
            kind, done = "comparison", (path / "results.json").is_file()
        elif (path / "config.yaml").is_file():
            kind, done = "run", (path / "results.json").is_file()
        else:
            continue
        rows.append({"folder": path.name, "kind": kind, "finished": done})
    return rows
