"""Promises about what a crash or an attacker leaves at a block's name, and about who may write to files."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from harness.adapters.base import Adapter
from harness.core.patience import Patience
from harness.drivers.promises.subject import Block, Subject, require

RELEASE_SECONDS = 0.02
RELEASES = 10
HELD_FACTOR = 2
"""How many times as long as for a single answer a promise waits before it frees a call that a FIFO holds."""
UMASK = 0o022
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
DEV_ZERO = os.makedev(1, 5)

Put = Callable[[Path], None]
"""Puts something at a path that is free."""


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "inhabitant").touch()


def _socket(path: Path) -> None:
    # A socket's address holds 108 bytes: bind by a short name, through the folder's descriptor.
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"/proc/self/fd/{folder}/left")
            os.rename("left", path.name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)


def _device(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, DEV_ZERO)


_NO_FILES: Mapping[str, Put] = {
    "folder": _folder,
    "FIFO": lambda path: os.mkfifo(path),
    "socket": _socket,
    "link to nowhere": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "device node": _device,
}


def objects_are_no_blocks(subject: Subject) -> None:
    """A folder, FIFO, socket, useless link or device node at a block's name is no data, holds no call, and harms no
    other block."""
    for what, put in _NO_FILES.items():
        blocks, path = _replaced(subject, put)
        if not path:
            continue
        seconds = HELD_FACTOR * subject.answer_seconds_max
        with _not_held(path, seconds):
            later = subject.open()
        with _not_held(path, seconds):
            _load_what_is_found(subject, later, blocks, what)
        with _not_held(path, seconds), subject.request(later) as name:
            job = subject.submit(later, "store", [blocks[1]], [0], name)
            result = subject.results(later, [job])[job]
        subject.account(result, [blocks[1]])
        with _not_held(path, seconds):
            last = subject.open()
        with _not_held(path, seconds):
            if result.ok:
                subject.load_all(last, [blocks[1]], f"blocks that were stored again where a {what} had been")
        with _not_held(path, seconds):
            subject.load_all(last, blocks[::2], f"blocks beside a {what}")
        subject.close()


def a_store_changes_no_other_block(subject: Subject) -> None:
    """A store at a name where somebody left a link to another block's file does not change that block."""
    for link in (os.link, os.symlink):
        adapter = subject.open()
        blocks = subject.blocks(adapter, 3)
        subject.store(adapter, blocks)
        path, other = subject.file(adapter, blocks[1]), subject.file(adapter, blocks[0])
        path.unlink()
        try:
            link(other.resolve(), path)
        except OSError:  # the root's file system has no such links
            subject.close()
            continue
        for _ in range(2):  # the first may have removed the link
            later = subject.open()
            with subject.request(later) as name:
                job = subject.submit(later, "store", [blocks[1]], [0], name)
                subject.account(subject.results(later, [job])[job], [blocks[1]])
            subject.load_all(subject.open(), [blocks[0]], "blocks to whose file another name was a link")
        subject.close()


def links_are_not_followed_by_stores(subject: Subject) -> None:
    """A store at a name where somebody left a symbolic link makes and changes no file outside the root."""
    outside = Path(subject.setup.root_dir).with_name(f"{Path(subject.setup.root_dir).name}-outside")
    outside.mkdir()
    victim, absent = outside / "victim", outside / "absent"
    for target in (victim, absent):
        victim.write_bytes(b"not the tier's")
        before = victim.lstat()
        adapter = subject.open()
        blocks = subject.blocks(adapter, 2)
        subject.store(adapter, blocks)
        path = subject.file(adapter, blocks[0])
        path.unlink()
        try:
            path.symlink_to(target)
        except OSError:  # the root's file system has no links
            return
        later = subject.open()
        subject.look_up(later, blocks)
        with subject.request(later) as name:
            job = subject.submit(later, "store", blocks, range(2), name)
            subject.account(subject.results(later, [job])[job], blocks)
        subject.close()
        made = sorted(each.name for each in outside.iterdir() if each != victim)
        require(not made, f"a store through a link made {made[:3]} outside the root")
        require(victim.exists(), "a store through a link removed a file outside the root")
        same = victim.read_bytes() == b"not the tier's" and victim.lstat().st_mode == before.st_mode
        require(same, "a store through a link changed a file outside the root")


