"""Names for parts: estimators, baselines and whatever else a config chooses by name.

A part is a frozen pydantic model, so its options are typed fields with a docstring each; a registered name plus those
fields is all a config file ever holds. Plug-ins add names with the same decorator; files never run code.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from pglab.errors import PglabError, unknown


class Strict(BaseModel):
    """A frozen record that refuses keys it does not know, naming the nearest one it does."""

    # Built when first used: of forty estimators a run needs one.
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        if isinstance(data, Mapping):
            for key in data:
                if key not in cls.model_fields:
                    raise ValueError(str(unknown("key", key, cls.model_fields)))
        return data


class Part(Strict):
    """A registered part. `name` is given by the registry."""

    name: ClassVar[str] = ""

    def describe(self) -> dict[str, Any]:
        """The part as a config holds it: its name and its options."""
        return {"name": self.name, **self.model_dump(mode="json")}


P = TypeVar("P", bound=Part)


class Registry(Generic[P]):
    """Registered classes of one kind, by name."""

    def __init__(self, kind: str, default: str) -> None:
        self.kind, self.default = kind, default
        self._classes: dict[str, type[P]] = {}

    def register(self, name: str) -> Callable[[type[P]], type[P]]:
        """Class decorator. PglabError when the name is taken by another class."""

        def decorate(cls: type[P]) -> type[P]:
            taken = self._classes.get(name)
            if taken is not None and (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
                raise PglabError(f"The {self.kind} name {name!r} is taken by {taken.__module__}.{taken.__qualname__}.")
            if not cls.__module__.startswith("pglab."):
                cls.model_rebuild(raise_errors=False)  # a mistake in a plug-in's options is found where it is loaded
            cls.name = name
            self._classes[name] = cls
            return cls

        return decorate

    def names(self) -> list[str]:
        return sorted(self._classes)

    def get(self, name: str) -> type[P]:
        """The class of that name; PglabError with the nearest names if there is none."""
        if name not in self._classes:
            raise unknown(self.kind, name, self._classes)
        return self._classes[name]

    def build(self, value: Any) -> P:
        """A part from a name, from a mapping with options and `name` (else the default), or the part itself. Raises ValueError (PglabError
        for an unknown name is turned into one) so that it can serve as a pydantic validator."""
        if isinstance(value, Part):
            return value  # type: ignore[return-value]
        if isinstance(value, str):
            value = {"name": value}
        if isinstance(value, Mapping) and "name" not in value:
            value = {"name": self.default, **value}
        if not isinstance(value, Mapping) or not isinstance(value["name"], str):
            raise ValueError(f"the {self.kind} must be a name, or a mapping with 'name', not {value!r}")
        options = {k: v for k, v in value.items() if k != "name"}
        try:
            return self.get(value["name"])(**options)
        except PglabError as error:
            raise ValueError(str(error)) from None
        except ValidationError as error:
            raise ValueError(f"{self.kind} {value['name']!r}: {first_error(error)}") from None


def first_error(error: ValidationError) -> str:
    """The first of pydantic's findings as one sentence: where, what is wrong, what was given."""
    found = error.errors()[0]
    where = ".".join(str(part) for part in found["loc"] if not str(part).startswith("function-"))
    message = found["msg"].removeprefix("Value error, ").rstrip(".")
    given = found.get("input")
    shown = "" if isinstance(given, (Mapping, BaseModel)) or found["type"] == "value_error" else f" (given: {given!r})"
    return f"{where}: {message}{shown}." if where else f"{message}{shown}."


def load_plugin(reference: str) -> None:
    """Import a plug-in: a path to a `.py` file or a module's name. This runs its code, so only the command line and
    Python callers name plug-ins; a config, a run folder or a checkpoint never does it by itself."""
    try:
        if reference.endswith(".py"):
            path = Path(reference).resolve()
            if not path.is_file():
                raise PglabError(f"Plug-in {reference!r} does not exist: give a .py file or an importable module.")
            name = f"pglab_plugin_{path.stem}"
            if name in sys.modules and getattr(sys.modules[name], "__file__", None) == str(path):
                return
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            spec.loader.exec_module(module)
        else:
            importlib.import_module(reference)
    except PglabError:
        raise
    except Exception as error:
        raise PglabError(f"Plug-in {reference!r} could not be loaded: {type(error).__name__}: {error}.") from error


def load_installed_plugins() -> None:
    """Import every installed package's `pglab.plugins` entry point."""
    for point in entry_points(group="pglab.plugins"):
        load_plugin(point.value)
