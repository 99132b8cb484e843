"""The JSON Schema of config and comparison files, for editors.

A file with `groups` is a comparison, any other a config. What only code can judge (bounds between fields, whether estimator,
baseline and agent fit) is judged when the file is read.
"""

from __future__ import annotations

import inspect
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from pglab.baselines import BASELINES
from pglab.config import (
    AGENTS,
    ActorCriticConfig,
    BpttConfig,
    Config,
    EnvironmentConfig,
    EvolutionConfig,
    OnPolicyConfig,
    _named_agent,
    _threads,
)
from pglab.estimators import ESTIMATORS
from pglab.lab.comparison import ComparisonConfig, Group
from pglab.registry import Part, Registry, Strict
from pglab.schedules import Schedule, _as_list, _from_number

DIALECT = "https://json-schema.org/draft/2020-12/schema"
REGISTRIES: tuple[Registry[Any], ...] = (ESTIMATORS, BASELINES)
AGENT_CONFIGS: tuple[type[Strict], ...] = (OnPolicyConfig, ActorCriticConfig, EvolutionConfig, BpttConfig)
NUMBER = {"type": "number"}
TO = "x-to"
"""Stands for `$ref` to what pydantic does not make, until it is done."""
SCHEDULED = {"anyOf": [NUMBER, {"$ref": "#/$defs/Schedule"}]}
SWEPT = {"anyOf": [*SCHEDULED["anyOf"], {"type": "array", "items": SCHEDULED, "minItems": 1}]}


class _Generator(GenerateJsonSchema):
    """pydantic's, with what fields take before they are validated: names of parts, numbers for schedules, ..."""

    def function_before_schema(self, schema: core_schema.BeforeValidatorFunctionSchema) -> JsonSchemaValue:
        function = schema["function"]["function"]
        for registry in REGISTRIES:
            if function == registry.build:
                return {TO: registry.kind}
        known: dict[Any, JsonSchemaValue] = {
            _as_list: {TO: "Swept"},
            _from_number: {TO: "Scheduled"},
            _named_agent: {TO: "agent"},
            _threads: {"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1}]},
        }
        return known.get(function) or super().function_before_schema(schema)

    def encode_default(self, dft: Any) -> Any:
        return plain(dft)

    def get_title_from_name(self, name: str) -> str:
        return ""


def plain(value: Any) -> Any:
    """A default as a file would hold it."""
    if isinstance(value, Part):
        return value.name
    if isinstance(value, Schedule):
        return value.start if value.kind == "constant" else value.model_dump(exclude_defaults=True)
    if isinstance(value, AGENT_CONFIGS):
        return value.name  # type: ignore[attr-defined]
    if isinstance(value, Strict):
        return {}
    if isinstance(value, (list, tuple)):
        found = [plain(v) for v in value]
        return found[0] if len(found) == 1 and isinstance(value[0], Schedule) else found
    return value


def schema() -> dict[str, Any]:
    """The schema of a file: a config, or a comparison where there are `groups`."""
    defs: dict[str, Any] = {"Scheduled": SCHEDULED, "Swept": SWEPT}
    defs["Schedule"] = _object(Schedule, defs)
    agents = {name: _object(c, defs) for name, c in zip(AGENTS, AGENT_CONFIGS, strict=True)}
    defs["config"] = _object(Config, defs)
    _choices(defs, "agent", agents, "on_policy")
    for registry in REGISTRIES:
        parts = {n: _object(registry.get(n), defs, n) for n in registry.names()}
        _choices(defs, registry.kind, parts, registry.default)
    _partial(defs)
    defs["comparison"] = _object(ComparisonConfig, defs)
    settings = {"$ref": "#/$defs/settings"}
    group = defs["Group"] = _object(Group, defs)
    group["properties"]["base"] |= settings
    variants = group["properties"]["variants"]
    variants["additionalProperties"] = settings
    return {
        "$schema": DIALECT,
        "title": "pglab config or comparison",
        "type": "object",
        "if": {"required": ["groups"]},
        "then": {"$ref": "#/$defs/comparison"},
        "else": {"$ref": "#/$defs/config"},
        "$defs": {name: defs[name] for name in sorted(defs)},
    }


def _object(model: type[Strict], defs: dict[str, Any], name: str | None = None) -> dict[str, Any]:
    """The model's schema, what it refers to put into `defs`; with a `name`, that of a registered part."""
    found = model.model_json_schema(schema_generator=_Generator)
    for key, value in found.pop("$defs", {}).items():
        defs.setdefault(key, _tidy(value))
    found = _tidy(found)
    found["description"] = inspect.cleandoc(model.__doc__ or "")
    if name is not None:
        found["properties"] = {"name": {"const": name}, **found.get("properties", {})}
    return found


def _tidy(value: Any) -> Any:
    """Without titles and the discriminator's mapping; a description's lines are one."""
    if isinstance(value, list):
        return [_tidy(v) for v in value]
    if not isinstance(value, dict):
        return value
    kept = {k: _tidy(v) for k, v in value.items() if not (k == "title" and isinstance(v, str)) and k != "discriminator"}
    if TO in kept:
        kept["$ref"] = f"#/$defs/{kept.pop(TO)}"
    if isinstance(kept.get("description"), str):
        kept["description"] = " ".join(kept["description"].split())
    return kept


def _choices(defs: dict[str, Any], kind: str, parts: dict[str, dict[str, Any]], default: str) -> None:
    """`defs[kind]`: a part by its name, or a mapping with `name` and options (without a name: the default's). And the same
    with every name optional, `defs[kind + "_laid"]`, for mappings that are laid on another."""
    names = [{"const": name, "description": part["description"].partition("\n\n")[0]} for name, part in parts.items()]
    for name, part in parts.items():
        defs[f"{kind}_{name}"] = part
    refs = {name: {"$ref": f"#/$defs/{kind}_{name}"} for name in parts}
    named = [ref if name == default else {**ref, "required": ["name"]} for name, ref in refs.items()]
    defs[kind] = _tidy({"anyOf": [*names, *named]})
    defs[f"{kind}_laid"] = _tidy({"anyOf": [*names, *refs.values()]})


def _partial(defs: dict[str, Any]) -> None:
    """`defs["settings"]`: some of a config's fields, as groups and variants of a comparison hold them."""
    env = {k: v for k, v in _object(EnvironmentConfig, defs).items() if k != "required"}
    some = {k: v for k, v in defs["config"].items() if k != "required"}
    laid = {kind: {"$ref": f"#/$defs/{kind}_laid"} for kind in ("agent", *(r.kind for r in REGISTRIES))}
    properties: dict[str, Any] = {}
    for name, field in some["properties"].items():
        keep = {k: v for k, v in field.items() if k == "description"}
        properties[name] = keep | laid[name] if name in laid else field
    properties["env"] = env
    defs["settings"] = {**some, "description": "Settings, laid on those before them.", "properties": properties}
