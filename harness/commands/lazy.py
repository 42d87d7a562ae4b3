"""A click group that imports a sub-command only when it is called, so that `--help` and `--version` start fast."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import click


class Member(NamedTuple):
    """A sub-command: the line that lists it, and what imports it."""

    text: str
    load: Callable[[], click.Command]


def member(place: str, text: str) -> Member:
    """A sub-command that `place` names as "module:attribute"."""

    def load() -> click.Command:
        module, _, attribute = place.partition(":")
        found: click.Command = getattr(importlib.import_module(module), attribute)
        return found

    return Member(text, load)


class LazyGroup(click.Group):
    """`members` returns the sub-commands by name; their order is the order of the help text."""

    def __init__(self, *args: Any, members: Callable[[], Mapping[str, Member]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._members = members

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._members())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = self._members().get(cmd_name)
        return found.load() if found else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, found.text) for name, found in self._members().items()])
