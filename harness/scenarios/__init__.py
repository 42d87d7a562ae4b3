"""The scenarios, found by declaration: every module of this package that assigns `SCENARIO` is one, under its name.

`names` and `title` read the modules' text alone, so that lists and help texts import no scenario.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harness.scenarios.base import Scenario

_DECLARATION = re.compile(r"^SCENARIO\b", re.MULTILINE)
_DOCSTRING = re.compile(r'r?"""(.*?)"""', re.DOTALL)


@cache
def _texts() -> dict[str, str]:
    """The source text of each scenario by name, in alphabetical order."""
    found = {}
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        spec = module.module_finder.find_spec(module.name, None)
        text = spec.loader.get_source(spec.name) if spec and spec.loader else ""  # type: ignore[attr-defined]
        if _DECLARATION.search(text or ""):
            found[module.name] = text
    return found


def names() -> list[str]:
    """Names of all scenarios, in alphabetical order."""
    return list(_texts())


def title(name: str) -> str:
    """The first sentence of a scenario's docstring."""
    match = _DOCSTRING.match(_texts()[name])
    return " ".join(ast.literal_eval(match[0]).split("\n\n", 1)[0].split()) if match else ""


def scenario(name: str) -> Scenario:
    """The scenario of that name; an unknown name is an error of the caller."""
    assert name in _texts(), f"no scenario {name!r}; there are {', '.join(_texts())}"
    found: Scenario = importlib.import_module(f"{__name__}.{name}").SCENARIO
    return found


def scenarios() -> list[Scenario]:
    """All of them: those that need least first, those that need more than a tier and a folder last."""
    return sorted(map(scenario, names()), key=lambda found: (bool(found.apart), found.seconds_min, found.name))
