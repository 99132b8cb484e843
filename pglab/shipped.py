"""Finding configs: a path, or the name of one that is shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pglab
from pglab.config import merge, read_yaml
from pglab.errors import PglabError, unknown


def shipped() -> Path:
    """The folder of shipped configs."""
    home = Path(pglab.__file__).parent
    inside = home / "configs"
    return inside if inside.is_dir() else home.parent / "configs"


def shipped_names() -> list[str]:
    """Names of the shipped comparisons: `cartpole`, and their variants as `cartpole/monte_carlo/value`."""
    return sorted(p.parent.name for p in shipped().glob("*/compare.yaml"))


def comparison_file(name: str) -> Path:
    """A comparison file: a path, or a shipped name. Raises PglabError for neither."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise PglabError(f"There is no config file {name!r}.")
        return path
    if name in shipped_names():
        return shipped() / name / "compare.yaml"
    raise unknown("comparison", name, shipped_names())


def config_data(name: str | None) -> dict[str, Any]:
    """A config's mapping: of a YAML file, of a shipped variant `cartpole/value` (or `cartpole/monte_carlo/value`), or
    empty for None. Raises PglabError where there is none."""
    if name is None:
        return {}
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            raise PglabError(f"There is no config file {name!r}.")
        data = read_yaml(path)
        if "groups" in data:
            raise PglabError(f"{name} is a comparison: use `pglab compare {name}`, or train one of its variants.")
        return data
    first, _, rest = name.partition("/")
    if first not in shipped_names():
        raise unknown("config", name, shipped_names())
    groups = read_yaml(shipped() / first / "compare.yaml")["groups"]
    known = {
        f"{g}/{v}": merge(groups[g].get("base", {}), own) for g in groups for v, own in groups[g]["variants"].items()
    }
    found = [data for key, data in known.items() if rest in (key, key.partition("/")[2])]
    if len(found) != 1:
        raise unknown("variant", name, [f"{first}/{key}" for key in known])
    return found[0]
