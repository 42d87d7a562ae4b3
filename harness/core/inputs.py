"""Checks of a command's input before anything starts: numbers, paths, and files to read or to write.

Each check raises `UsageError`, one sentence with the value and the valid choices. Commands, scenarios and `traffic`
call them. They create nothing, and no read waits for a writer.
"""

from __future__ import annotations

import difflib
import errno
import json
import math
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from kvtier import ConfigError, parse_size

T = TypeVar("T")

SECONDS_MAX = 30 * 86400.0
"""Of everything that lasts; a longer time is a typing error."""
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


class UsageError(Exception):
    """An option cannot work; its text is one sentence for a person."""


class DamagedFile(UsageError, ValueError):
    """A file does not hold what it should; its text is one sentence with the file's path."""


def check_number(
    name: str, value: object, whole: bool, low: float = -math.inf, high: float = math.inf, multiple_of: int = 1
) -> None:
    """Raises `UsageError` unless `value` is a finite number from `low` to `high`, and a whole number if `whole`."""
    kinds = int if whole else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool):
        raise UsageError(f"{name} is {value!r}; it takes a {'whole ' if whole else ''}number")
    if not math.isfinite(value):
        raise UsageError(f"{name} is {value}; it takes a finite number from {_text(low)} to {_text(high)}")
    if value < low:
        raise UsageError(f"{name} is {value}; it must be at least {_text(low)}")
    if value > high:
        raise UsageError(f"{name} is {value}; it must be at most {_text(high)}")
    if multiple_of > 1 and value % multiple_of:
        raise UsageError(f"{name} is {value}; it must be a multiple of {multiple_of}")


def read_size(name: str, value: object) -> int:
    """Bytes of a whole number, or of text with or without a unit ("256KiB"). Raises `UsageError`."""
    try:
        return parse_size(name, value)
    except ConfigError as error:
        raise UsageError(str(error)) from error


def check_text(name: str, value: object, what: str = "a value") -> str:
    """`value` itself. Raises `UsageError` unless it is text, not empty, and without NUL bytes."""
    if not isinstance(value, str):
        raise UsageError(f"{name} is {value!r}; it takes {what}, as text")
    if not value.strip():
        raise UsageError(f"{name} is {value!r}, which is empty; it takes {what}")
    if "\0" in value:
        raise UsageError(f"{name} is {value!r}, which contains a NUL byte; it takes {what}")
    return value


def check_path(name: str, value: object) -> str:
    """`value` with a leading `~` or `~user` replaced by that home folder. Raises `UsageError` when it is no path."""
    path = os.path.expanduser(check_text(name, value, "a path"))
    if path.startswith("~") and not os.path.lexists(path):
        raise UsageError(
            f"{name} is {value!r}; there is no home folder of {path.partition('/')[0]!r}, give a full path"
        )
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UsageError(f"{name} is {_short(value)}, which is too long for a path") from error
    return path


def absolute_path(name: str, value: object) -> str:
    """`check_path`, as an absolute path; links and `..` stay as they are."""
    path = check_path(name, value)
    try:
        return str(Path(path).absolute())
    except OSError as error:
        raise UsageError(f"{name} is {value!r}, and the working directory is gone; give a full path") from error


def read_file(path: str | Path, bytes_max: int) -> bytes:
    """The content of a regular file: at most what it held when it was opened.

    Raises `UsageError` for a file that cannot be read, a directory, FIFO, device or socket, and a file larger than
    `bytes_max`. Opening never waits for a writer.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if (kind := stat.S_IFMT(status.st_mode)) != stat.S_IFREG:
                raise UsageError(f"{str(path)!r} is {_KINDS.get(kind, 'no file')}; it must be a regular file")
            with open(descriptor, "rb", closefd=False) as file:
                content = file.read(min(status.st_size, bytes_max + 1))
                while not status.st_size and len(content) <= bytes_max and (more := file.read(1 << 16)):
                    content += more  # files of /proc state no size
        finally:
            os.close(descriptor)
    except OSError as error:
        # A socket cannot be opened at all.
        why = "it is a socket" if _is_socket(path) else error.strerror
        raise UsageError(f"{str(path)!r} cannot be read: {why}") from error
    if max(len(content), status.st_size) > bytes_max:
        raise UsageError(f"{str(path)!r} holds more than {bytes_max:,} bytes, the largest that is read")
    return content


def read_json(path: str | Path, kind: type[T], bytes_max: int = 1 << 30) -> T:
    """The JSON value in a regular file, an object or a list according to `kind`. Raises `UsageError`."""
    content = read_file(path, bytes_max)
    try:
        value = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{str(path)!r} is damaged: it is not JSON ({error})") from error
    if not isinstance(value, kind):
        expected = "an object" if kind is dict else "a list"
        raise DamagedFile(f"{str(path)!r} is damaged: it holds {_short(value)}, not {expected}")
    return value


def check_output(name: str, path: str | Path) -> None:
    """Raises `UsageError` unless `path` can be a new file in an existing folder, or replace a regular file."""
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except FileNotFoundError:
        if not Path(path).parent.is_dir():
            raise UsageError(f"{name} is {str(path)!r}, whose folder does not exist; make it first") from None
        return
    except OSError as error:
        raise UsageError(f"{name} is {str(path)!r}, which cannot be used: {error.strerror}") from error
    if kind != stat.S_IFREG:
        raise UsageError(f"{name} is {str(path)!r}, which is {_KINDS.get(kind, 'no file')}; it takes a file's path")


def near(value: str, valid: Iterable[str]) -> str:
    """ " (did you mean ...?)" where one of the valid values is like `value`, else nothing."""
    likely = difflib.get_close_matches(value, valid, n=1)
    return f" (did you mean {likely[0]!r}?)" if likely else ""


def _is_socket(path: str | Path) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _text(bound: float) -> str:
    return f"{bound:d}" if isinstance(bound, int) else f"{bound:g}"
