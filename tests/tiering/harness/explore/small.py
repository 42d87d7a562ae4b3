"""Small programs for the explorer's tests, whose every order of calls can be run for comparison."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import random
import threading
from collections.abc import Callable, Hashable
from pathlib import Path

from harness.explore.model import Actor, Outcome, Program

Steps = Callable[[Path], object]


def contents(outcome: Outcome) -> Hashable:
    """The results, and every name with the bytes of its file."""
    root = outcome.root
    files = sorted(
        (path.relative_to(root).as_posix(), path.read_bytes() if path.is_file() else b"") for path in root.rglob("*")
    )
    return repr(outcome.results), repr(outcome.errors), outcome.killed, bool(outcome.stuck), tuple(files)


def keep(root: Path) -> None:
    """Nothing to reset."""


def program(
    *steps: Steps,
    setup: Callable[[Path], object] = lambda root: None,
    check: Callable[[Outcome], list[str]] = lambda outcome: [],
) -> Program:
    """Each of `steps` is an actor, whose process is used for many schedules: nothing of it is remembered."""
    actors = tuple(Actor(f"{one.__name__}-{i}", lambda root: root, one, again=keep) for i, one in enumerate(steps))
    return Program("small", lambda root: setup(root) and None, actors, check, contents)


def tries(*calls: Callable[[], object]) -> list[str]:
    """Make the calls one after the other; each one's errno name, or what it returned."""
    found = []
    for call in calls:
        try:
            found.append(str(call()))
        except OSError as error:
            found.append(type(error).__name__)
    return found


def put(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(descriptor, data)
    os.close(descriptor)


def get(path: Path) -> str:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, 100).decode()
    finally:
        os.close(descriptor)


# Two names of one inode: a write under one is read under the other.


def two_names(root: Path) -> None:
    put(root / "a", b"old")
    os.link(root / "a", root / "b")


def writes_a(root: Path) -> object:
    return tries(lambda: put(root / "a", b"new"))


def reads_b(root: Path) -> object:
    return tries(lambda: get(root / "b"))


# Folders that appear and vanish.


def makes_folder(root: Path) -> object:
    return tries(lambda: os.mkdir(root / "d"), lambda: put(root / "d/x", b"1"))


def removes_folder(root: Path) -> object:
    return tries(lambda: os.unlink(root / "d/x"), lambda: os.rmdir(root / "d"))


def moves_folder(root: Path) -> object:
    return tries(lambda: os.rename(root / "d", root / "e"))


def one_folder(root: Path) -> None:
    os.mkdir(root / "d")
    put(root / "d/x", b"0")


def reads_in_folder(root: Path) -> object:
    return tries(lambda: get(root / "d/x"), lambda: sorted(os.listdir(root)))


# A rename over an open file.


def a_file(root: Path) -> None:
    put(root / "a", b"old")


def replaces_a(root: Path) -> object:
    return tries(lambda: put(root / "tmp", b"new"), lambda: os.rename(root / "tmp", root / "a"))


def writes_through_descriptor(root: Path) -> object:
    descriptor = os.open(root / "a", os.O_RDWR)
    os.write(descriptor, b"fd!")
    size = os.fstat(descriptor).st_nlink
    os.close(descriptor)
    return size


# flock.


