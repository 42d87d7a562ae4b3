"""Damage to files at rest: block files changed or replaced, stale temp files, hostile `config.json`.

Scenarios and tests call it on a tier's root. It depends on files only, not on a tier's format.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, TypeVar

from harness.core import seeds
from harness.core.history import in_words
from harness.faults.rules import FaultUnavailable

PAGE_BYTES = 4096


_NOT_POSSIBLE_HERE = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
"""A FUSE file system without device nodes has no FIFO, one without links refuses links."""
T = TypeVar("T")


def if_possible(act: Callable[[], T]) -> T:
    """Do it; raises `FaultUnavailable` where the file system of the root cannot have such a thing."""
    try:
        return act()
    except OSError as error:
        if error.errno in _NOT_POSSIBLE_HERE:
            raise FaultUnavailable(f"the root's file system refuses it: {in_words(error)}") from error
        raise


class Case(NamedTuple):
    """The input of one damage. `other` is another block's file; `amount` in bytes, None: drawn."""

    path: Path
    random: Random
    other: Path | None
    amount: int | None


class Damage(NamedTuple):
    """A kind of damage to a block file, the tier's guarantee under it, and whether it needs another block's file."""

    what: str
    guarantee: str
    act: Callable[[Case], str]
    needs_other: bool = False


def mangle(
    path: str | Path, how: str, seed: int = 0, *, other: str | Path | None = None, amount: int | None = None
) -> str:
    """Do the damage `DAMAGES[how]` to a block file, where chance decides by `seed`; returns what was done, in words.

    Damage to the content keeps inode, size (but for truncate, extend, empty, swap and wrong_key_copy) and times, as a
    decaying disk would. `amount` sizes truncate (bytes kept) and extend (bytes added). Raises ValueError for an
    unknown name, a missing `other` or a file too small; OSError as the file system does.
    """
    if how not in DAMAGES:
        raise ValueError(f"damage is {how!r}; valid: {', '.join(DAMAGES)}")
    damage = DAMAGES[how]
    if damage.needs_other and other is None:
        raise ValueError(f"damage {how!r} takes another block's file, other=...")
    case = Case(Path(path), seeds.stream(seed, "mangle", how), Path(other) if other is not None else None, amount)
    return damage.act(case)


def _edit(path: Path, change: Callable[[bytearray], str]) -> str:
    """Let `change` alter the content in place; inode and times stay."""
    times = path.stat()
    with open(path, "r+b") as file:
        content = bytearray(file.read())
        if not content:
            raise ValueError(f"{path.name} is empty: there is nothing to damage")
        done = change(content)
        file.seek(0)
        file.write(content)
        file.truncate()
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return done


def _flip(content: bytearray, random: Random, start: int) -> str:
    at, bit = random.randrange(start, len(content)), random.randrange(8)
    content[at] ^= 1 << bit
    return f"bit {bit} of byte {at} inverted"


def _bit_flip(case: Case) -> str:
    return _edit(case.path, lambda content: _flip(content, case.random, 0))


def _bit_flip_tail(case: Case) -> str:
    return _edit(case.path, lambda content: _flip(content, case.random, max(0, len(content) - PAGE_BYTES)))


