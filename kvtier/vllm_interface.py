"""What an installed vLLM lacks of vLLM's experimental tier interface. `vllm_plugin` calls it at its import, with the
parts that it uses.

It compares signatures and fields, not versions, so that an engine that the plug-in does not fit is refused in one
sentence at its start, instead of in a constructor or at the first job.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any


def missing(
    tier: type[Any], fields: Mapping[type[Any], str], calls: Mapping[Callable[..., Any], tuple[int, str]]
) -> list[str]:
    """What does not fit, a phrase each; empty if all does.

    `tier`: the plug-in's subclass of vLLM's tier class; each method that it overrides must take the engine's arguments.
    `fields`: the names that are read of a class, or the members of an enum. `calls`: how many positional arguments a
    callable is given (`self` among them), and which keywords.
    """
    return [*_fields(fields), *_calls(calls), *_methods(tier)]


def _fields(wanted: Mapping[type[Any], str]) -> Iterator[str]:
    for owner, names in wanted.items():
        there = owner.__members__ if issubclass(owner, enum.Enum) else inspect.signature(owner).parameters
        if lacks := [name for name in names.split() if name not in there]:
            yield f"{owner.__name__} has no {', '.join(lacks)}"


def _calls(wanted: Mapping[Callable[..., Any], tuple[int, str]]) -> Iterator[str]:
    for call, (count, keywords) in wanted.items():
        if not _takes(call, count, *keywords.split()):
            given = [f"{count} arguments by position"] * bool(count) + keywords.split()
            yield f"{call.__qualname__} does not take {', '.join(given)}"


def _methods(tier: type[Any]) -> Iterator[str]:
    if unknown := sorted(tier.__abstractmethods__):
        yield f"a tier must also have {', '.join(unknown)}"
    (base,) = tier.__bases__
    for name in sorted(name for name in vars(tier) if not name.startswith("_") and callable(getattr(base, name, None))):
        given = [p for p in inspect.signature(getattr(base, name)).parameters.values() if p.default is p.empty]
        keywords = [p.name for p in given if p.kind is p.KEYWORD_ONLY]
        if not _takes(getattr(tier, name), len(given) - len(keywords), *keywords):
            yield f"{name} is given {', '.join(p.name for p in given if p.name != 'self')}"


def _takes(call: Callable[..., Any], count: int, *keywords: str) -> bool:
    try:
        inspect.signature(call).bind(*[None] * count, **dict.fromkeys(keywords))
    except TypeError:
        return False
    return True
