"""What a process did to the files below a folder, call by call with all bytes, from a log of strace.

`recorded_python` makes an interpreter whose system calls are logged; `Recording` reads the log. A call names paths and
descriptors; a `Step` names inodes, so that a file keeps its identity through links and renames. The process marks
places in its own log: `mark(text)` is a call on a name that does not exist.

Errors: what the log cannot express (a mapping that is written to, io_uring) is in `Recording.unknown`, in words.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from harness.faults.processes import strace_program

CALLS = (
    "open,openat,openat2,creat,write,writev,pwrite64,pwritev,pwritev2,read,lseek,truncate,ftruncate,fallocate,link,linkat,"
    "rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,symlink,symlinkat,fsync,fdatasync,sync,syncfs,"
    "sync_file_range,copy_file_range,sendfile,io_uring_setup,mmap,chdir,fchdir"
)
UNREADABLE = ("copy_file_range", "sendfile", "io_uring_setup", "symlink", "symlinkat", "fallocate")
"""Calls that this module does not follow; one that reaches the folder makes the recording incomplete."""
STRING_BYTES_MAX = 1 << 28
MARK = "/crash-states-mark/"
ROOT = 0
"""The inode of the folder that is recorded."""


class Step(NamedTuple):
    """One change, or one barrier, by inode. `kind`: "create", "mkdir", "link", "unlink", "rename", "write", "truncate",
    "sync" (data and size of `inode`, and a folder's names), "mark".

    `folder` and `name` are where the name is, or for a rename was; `target` is where it went. An unnamed file is
    created in folder -1. `call` is what is shown to people.
    """

    kind: str
    inode: int = -1
    folder: int = -1
    name: str = ""
    target: tuple[int, str] | None = None
    offset: int = 0
    data: bytes = b""
    direct: bool = False
    call: str = ""


class _Open(NamedTuple):
    inode: int
    direct: bool
    synchronous: bool
    append: bool


def recorded_python(python: str, log: Path) -> str:
    """A program that runs `python` with its arguments and logs the calls of all its threads. Raises
    `FaultUnavailable`."""
    command = [strace_program(), "-f", "-y", "-xx", "-qq", "-s", str(STRING_BYTES_MAX), "-o", str(log), "--seccomp-bpf"]
    script = log.with_suffix(".sh")
    script.write_text(f'#!/bin/sh\nexec {shlex.join([*command, "-e", f"trace={CALLS}", python])} "$@"\n')
    script.chmod(0o700)
    return str(script)


def mark(text: str) -> None:
    """Leave `text` in the log of this process, between the calls before and after."""
    with contextlib.suppress(OSError):
        os.unlink(MARK + text)


_STRING = rb'"((?:\\x[0-9a-f]{2})*)"'
_AT = rb"(?:(AT_FDCWD|\d+)<((?:\\x[0-9a-f]{2})*)>(?:\(deleted\))?, )?"
_LINE = re.compile(rb"^(\d+) +(?:<\.\.\. )?(\w+)(?:\(| resumed>)(.*)$", re.DOTALL)
_RESULT = re.compile(rb"\) += (-?\d+|\?|0x[0-9a-f]+)(?:<((?:\\x[0-9a-f]{2})*)>)?(?:\(deleted\))?(?: \w+ \(.*\))?$")
_UNFINISHED = b" <unfinished ...>"
_PATHS = re.compile(_AT + _STRING)
_STRINGS = re.compile(_STRING)
_DESCRIPTOR = re.compile(rb"^(\d+)<((?:\\x[0-9a-f]{2})*)>")
_SELF_FD = re.compile(r"^/proc/(?:self|thread-self|\d+)/fd/(\d+)$")


def _bytes(text: bytes) -> bytes:
    return bytes.fromhex(text.replace(rb"\x", b"").decode())


class Recording:
    """The steps of one process below `folder`, in the order in which the calls returned."""

    def __init__(self, lines: Iterable[bytes], folder: str) -> None:
        self.steps: list[Step] = []
        self.unknown: list[str] = []
        self._folder = os.path.realpath(folder)
        self._names: dict[tuple[int, str], int] = {}
        self._sizes: dict[int, int] = {}
        self._folders = {ROOT}
        self._inodes = 1
        self._open: dict[int, _Open] = {}
        self._places: dict[int, int] = {}
        self._working = ""  # the directory that relative paths begin at
        begun: dict[bytes, bytes] = {}
        for line in lines:
            line = line.rstrip(b"\n")
            if (match := _LINE.match(line)) is None:
                continue
            thread, name, rest = match.groups()
            if rest.endswith(_UNFINISHED):
                begun[thread] = rest.removesuffix(_UNFINISHED)
                continue
            if b"<... " in line[:20]:
                rest = begun.pop(thread, b"") + rest
            if (result := _RESULT.search(rest)) and result[1] != b"?":
                self._read(name.decode(), rest[: result.start()], int(result[1], 0))

    # --- one call ---

    def _read(self, call: str, arguments: bytes, result: int) -> None:
        if call in ("unlink", "unlinkat") and result < 0:
            for _, path in self._paths(arguments):
                if path.startswith(MARK):
                    self._add(Step("mark", call=path.removeprefix(MARK)))
        if result < 0:
            return
        if call in ("chdir", "fchdir"):
            (self._working,) = [path for _, path in self._paths(arguments)] or _paths_of(arguments)
        elif call == "mmap":
            if b"MAP_SHARED" in arguments and b"PROT_WRITE" in arguments and self._below(_paths_of(arguments)):
                self.unknown.append("a file is mapped to be written")
        elif call in UNREADABLE:
            paths = [*_paths_of(arguments), *(path for _, path in self._paths(arguments))]
            if call == "io_uring_setup" or self._below(paths):
                self.unknown.append(f"{call} is not followed")
        elif call in ("open", "openat", "openat2", "creat"):
            self._opened(call, arguments, result)
        elif call in ("write", "writev", "pwrite64", "pwritev", "pwritev2"):
            self._wrote(call, arguments, result)
        elif call in ("read", "lseek"):
            self._moved(call, arguments, result)
        elif call in ("ftruncate", "truncate"):
            inode = self._of(arguments) if call == "ftruncate" else self._at(self._paths(arguments)[0])
            if inode is not None:
                self._cut(inode, int(arguments.rsplit(b",", 1)[1]), f"{call}")
        elif call in ("fsync", "fdatasync", "sync_file_range", "syncfs"):
            inode = self._of(arguments)
            if inode is not None and call != "sync_file_range":  # which waits for pages, and promises nothing
                self._add(Step("sync", inode, call=f"{call} {self._called(inode)}"))
        else:
            self._renamed(call, arguments)

    def _opened(self, call: str, arguments: bytes, result: int) -> None:
        flags = set(re.findall(rb"O_\w+", arguments)) | ({b"O_CREAT", b"O_TRUNC"} if call == "creat" else set())
        self._open.pop(result, None)
        self._places[result] = 0
        place = self._paths(arguments)[0]
        inode = self._at(place)
        if b"O_TMPFILE" in flags:
            if inode is None:
                return
            inode = self._new()
            self._add(Step("create", inode, call="create an unnamed file"))
        elif inode is None and b"O_CREAT" in flags and (where := self._where(place)):
            inode = self._new()
            self._names[where] = inode
            self._add(Step("create", inode, *where, call=f"create {where[1]}"))
        elif inode is not None and b"O_TRUNC" in flags and inode not in self._folders and self._sizes[inode]:
            self._cut(inode, 0, "open with O_TRUNC")
        if inode is not None:
            synchronous = bool(flags & {b"O_SYNC", b"O_DSYNC"})
            self._open[result] = _Open(inode, b"O_DIRECT" in flags, synchronous, b"O_APPEND" in flags)

    def _wrote(self, call: str, arguments: bytes, result: int) -> None:
        descriptor = _DESCRIPTOR.match(arguments)
        if (
            descriptor is None
            or (opened := self._open.get(int(descriptor[1]))) is None
            or opened.inode in self._folders
        ):
            return
        if not self._below([_bytes(descriptor[2]).decode(errors="replace")]):
            return  # the number was given to something else that is not recorded, such as a pipe
        data = b"".join(_bytes(part) for part in _STRINGS.findall(arguments[descriptor.end() :]))[:result]
        number = int(descriptor[1])
        numbers = [int(n) for n in re.findall(rb", (-?\d+)(?=,|$)", _STRINGS.sub(b"", arguments)[descriptor.end() :])]
        offset = {"pwrite64": -1, "pwritev": -1, "pwritev2": -2}.get(call)
        start = numbers[offset] if offset is not None else -1
        if start < 0:
            start = self._sizes[opened.inode] if opened.append else self._places[number]
            self._places[number] = start + result
        what = f"{call} {result} bytes at {start} of {self._called(opened.inode)}"
        self._add(Step("write", opened.inode, offset=start, data=data, direct=opened.direct, call=what))
        self._sizes[opened.inode] = max(self._sizes[opened.inode], start + result)
        if opened.synchronous or b"RWF_DSYNC" in arguments or b"RWF_SYNC" in arguments:
            self._add(Step("sync", opened.inode, call=f"which waits for {self._called(opened.inode)}"))

    def _moved(self, call: str, arguments: bytes, result: int) -> None:
        if (descriptor := _DESCRIPTOR.match(arguments)) and (number := int(descriptor[1])) in self._places:
            self._places[number] = result if call == "lseek" else self._places[number] + result

    def _cut(self, inode: int, size: int, call: str) -> None:
        self._sizes[inode] = size
        self._add(Step("truncate", inode, offset=size, call=f"{call} {self._called(inode)} to {size} bytes"))

    def _renamed(self, call: str, arguments: bytes) -> None:
        places = self._paths(arguments)
        if not places:
            return
        source, where = self._at(places[0]), self._where(places[0])
        if call.startswith("mkdir"):
            if where is not None:
                inode = self._new()
                self._folders.add(inode)
                self._names[where] = inode
                self._add(Step("mkdir", inode, *where, call=f"mkdir {where[1]}"))
        elif call in ("unlink", "unlinkat", "rmdir"):
            if where is not None and source is not None:
                del self._names[where]
                self._add(Step("unlink", source, *where, call=f"unlink {where[1]}"))
        elif (target := self._where(places[1])) is not None and call.startswith("link"):
            if source is None:
                self.unknown.append("a file from outside is linked in")
                return
            self._names[target] = source
            self._add(Step("link", source, *target, call=f"link {target[1]}"))
        elif call.startswith("rename"):
            if (where is None) != (target is None) or source is None or target is None or where is None:
                if where is not None or target is not None:
                    self.unknown.append("a file is renamed into or out of the folder")
                return
            del self._names[where]
            self._names[target] = source
            self._add(Step("rename", source, *where, target=target, call=f"rename {where[1]} to {target[1]}"))

    # --- names ---

    def _paths(self, arguments: bytes) -> list[tuple[int | None, str]]:
        """Descriptor and path of each string, the path absolute where the descriptor's is known."""
        found = []
        for at, base, path in _PATHS.findall(arguments):
            text, above = _bytes(path).decode(errors="replace"), _bytes(base).decode(errors="replace")
            number = int(at) if at.isdigit() else None
            if at == b"AT_FDCWD":
                self._working = above
            above = above or self._working
            found.append((number, os.path.normpath(os.path.join(above, text)) if text else above))
        return found

    def _at(self, place: tuple[int | None, str]) -> int | None:
        """The inode that a path leads to; None outside the folder, and where nothing is."""
        number, path = place
        if match := _SELF_FD.match(path):
            opened = self._open.get(int(match[1]))
            return opened.inode if opened else None
        if path == self._folder:
            return ROOT
        if number is not None and (opened := self._open.get(number)) and "/#" in path:
            return opened.inode  # linkat(descriptor, "", ..., AT_EMPTY_PATH)
        where = self._where(place)
        return self._names.get(where) if where else None

    def _where(self, place: tuple[int | None, str]) -> tuple[int, str] | None:
        """The folder and the name of a path; None outside the folder, and where its folder is not."""
        path = place[1]
        if not path.startswith(self._folder + os.sep):
            return None
        *above, name = path[len(self._folder) + 1 :].split(os.sep)
        inode = ROOT
        for part in above:
            if (found := self._names.get((inode, part))) is None:
                return None
            inode = found
        return inode, name

    def _of(self, arguments: bytes) -> int | None:
        match = _DESCRIPTOR.match(arguments)
        opened = self._open.get(int(match[1])) if match else None
        return opened.inode if opened and match and self._below(_paths_of(arguments)) else None

    def _below(self, paths: Iterable[str]) -> bool:
        return any(path == self._folder or path.startswith(self._folder + os.sep) for path in paths)

    def _called(self, inode: int) -> str:
        for (_, name), named in self._names.items():
            if named == inode:
                return name
        return "the folder" if inode == ROOT else "the unnamed file"

    def _new(self) -> int:
        self._inodes += 1
        self._sizes[self._inodes - 1] = 0
        return self._inodes - 1

    def _add(self, step: Step) -> None:
        self.steps.append(step)


def _paths_of(arguments: bytes) -> list[str]:
    """The paths behind all descriptors and strings of a call."""
    return [
        _bytes(found).decode(errors="replace")
        for pattern in (rb"<((?:\\x[0-9a-f]{2})+)>", _STRING)
        for found in re.findall(pattern, arguments)
    ]