def _pick_page(content: bytearray, random: Random) -> slice:
    start = random.randrange((len(content) + PAGE_BYTES - 1) // PAGE_BYTES) * PAGE_BYTES
    return slice(start, min(start + PAGE_BYTES, len(content)))


def _zero_page(case: Case) -> str:
    def change(content: bytearray) -> str:
        page = _pick_page(content, case.random)
        content[page] = bytes(page.stop - page.start)
        return f"bytes {page.start} to {page.stop} zeroed"

    return _edit(case.path, change)


def _garbage_page(case: Case) -> str:
    def change(content: bytearray) -> str:
        page = _pick_page(content, case.random)
        content[page] = case.random.randbytes(page.stop - page.start)
        return f"bytes {page.start} to {page.stop} replaced by noise"

    return _edit(case.path, change)


def _swap_pages(case: Case) -> str:
    def change(content: bytearray) -> str:
        pages = len(content) // PAGE_BYTES
        if pages < 2:
            raise ValueError(f"{case.path.name} has {len(content)} bytes: too few for two pages")
        a, b = (slice(n * PAGE_BYTES, (n + 1) * PAGE_BYTES) for n in sorted(case.random.sample(range(pages), 2)))
        content[a], content[b] = content[b], content[a]
        return f"pages at {a.start} and {b.start} exchanged"

    return _edit(case.path, change)


def _zero_fill(case: Case) -> str:
    def change(content: bytearray) -> str:
        content[:] = bytes(len(content))
        return f"all {len(content)} bytes zeroed"

    return _edit(case.path, change)


def _cut(case: Case, size: int) -> str:
    def change(content: bytearray) -> str:
        before = len(content)
        if not size < before:
            raise ValueError(f"{case.path.name} has {before} bytes: it cannot be cut to {size}")
        del content[size:]
        return f"cut from {before} to {size} bytes"

    return _edit(case.path, change)


def _truncate(case: Case) -> str:
    size = case.path.stat().st_size
    return _cut(case, case.amount if case.amount is not None else case.random.randrange(1, max(2, size)))


def _lose_last_page(case: Case) -> str:
    return _cut(case, max(0, case.path.stat().st_size - PAGE_BYTES))


def _empty(case: Case) -> str:
    return _cut(case, 0)


def _extend(case: Case) -> str:
    def change(content: bytearray) -> str:
        more = case.amount if case.amount is not None else case.random.randrange(1, 2 * PAGE_BYTES)
        content.extend(case.random.randbytes(more))
        return f"{more} bytes of noise appended"

    return _edit(case.path, change)


def _other(case: Case) -> Path:
    assert case.other is not None
    return case.other


def _replace_content(path: Path, content: bytes) -> None:
    fresh = path.with_name(f".damage-{os.urandom(8).hex()}")
    fresh.write_bytes(content)
    shutil.copystat(path, fresh)
    os.replace(fresh, path)  # never absent, so that a reader finds the damage and not a missing file


def _swap(case: Case) -> str:
    mine, others = case.path.read_bytes(), _other(case).read_bytes()
    _replace_content(case.path, others)
    _replace_content(_other(case), mine)
    return f"content exchanged with {_other(case).name}"


def _wrong_key_copy(case: Case) -> str:
    _replace_content(case.path, _other(case).read_bytes())
    return f"replaced by a copy of {_other(case).name}"


def _remove(case: Case) -> str:
    case.path.unlink()
    return "removed"


def _directory(case: Case) -> str:
    case.path.unlink()
    case.path.mkdir()
    (case.path / "inhabitant").touch()
    return "replaced by a directory that is not empty"


def _fifo(case: Case) -> str:
    case.path.unlink()
    os.mkfifo(case.path)
    return "replaced by a FIFO"


def _socket(case: Case) -> str:
    case.path.unlink()
    # A socket's address holds 108 bytes: bind by a short name, through the folder's descriptor.
    folder = os.open(case.path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            name = os.urandom(8).hex()
            listener.bind(f"/proc/self/fd/{folder}/{name}")
            os.rename(name, case.path.name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)
    return "replaced by a socket"


def _link_to(case: Case, target: str | Path) -> str:
    case.path.unlink()
    case.path.symlink_to(target)
    return f"replaced by a symbolic link to {target}"


def _symlink(case: Case) -> str:
    return _link_to(case, _other(case).resolve())


def _symlink_dangling(case: Case) -> str:
    return _link_to(case, f"nowhere-{os.urandom(4).hex()}")


def _symlink_loop(case: Case) -> str:
    return _link_to(case, case.path.name)


def _hard_link(case: Case) -> str:
    case.path.unlink()
    os.link(_other(case), case.path)
    return f"replaced by a hard link to {_other(case).name}"


def _device(case: Case) -> str:
    case.path.unlink()
    try:
        os.mknod(case.path, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    except OSError as error:
        raise FaultUnavailable(f"no device node can be made here: {error.strerror}") from error
    return "replaced by the device of endless zeros"


def _unreadable(case: Case) -> str:
    if os.geteuid() == 0:
        raise FaultUnavailable("a file without permissions is no fault for root, who reads it anyway")
    case.path.chmod(0)
    return "permissions removed"


_CAUGHT = "detected and counted by reason, a miss instead of data; a later store of the block makes it good"
_STAYS = "a miss, without waiting on it and without following it; counted; a later store of the block makes it good"

DAMAGES: dict[str, Damage] = {
    "bit_flip": Damage("one bit inverted", _CAUGHT, _bit_flip),
    "bit_flip_tail": Damage("one bit of the last 4096 bytes inverted", _CAUGHT, _bit_flip_tail),
    "zero_page": Damage("one page of zeros, as a lost write leaves", _CAUGHT, _zero_page),
    "garbage_page": Damage("one page of noise", _CAUGHT, _garbage_page),
    "swap_pages": Damage("two pages of the file exchanged, as misdirected writes leave", _CAUGHT, _swap_pages),
    "zero_fill": Damage("all zeros in the right size, as a power cut leaves", _CAUGHT, _zero_fill),
    "truncate": Damage("cut at any byte", _CAUGHT, _truncate),
    "lose_last_page": Damage(
        "the last 4096 bytes missing",
        "never wrong bytes: a miss, or the block itself where the tier takes files without a trailer; counted",
        _lose_last_page,
    ),
    "empty": Damage("size 0, as a power cut leaves", _CAUGHT, _empty),
    "extend": Damage("bytes appended, as a writer after a healed partition leaves", _CAUGHT, _extend),
    "swap": Damage("two blocks' files exchanged", _CAUGHT + " (both blocks)", _swap, needs_other=True),
    "wrong_key_copy": Damage("another block's file under this name", _CAUGHT, _wrong_key_copy, needs_other=True),
    "remove": Damage("the file gone", "a miss at the next lookup or a failed load, and nothing else", _remove),
    "directory": Damage("a directory in its place", _STAYS, _directory),
    "fifo": Damage("a FIFO in its place, which blocks every open", _STAYS, _fifo),
    "socket": Damage("a socket in its place", _STAYS, _socket),
    "symlink": Damage("a symbolic link to another block in its place", _STAYS, _symlink, needs_other=True),
    "symlink_dangling": Damage("a symbolic link to nowhere in its place", _STAYS, _symlink_dangling),
    "symlink_loop": Damage("a symbolic link to itself in its place", _STAYS, _symlink_loop),
    "hard_link": Damage("a hard link to another block's file in its place", _CAUGHT, _hard_link, needs_other=True),
    "device": Damage("a device node in its place, which reads as endless zeros", _STAYS, _device),
    "unreadable": Damage("no permission to read it", "a miss, counted as EACCES; the file left alone", _unreadable),
}
"""Every kind of damage to a block file at rest, by name. Guarantees under each: no wrong byte, the job's other blocks
unharmed, one result per job."""


def stale_temps(folder: str | Path, block_name: str, size_bytes: int) -> list[Path]:
    """Write temp files into `folder` as dead writers of `block_name` leave them, in several styles; returns them.

    Empty, half and full ones (`size_bytes`, of noise), of living and dead processes, old and from the future, and a
    directory. Guarantees: none is taken for a block, none stops a store of the block.
    """
    folder = Path(folder)
    host, dead_pid = os.uname().nodename, 2**22 - 1
    names = [
        *(f"{block_name}_{n}.tmp" for n in range(4)),
        *(f".{host}.{pid}.{os.urandom(8).hex()}.tmp" for pid in (1, os.getpid(), dead_pid)),
        *(f"{block_name}{end}" for end in (".tmp", ".part", "~", ".bin", ".tmp.tmp")),
        *(f".{block_name}.swp", f".nfs{os.urandom(12).hex()}", f".fuse_hidden{os.urandom(12).hex()}"),
    ]
    now = time.time()
    for i, name in enumerate(names):
        (folder / name).write_bytes(os.urandom((0, size_bytes // 2, size_bytes)[i % 3]))
        age = (0, 30 * 86400, -86400)[i // 3 % 3]
        os.utime(folder / name, (now - age, now - age))
    (folder / f"{block_name}_4.tmp").mkdir()
    return [folder / name for name in [*names, f"{block_name}_4.tmp"]]


_STRANGE: tuple[Any, ...] = (
    None,
    True,
    -1,
    2**70,
    1.5,
    float("nan"),
    "",
    "../outside",
    "\0",
    "\ud800",
    [],
    {},
    [[]],
)


class HostileConfig(NamedTuple):
    """A possible content of `config.json`."""

    name: str
    content: bytes


def hostile_configs(valid: bytes = b"{}") -> Iterator[HostileConfig]:
    """Contents that no tier may trust: no JSON, senseless JSON, and a `valid` one with each field damaged.

    Guarantee: an error that names the file and the defect, or the tier's own config published anew; never an internal
    exception, endless work, a path outside the root, or silence.
    """
    fields: dict[str, Any] = json.loads(valid)
    assert isinstance(fields, dict), f"a valid config is an object, not {type(fields).__name__}"
    yield HostileConfig("empty", b"")
    yield HostileConfig("blank", b" \n\t" * 1000)
    yield HostileConfig("nul bytes", bytes(PAGE_BYTES))
    yield HostileConfig("noise", bytes(range(256)) * 16)
    yield HostileConfig("not utf-8", b'{"model_name": "\xff\xfe\xfa"}')
    yield HostileConfig("utf-16", valid.decode().encode("utf-16"))
    yield HostileConfig("byte order mark", b"\xef\xbb\xbf" + valid)
    yield HostileConfig("torn", valid[: len(valid) // 2] or b"{")
    yield HostileConfig("trailing garbage", valid + b"\x00garbage")
    yield HostileConfig("twice", valid + valid)
    yield HostileConfig("deeply nested", b"[" * 200_000)
    yield HostileConfig("huge number", b'{"version": ' + b"9" * 10_000 + b"}")
    yield HostileConfig("huge text", json.dumps({**fields, "padding": "x" * (8 << 20)}).encode())
    for text in (b"null", b"true", b"0", b"NaN", b'""', b"[]", b"[{}]", b"{}"):
        yield HostileConfig(f"just {text.decode()}", text)
    for name in fields:
        yield HostileConfig(f"{name} missing", json.dumps({k: v for k, v in fields.items() if k != name}).encode())
        for value in _STRANGE:
            if value != fields[name]:
                damaged = json.dumps({**fields, name: value}).encode()
                yield HostileConfig(f"{name} {value!r}", damaged)
