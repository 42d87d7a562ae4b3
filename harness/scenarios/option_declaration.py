"""How a scenario declares its options, and the one place where each value is checked against its declaration.

The command line makes its options of the declarations; files with options are read by them. Nothing is started here.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, NamedTuple

from harness.core.inputs import UsageError, absolute_path, check_number, check_text, read_size

NUMBER_MAX = 1 << 20
"""Of every number whose option states no bound. Larger ones are typing errors; whether this machine has the memory and
the processes for smaller ones is checked elsewhere."""


def option(
    default: Any,
    help: str,
    low: float | None = None,
    high: float | None = None,
    multiple_of: int = 1,
    is_path: bool = False,
) -> Any:
    """A dataclass field that is also a command-line option, `--its-name`. A number has bounds, both included; `high` is
    by default that of the same option in a base class, or `NUMBER_MAX`."""
    bounds = {"low": low, "high": high, "multiple_of": multiple_of}
    return dataclasses.field(default=default, metadata={"help": help, "is_path": is_path, **bounds})


class Declared(NamedTuple):
    """An option as a scenario declares it. `kind` is its type without None; the bounds are those of a number."""

    name: str
    kind: Any
    may_be_none: bool
    default: Any
    help: str
    is_path: bool = False
    low: float = 0
    high: float = NUMBER_MAX
    multiple_of: int = 1

    @property
    def typed(self) -> str:
        """As it is typed on the command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def is_size(self) -> bool:
        return self.name.endswith("_bytes")

    @property
    def is_list(self) -> bool:
        return typing.get_origin(self.kind) is tuple

    def check(self, name: str, value: Any) -> Any:
        """The value, a path made absolute, a size in bytes. Raises `UsageError`, which calls the option `name`, if it
        does not fit."""
        if value is None and self.may_be_none:
            return None
        if self.is_list:
            if not isinstance(value, (list, tuple)):
                raise UsageError(f"{name} is {value!r}; it takes a list of texts")
            return tuple(check_text(name, item) for item in value)
        if self.kind is bool:
            if not isinstance(value, bool):
                raise UsageError(f"{name} is {value!r}; valid choices: true, false")
        elif self.kind is str:
            return absolute_path(name, value) if self.is_path else check_text(name, value)
        else:
            if self.is_size and isinstance(value, str):
                value = read_size(name, value)
            check_number(name, value, self.kind is int, self.low, self.high, self.multiple_of)
        return value


def declarations(options: type) -> list[Declared]:
    """The options that a dataclass of `option` fields declares, in order."""
    hints = typing.get_type_hints(options)
    found = []
    for field in dataclasses.fields(options):
        hint, bounds = hints[field.name], field.metadata
        kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        (kind,) = (k for k in kinds if k is not type(None))
        if kind in (int, float):
            assert bounds["low"] is not None, f"option {field.name} of {options.__name__} states no lower bound"
        texts = (field.name, kind, len(kinds) > 1, field.default, bounds["help"], bounds["is_path"])
        found.append(Declared(*texts, bounds["low"], _high(options, field.name), bounds["multiple_of"]))
    return found


def _high(options: type, name: str) -> float:
    """The upper bound that the class states, or the nearest of its bases that does."""
    for base in options.__mro__:
        for field in dataclasses.fields(base) if dataclasses.is_dataclass(base) else ():
            if field.name == name and field.metadata["high"] is not None:
                return field.metadata["high"]  # type: ignore[no-any-return]
    return NUMBER_MAX