def counts_under_lock(root: Path) -> object:
    descriptor = os.open(root / "a", os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    text = os.pread(descriptor, 10, 0)
    os.pwrite(descriptor, text + b"+", 0)
    os.close(descriptor)
    return len(text)


def tries_lock(root: Path) -> object:
    descriptor = os.open(root / "a", os.O_RDWR)
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.pwrite(descriptor, b"N", 0)
        return "had it"
    return "refused"


def publishes_by_link(root: Path) -> object:
    descriptor = os.open(root, os.O_TMPFILE | os.O_WRONLY, 0o600)
    os.write(descriptor, str(os.getpid() * 0 + 7).encode())
    return tries(lambda: os.link(f"/proc/self/fd/{descriptor}", root / "n", src_dir_fd=0, follow_symlinks=True))


def lock_twice(first: str, second: str) -> Steps:
    def steps(root: Path) -> object:
        for name in (first, second):
            descriptor = os.open(root / name, os.O_RDWR)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        return "both"

    return steps


# Threads of one process.


def two_threads(root: Path) -> object:
    threads = [threading.Thread(target=put, args=(root / "x", data)) for data in (b"first", b"second")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return "done"


def reads_x(root: Path) -> object:
    return tries(lambda: get(root / "x"))


# What a folder shows of its names without their being looked up: size, links, times, and the order in which it lists.


def puts(*names: str) -> Steps:
    return lambda root: tries(*(functools.partial(put, root / name, name.encode()) for name in names))


def sees_links(root: Path) -> object:
    return [str(os.path.exists(root / "other")), os.stat(root).st_nlink]


def makes_two_folders(root: Path) -> object:
    return tries(lambda: os.mkdir(root / "one"), lambda: os.mkdir(root / "two"))


def puts_x_and_lists(root: Path) -> object:
    put(root / "x", b"x")
    return os.listdir(root)  # in the order of the file system: on tmpfs the newest comes first


def makes_folder_old(root: Path) -> object:
    return tries(lambda: os.utime(root / "d", (0, 0)))


def sees_age_of_folder(root: Path) -> object:
    put(root / "d/y", b"1")
    return os.stat(root / "d").st_mtime == 0


# Modes: a chmod may change nothing, and depends on one that does.


def chmods(*modes: int) -> Steps:
    def steps(root: Path) -> object:
        for mode in modes:
            os.chmod(root / "a", mode)
        return f"{os.stat(root / 'a').st_mode:o}"

    return steps


# An unnamed file that has had a name: who has opened it by then sees later writes.


def writes_after_unlink(root: Path) -> object:
    descriptor = os.open(root, os.O_TMPFILE | os.O_WRONLY, 0o600)
    os.write(descriptor, b"1")
    os.link(f"/proc/self/fd/{descriptor}", root / "n", src_dir_fd=descriptor, follow_symlinks=True)
    os.unlink(root / "n")
    os.write(descriptor, b"2")
    os.write(descriptor, b"3")
    return "done"


def reads_n_twice(root: Path) -> object:
    def twice() -> list[bytes]:
        descriptor = os.open(root / "n", os.O_RDONLY)
        return [os.pread(descriptor, 9, 0), os.pread(descriptor, 9, 0)]

    return tries(twice)


SOUND = {
    "links of a folder": program(makes_two_folders, sees_links),
    "order of a listing": program(puts_x_and_lists, puts("y")),
    "times of a folder": program(makes_folder_old, sees_age_of_folder, setup=one_folder),
    "modes": program(chmods(0o644, 0o600), chmods(0o600), setup=a_file),
    "two that try a lock": program(tries_lock, tries_lock, setup=a_file),
    "an unnamed file that had a name": program(writes_after_unlink, reads_n_twice),
    "two names of one inode": program(writes_a, reads_b, setup=two_names),
    "a folder appears and vanishes": program(makes_folder, removes_folder),
    "a folder is moved": program(moves_folder, reads_in_folder, setup=one_folder),
    "rename over an open file": program(replaces_a, writes_through_descriptor, setup=a_file),
    "flock": program(counts_under_lock, counts_under_lock, setup=a_file),
    "flock that does not wait": program(tries_lock, counts_under_lock, setup=a_file),
    "unnamed file and link": program(publishes_by_link, publishes_by_link),
    "two threads and a reader": program(two_threads, reads_x),
    "three processes": program(writes_a, reads_b, replaces_a, setup=two_names),
}


# Random programs: a few calls for each of two actors, over few names, so that most of them meet.


def _append(root: Path, name: str, data: bytes) -> None:
    descriptor = os.open(root / name, os.O_WRONLY | os.O_APPEND)
    os.write(descriptor, data)
    os.close(descriptor)


def _with_lock(root: Path, name: str, how: int) -> int:
    descriptor = os.open(root / name, os.O_RDWR)
    fcntl.flock(descriptor, how)  # held to the end of the process
    return os.fstat(descriptor).st_size


def _exclusive(root: Path, name: str) -> None:
    os.close(os.open(root / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


NAMES = ("a", "b", "d/a", "d/b", "e/a")
OPERATIONS: tuple[Callable[[Path, str, str, bytes], object], ...] = (
    lambda root, one, two, data: put(root / one, data),
    lambda root, one, two, data: _append(root, one, data),
    lambda root, one, two, data: get(root / one),
    lambda root, one, two, data: os.link(root / one, root / two),
    lambda root, one, two, data: os.rename(root / one, root / two),
    lambda root, one, two, data: os.unlink(root / one),
    lambda root, one, two, data: os.mkdir(root / one[0]),
    lambda root, one, two, data: os.rmdir(root / "d"),
    lambda root, one, two, data: os.rename(root / "d", root / "e"),
    lambda root, one, two, data: sorted(os.listdir(root / os.path.dirname(one))),
    lambda root, one, two, data: os.stat(root / one).st_nlink,
    lambda root, one, two, data: os.truncate(root / one, 1),
    lambda root, one, two, data: _exclusive(root, one),
    lambda root, one, two, data: _with_lock(root, one, fcntl.LOCK_EX),
    lambda root, one, two, data: _with_lock(root, one, fcntl.LOCK_SH | fcntl.LOCK_NB),
    lambda root, one, two, data: _with_lock(root, one, fcntl.LOCK_UN),
)


def some_files(root: Path) -> None:
    os.mkdir(root / "d")
    put(root / "a", b"a")
    put(root / "d/a", b"d")
    os.link(root / "a", root / "d/b")


def random_program(chance: random.Random, calls: int = 2) -> Program:
    """Two actors with `calls` operations each."""

    def actor(number: int) -> Actor:
        made = [
            functools.partial(chance.choice(OPERATIONS), one=chance.choice(NAMES), two=chance.choice(NAMES))
            for _ in range(calls)
        ]

        def steps(root: Path) -> object:
            return tries(
                *(functools.partial(one, root, data=bytes([48 + 2 * number + i])) for i, one in enumerate(made))
            )

        return Actor(str(number), lambda root: root, steps, again=keep)

    return Program("random", some_files, (actor(0), actor(1)), lambda outcome: [], contents)
