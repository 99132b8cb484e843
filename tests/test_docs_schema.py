"""The JSON Schema for editors: what the command prints, and what the shipped files and mistakes in them make of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import yaml
from documents import ROOT, blocks

from pglab.comparing import read_comparison
from pglab.config import Config
from pglab.errors import PglabError
from pglab.lab.comparison import variants_of
from pglab.shipped import shipped_names

FILE = ROOT / "docs" / "config.schema.json"
SCHEMA = json.loads(FILE.read_text(encoding="utf-8"))
TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}
SAID = {"$schema", "$defs", "title", "description", "default"}


def faults(value: Any, schema: Any, where: str = "") -> list[str]:
    """What is wrong with a value by the keywords that this schema uses; an unknown keyword is an error."""
    found: list[str] = []
    for key, wanted in schema.items():
        wrong = False
        if key in SAID or key in ("then", "else"):
            continue
        if key == "$ref":
            found += faults(value, SCHEMA["$defs"][wanted.removeprefix("#/$defs/")], where)
        elif key == "if":
            branch = "else" if faults(value, wanted) else "then"
            found += faults(value, schema[branch], where)
        elif key == "anyOf":
            wrong = all(faults(value, s) for s in wanted)
        elif key == "type":
            number = isinstance(value, bool) and wanted in ("integer", "number")
            wrong = number or not isinstance(value, TYPES[wanted])
        elif key == "const":
            wrong = value != wanted
        elif key == "enum":
            wrong = value not in wanted
        elif key == "required":
            wrong = isinstance(value, dict) and not set(wanted) <= set(value)
        elif key == "properties":
            for name in set(wanted) & set(value if isinstance(value, dict) else ()):
                found += faults(value[name], wanted[name], f"{where}.{name}")
        elif key == "additionalProperties":
            for name in set(value if isinstance(value, dict) else ()) - set(schema.get("properties", {})):
                if isinstance(wanted, dict):
                    found += faults(value[name], wanted, f"{where}.{name}")
                elif not wanted:
                    found.append(f"{where}.{name}: unknown")
        elif key in ("items", "prefixItems"):
            listed = value if isinstance(value, list) else []
            each = wanted if key == "prefixItems" else [wanted] * len(listed)
            for i, (x, s) in enumerate(zip(listed, each, strict=False)):
                found += faults(x, s, f"{where}[{i}]")
        elif key in ("minItems", "maxItems"):
            size = len(value) if isinstance(value, list) else wanted
            wrong = size < wanted if key == "minItems" else size > wanted
        elif key in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            if isinstance(value, (int, float)):
                low, strict = "Minimum" in key or key == "minimum", key.startswith("exclusive")
                wrong = (value < wanted if low else value > wanted) or (strict and value == wanted)
        else:
            raise AssertionError(f"keyword {key!r} is not checked here")
        if wrong:
            found.append(f"{where}: {key} {str(wanted)[:60]}, given {value!r}")
    return found


def test_the_file_is_what_the_command_prints():
    path = os.pathsep.join([str(ROOT), str(ROOT / "envs"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "pglab", "list", "schema"],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout == FILE.read_text(encoding="utf-8"), "pglab list schema > docs/config.schema.json"


@pytest.mark.parametrize("name", shipped_names())
def test_shipped_comparisons_and_every_variant_of_them_fit(name: str):
    file = ROOT / "configs" / name / "compare.yaml"
    assert faults(yaml.safe_load(file.read_text(encoding="utf-8")), SCHEMA) == []
    for variant in variants_of(read_comparison(name), [], []):
        assert faults(variant.data, SCHEMA) == [], variant.key
        plain = variant.config().plain()  # with every default, as a run's config.yaml holds it
        assert faults(plain, SCHEMA) == [], variant.key


def test_files_in_the_documents_fit():
    found = [b for page in (ROOT / "docs").glob("*.md") for b in blocks(page, "yaml")]
    assert found
    for block in found:
        assert faults(yaml.safe_load(block.text), SCHEMA) == []


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"env": {}},
        {"estimator": "nothing"},
        {"estimator": {"name": "gumbel_softmax", "k": 1}},
        {"baseline": {"name": "moving_average", "decay": "much"}},
        {"agent": {"replay": {"capacity": 10}}},
        {"agent": {"name": "actor_critic", "replay": {"capacity": 0}}},
        {"learning_rate": []},
        {"learning_rate": {"kind": "linear"}},
        {"seed": 1},
        {"threads": 0},
        {"policy": {"log_std_bounds": [1]}},
    ],
)
def test_mistakes_are_seen_as_reading_sees_them(data: dict[str, Any]):
    data = data if not data or "env" in data else {"env": {"id": "CartPole-v1"}, **data}
    assert faults(data, SCHEMA)
    with pytest.raises(PglabError):
        Config.read(data)


@pytest.mark.parametrize(
    "data",
    [
        {"estimator": "relax", "agent": "evolution", "threads": "auto", "seeds": [3, 4]},
        {
            "learning_rate": [1e-3, {"kind": "cosine", "start": 1e-3, "end": 0}],
            "agent": {"returns": {"name": "gae", "lam": 0.9}},
        },
        {"estimator": {"name": "gapped_straight_through", "gap": "p"}, "agent": {"name": "actor_critic"}},
        {"baseline": {"name": "linear_features"}, "max_grad_norm": None},
    ],
)
def test_what_reading_takes_the_schema_takes(data: dict[str, Any]):
    data = {"env": {"id": "CartPole-v1"}, **data}
    Config.read(data)
    assert faults(data, SCHEMA) == []


def test_every_setting_is_described():
    bare = [f"{d}.{name}" for d, s in SCHEMA["$defs"].items() for name, p in s.get("properties", {}).items()
            if not {"description", "const", "$ref"} & set(p)]  # fmt: skip
    assert bare == []