def others_cannot_write(subject: Subject) -> None:
    """What a tier makes under the root has no permission to write that the process's umask takes away, and the umask
    stays."""
    umask = os.umask(UMASK)
    try:
        adapter = subject.open()
        blocks = subject.blocks(adapter, 4)
        subject.store(adapter, blocks)
        subject.store(adapter, blocks)
        subject.load_all(adapter, blocks, "blocks")
        subject.close()
    finally:
        left = os.umask(umask)
    require(left == UMASK, f"the tier has changed the process's umask from {UMASK:03o} to {left:03o}")
    root = Path(subject.setup.root_dir)
    modes = {path.relative_to(root): path.lstat().st_mode for path in root.rglob("*") if not path.is_symlink()}
    wrong = {str(path): f"{mode & 0o7777:04o}" for path, mode in modes.items() if mode & OTHERS_WRITE}
    require(
        not wrong, f"{len(wrong)} files or folders can be written by others, such as {next(iter(wrong.items()), '')}"
    )


def _replaced(subject: Subject, put: Put) -> tuple[list[Block], Path | None]:
    """Three stored blocks, the file of the second replaced; no path where this machine cannot make such a thing."""
    adapter = subject.open()
    blocks = subject.blocks(adapter, 3)
    subject.store(adapter, blocks)
    path = subject.file(adapter, blocks[1])
    path.unlink()
    try:
        put(path)
    except OSError:  # device nodes are root's
        return blocks, None
    return blocks, path


def _load_what_is_found(subject: Subject, adapter: Adapter, blocks: list[Block], what: str) -> None:
    """Look three blocks up and load what is found: the second is no data, the others are there."""
    with subject.request(adapter) as name:
        verdicts = subject.ask(adapter, blocks, name)
        require(verdicts[0] == verdicts[2] == "hit", f"with a {what} in the place of one block others are not found")
        hits = [block for block, verdict in zip(blocks, verdicts, strict=True) if verdict == "hit"]
        result = subject.load_hits(adapter, hits, range(len(hits)), name)
    require(blocks[1].key not in result.ok, f"a {what} is reported loaded as a block")
    require(
        set(result.ok) == {blocks[0].key, blocks[2].key},
        f"with a {what} in the place of one block others were not loaded",
    )


@contextlib.contextmanager
def _not_held(path: Path, seconds: float) -> Iterator[None]:
    """Require that no call waits `seconds` for a FIFO at `path`. After that time, and after an error, the FIFO is
    opened at both ends, so that the call returns. What is no FIFO holds no call."""
    if not _is_fifo(path):
        yield
        return
    over, held = threading.Event(), threading.Event()

    def free() -> None:
        patience = Patience(seconds)  # a pause of this process is no call that is held
        while not over.wait(RELEASE_SECONDS):
            if patience.is_over() and _free(path):
                held.set()

    thread = threading.Thread(target=free, daemon=True)
    thread.start()
    try:
        yield
    except Exception:
        for _ in range(RELEASES):
            _free(path)
            over.wait(RELEASE_SECONDS)
        raise
    finally:
        over.set()
        thread.join()
    require(not held.is_set(), f"a FIFO at a block's name held a call for {seconds:g} s")


def _is_fifo(path: Path) -> bool:
    try:
        return stat.S_ISFIFO(path.lstat().st_mode)
    except OSError:
        return False


def _free(path: Path) -> bool:
    """Let each open call of a FIFO return; false: there is none."""
    with contextlib.suppress(OSError):
        if _is_fifo(path):
            os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
            return True
    return False
