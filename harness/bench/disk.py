"""The benches' disk: as root an XFS in a preallocated file, new and empty for each measurement, else a plain folder.

The parent of the measuring processes owns it and unmounts each mount.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness.faults.mounts import undertaken

FILL_BYTES = 1 << 22


class Unavailable(Exception):
    """A separate disk cannot be made here; the text is one sentence with the reason."""


class Disk:
    """A place for one measurement after another. `path` is an empty folder after `fresh`."""

    def __init__(self, path: Path, loop: str | None) -> None:
        self.path = path
        self._loop = loop

    @property
    def kind(self) -> str:
        return "XFS in a file, loop device with direct I/O" if self._loop else "a folder"

    @property
    def is_own(self) -> bool:
        """Whether no other program uses its device."""
        return self._loop is not None

    def fresh(self, *keep: str) -> None:
        """Empty it: a new file system, or, where there is none of its own or something shall be kept, removed files."""
        if self._loop and not keep:
            _unmount(self.path)
            try:
                self._make()
                return
            except Unavailable:  # a mount namespace made in between keeps a copy of the mount: the device is busy
                _run("mount", "-o", "nodiscard", self._loop, str(self.path))
        for entry in list(self.path.iterdir()):
            if entry.name in keep:
                continue
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def _make(self) -> None:
        assert self._loop is not None
        # Without -K the old blocks are discarded, which punches holes into the file below and makes the next run slow.
        _run("mkfs.xfs", "-q", "-K", "-f", "-m", "reflink=0", self._loop)
        _run("mount", "-o", "nodiscard", self._loop, str(self.path))

    def free_bytes(self) -> int:
        status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize


@contextlib.contextmanager
def own_disk(folder: Path, size_bytes: int) -> Iterator[Disk]:
    """An XFS of `size_bytes` whose file is in `folder`; removed afterwards. Raises `Unavailable`."""
    if os.geteuid() != 0:
        raise Unavailable("a separate disk takes root")
    if missing := [name for name in ("mkfs.xfs", "losetup", "mount") if shutil.which(name) is None]:
        raise Unavailable(f"a separate disk takes {missing[0]} (packages xfsprogs and mount)")
    folder.mkdir(parents=True, exist_ok=True)
    room = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    if room < size_bytes + (1 << 30):
        raise Unavailable(f"a disk of {size_bytes >> 20} MiB does not fit: {room >> 20} MiB are free in {folder}")
    work = Path(tempfile.mkdtemp(prefix="disk-", dir=folder))
    image, mount = work / "image", work / "mount"
    mount.mkdir()
    with undertaken(["rm", "-rf", "--one-file-system", str(work)]):
        _fill(image, size_bytes)
        loop = _run("losetup", "--direct-io=on", "-f", "--show", str(image)).strip()
        with undertaken(["umount", "-l", str(mount)], ["losetup", "-d", loop]):
            disk = Disk(mount, loop)
            disk._make()
            yield disk


@contextlib.contextmanager
def plain_folder(folder: Path) -> Iterator[Disk]:
    """An empty folder below `folder`, on its file system; removed afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="bench-", dir=folder))
    try:
        yield Disk(work, None)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _fill(image: Path, size_bytes: int) -> None:
    """Write the image once, so that no measurement includes the first allocation of its blocks."""
    descriptor = os.open(image, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_DIRECT, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
        with mmap.mmap(-1, FILL_BYTES) as page:
            for offset in range(0, size_bytes, FILL_BYTES):
                os.pwrite(descriptor, page, offset)
    finally:
        os.close(descriptor)


def _unmount(path: Path) -> None:
    _run("umount", str(path))


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise Unavailable(f"{command[0]} failed: {' '.join(done.stderr.split()) or done.returncode}")
    return done.stdout
