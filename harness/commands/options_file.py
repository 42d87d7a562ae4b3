"""Options from a TOML file (`--options FILE`), each value checked as if it had been typed; the command line calls it.

docs/options-file.md describes the file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from typing import Any

from harness.core.inputs import UsageError, check_path, near, read_file
from harness.scenarios.option_declaration import Declared

BYTES_MAX = 1 << 20


def read_options(path: str, command: str, tables: Collection[str], declared: Mapping[str, Declared]) -> dict[str, Any]:
    """Option name -> value, from the top of the file and from its table `[command]`, which wins.

    Other `tables` are left to their own commands. Raises `UsageError`, which names the file, the key, the value and
    what is valid.
    """
    try:
        content = read_file(check_path("--options", path), BYTES_MAX)
        given = tomllib.loads(content.decode("utf-8-sig"))
    except UsageError as error:
        raise UsageError(f"--options: {error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--options: {path!r} is not TOML: {error}") from error
    values: dict[str, Any] = {}
    for table in (given, given.get(command, {})):
        if not isinstance(table, dict):
            raise UsageError(f"--options: {path!r}, {command} is {table!r}; it takes a table of options")
        for key, value in table.items():
            if table is given and key in tables:
                continue
            option = declared.get(name := key.replace("-", "_"))
            if option is None:
                valid = ", ".join(sorted(declared))
                raise UsageError(f"--options: {path!r} has {key!r}{near(name, declared)}; valid choices: {valid}")
            values[name] = _checked(f"--options: {path!r}, {key}", value, option)
    return values


def _checked(name: str, value: Any, option: Declared) -> Any:
    if option.is_list and not isinstance(value, list):
        value = [value]
    checked = option.check(name, value)
    return list(checked) if option.is_list else checked
