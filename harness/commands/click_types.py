"""Types of command-line options and arguments: paths and numbers with bounds. Every command uses these.

A wrong value is refused in one sentence by `harness.inputs`, before the command begins.
"""

from __future__ import annotations

import os
import re
from typing import Any

import click

from harness.core.inputs import SECONDS_MAX, UsageError, check_number, check_path, read_size
from harness.core.seeds import SEED_MAX


class _Path(click.ParamType):  # type: ignore[type-arg]  # click before 8.2 has no such argument
    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return check_path(_typed(param), value)
        except UsageError as error:
            raise click.UsageError(str(error), ctx) from error


class _Folder(_Path):
    name = "folder"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        path = super().convert(value, param, ctx)
        if not os.path.isdir(path):
            raise click.UsageError(f"{_typed(param)} is {value!r}, which is no folder; make it first", ctx)
        return path


class _Address(click.ParamType):  # type: ignore[type-arg]
    name = "address"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        host, _, port = str(value).rpartition(":")
        if not re.fullmatch(r"[\w.-]+|\[[0-9a-fA-F:]+\]", host) or not (port.isdecimal() and 0 < int(port) < 65536):
            raise click.UsageError(f"{_typed(param)} is {value!r}; it takes HOST:PORT, such as 127.0.0.1:8000", ctx)
        return str(value)


class Number(click.ParamType):  # type: ignore[type-arg]
    """A finite number from `low` to `high`, both included; whole if `kind` is int."""

    def __init__(self, kind: type[int] | type[float], low: float, high: float) -> None:
        self.name = "integer" if kind is int else "float"
        self._kind, self._low, self._high = kind, low, high

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = self._kind(value)
        except ValueError:
            number = value
        try:
            check_number(_typed(param), number, self._kind is int, self._low, self._high)
        except UsageError as error:
            raise click.UsageError(str(error), ctx) from error
        return number


class _Size(click.ParamType):  # type: ignore[type-arg]
    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return read_size(_typed(param), value)
        except UsageError as error:
            raise click.UsageError(str(error), ctx) from error


ADDRESS = _Address()
FOLDER = _Folder()
PATH = _Path()
"""A path that is not empty; a leading `~` is the home folder."""
SEED = Number(int, 0, SEED_MAX)
SECONDS = Number(float, 0.0, SECONDS_MAX)
SIZE = _Size()
"""Bytes, with or without a unit, as the command `kvtier` takes them."""
PAUSE = Number(float, 0.1, 86400.0)
"""Seconds between two looks at something that changes."""


def _typed(param: click.Parameter | None) -> str:
    """The option as it is typed, or the argument's name in capitals."""
    if param is None:
        return "a value"
    return param.opts[0] if isinstance(param, click.Option) else (param.name or "").upper()
