"""Every fault does exactly what its rule states, seen by plain system calls; and nothing stays mounted."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import json
import mmap
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.faults import (
    DAMAGES,
    FAULTS,
    GUARANTEES,
    PUBLISH_STEPS,
    FaultFs,
    FaultUnavailable,
    Injection,
    Rule,
    SteppedClock,
    describe_faults,
    fd_limit,
    file_size_limit,
    hostile_configs,
    is_mounted,
    mangle,
    read_only,
    small_disk,
    stale_temps,
    strace_inject,
)
from harness.faults.rules import Table

BLOCK = 4 * 4096
WAIT_SECONDS = 30.0


@contextlib.contextmanager
def available() -> Iterator[None]:
    """What this machine cannot do is skipped, with its reason."""
    try:
        yield
    except FaultUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def shared_fs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultFs]:
    with available(), FaultFs(tmp_path_factory.mktemp("backing")) as fs:
        yield fs
    assert not is_mounted(fs.mount)
    assert not fs.mount.exists()


@pytest.fixture
def fs(shared_fs: FaultFs) -> Iterator[FaultFs]:
    yield shared_fs
    shared_fs.lift()
    subprocess.run(["find", str(shared_fs.backing), "-mindepth", "1", "-delete"], check=True)


def outcome(what: str, path: Path, size: int = BLOCK) -> str:
    """Do one plain thing to a file and name the errno, "short" or "ok"."""
    try:
        match what:
            case "read":
                with open(path, "rb", buffering=0) as file:
                    return "ok" if len(file.read(size) or b"") == size else "short"
            case "write":
                with open(path, "wb", buffering=0) as file:
                    return "ok" if file.write(bytes(size)) == size else "short"
            case _:
                raise ValueError(what)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


# --- the fault file system ---


def test_without_rules_everything_passes(fs: FaultFs) -> None:
    folder = fs.mount / "a" / "b"
    folder.mkdir(parents=True)
    content = os.urandom(3 * BLOCK + 17)
    (folder / "x").write_bytes(content)
    os.link(folder / "x", folder / "y")
    os.rename(folder / "y", folder / "z")
    os.symlink("z", folder / "s")
    os.chmod(folder / "x", 0o640)
    os.utime(folder / "x", ns=(1, 2))
    os.truncate(folder / "x", 3 * BLOCK)
    below = fs.backing / "a" / "b"
    assert (below / "z").read_bytes() == content[: 3 * BLOCK] == (folder / "s").read_bytes()
    assert sorted(os.listdir(folder)) == ["s", "x", "z"]
    mine, theirs = (folder / "x").stat(), (below / "x").stat()
    for name in ("st_mode", "st_ino", "st_nlink", "st_size", "st_mtime_ns", "st_uid"):
        assert getattr(mine, name) == getattr(theirs, name), name
    with open(folder / "x", "rb") as held:  # unlinked while open: still readable, and no .fuse_hidden file
        os.unlink(folder / "x")
        assert sorted(os.listdir(below)) == ["s", "z"]
        assert held.read() == content[: 3 * BLOCK]
        with pytest.raises(OSError, match="Stale"):  # as documented; a network file system's clients know it too
            os.fstat(held.fileno())
    with open(folder / "log", "ab", buffering=0) as log:
        log.write(b"one")
        log.write(b"two")
    assert (below / "log").read_bytes() == b"onetwo"
    os.unlink(folder / "log")
    assert os.statvfs(folder).f_blocks == os.statvfs(below).f_blocks
    with pytest.raises(FileExistsError):
        os.open(folder / "z", os.O_CREAT | os.O_EXCL | os.O_WRONLY)


def test_direct_io_works_in_pieces_and_o_tmpfile_does_not(fs: FaultFs) -> None:
    size = (1 << 20) + 4096
    buffer = mmap.mmap(-1, size)
    buffer[:] = os.urandom(size)
    before = fs.counts()["requests"].get("write", 0)
    fd = os.open(fs.mount / "x", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    assert os.pwritev(fd, [buffer], 0) == size
    assert fs.counts()["requests"]["write"] == before + 2
    back = mmap.mmap(-1, size)
    assert os.preadv(fd, [memoryview(back)[: 1 << 20], memoryview(back)[1 << 20 :]], 0) == size
    os.close(fd)
    assert back[:] == buffer[:] == (fs.backing / "x").read_bytes()
    with pytest.raises(OSError) as caught:
        os.open(fs.mount, os.O_TMPFILE | os.O_WRONLY)
    assert caught.value.errno == errno.EOPNOTSUPP
    fs.inject(Rule("open create", "EINVAL", direct_only=True))
    with pytest.raises(OSError) as caught:
        os.open(fs.mount / "x", os.O_RDONLY | os.O_DIRECT)
    assert caught.value.errno == errno.EINVAL
    assert outcome("read", fs.mount / "x") == "ok"


def test_the_nth_read_fails_exactly_and_works_after_lift(fs: FaultFs) -> None:
    for name in ("a.bin", "b.txt"):
        (fs.backing / name).write_bytes(bytes(BLOCK))
    fs.inject(Rule("read", "EIO", path="/*.bin", nth=3))
    seen = [outcome("read", fs.mount / name) for _ in range(4) for name in ("b.txt", "a.bin")]
    assert seen == ["ok"] * 5 + ["EIO"] + ["ok"] * 2
    counts = fs.lift()
    assert (counts["rules"][0]["hits"], counts["rules"][0]["acts"]) == (4, 1)
    fs.inject(Rule("read", "EIO", every=2, times=2))
    assert [outcome("read", fs.mount / "a.bin") for _ in range(6)] == ["ok", "EIO", "ok", "EIO", "ok", "ok"]
    fs.lift()
    assert outcome("read", fs.mount / "a.bin") == "ok"


def test_a_probability_is_drawn_from_its_seed(fs: FaultFs) -> None:
    (fs.backing / "x").write_bytes(bytes(BLOCK))

    def draw(seed: int) -> list[str]:
        fs.inject(Rule("read", "EIO", probability=0.5, seed=seed))
        try:
            return [outcome("read", fs.mount / "x") for _ in range(64)]
        finally:
            fs.lift()

    first = draw(1)
    assert {"ok", "EIO"} == set(first)
    assert first == draw(1) != draw(2)


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "ESTALE", "EEXIST", "EACCES", "EMFILE", "EROFS", "ENOTCONN"])
def test_any_errno_arrives(fs: FaultFs, name: str) -> None:
    (fs.backing / "x").write_bytes(bytes(BLOCK))
    fs.inject(Rule("open", name), Rule("rename link unlink mkdir", name))
    assert outcome("read", fs.mount / "x") == name
    for act in (
        lambda: os.rename(fs.mount / "x", fs.mount / "y"),
        lambda: os.link(fs.mount / "x", fs.mount / "y"),
        lambda: os.unlink(fs.mount / "x"),
        lambda: os.mkdir(fs.mount / "d"),
    ):
        with pytest.raises(OSError) as caught:
            act()
        assert errno.errorcode[caught.value.errno or 0] == name
    assert os.listdir(fs.backing) == ["x"]


def test_errors_of_create_write_fsync_and_close(fs: FaultFs) -> None:
    fs.inject(Rule("create", "EACCES", nth=1))
    assert outcome("write", fs.mount / "x") == "EACCES"
    assert outcome("write", fs.mount / "x") == "ok"
    fs.inject(Rule("write", "ENOSPC", nth=1), Rule("flush", "EDQUOT", nth=2), Rule("fsync", "EIO"))
    assert [outcome("write", fs.mount / "x") for _ in range(3)] == ["ENOSPC", "EDQUOT", "ok"]
    fd = os.open(fs.mount / "x", os.O_RDWR)
    with pytest.raises(OSError, match="Input/output"):
        os.fsync(fd)
    os.close(fd)


def test_a_late_error_reports_failure_of_what_was_done(fs: FaultFs) -> None:
    (fs.backing / "x").write_bytes(b"1")
    fs.inject(Rule("rename", "EIO", late=True), Rule("write", "EIO", late=True), Rule("create", "EIO", late=True))
    with pytest.raises(OSError, match="Input/output"):
        os.rename(fs.mount / "x", fs.mount / "y")
    assert os.listdir(fs.backing) == ["y"]
    with open(fs.mount / "y", "r+b", buffering=0) as file, pytest.raises(OSError, match="Input/output"):
        file.write(b"22")
    assert (fs.backing / "y").read_bytes() == b"22"
    assert outcome("write", fs.mount / "z") == "EIO"
    assert (fs.backing / "z").exists()


def test_short_reads_and_writes(fs: FaultFs) -> None:
    content = os.urandom(BLOCK)
    (fs.backing / "x").write_bytes(content)
    fs.inject(Rule("read", "short", 1000, nth=1), Rule("write", "short", 5000, nth=1))
    for flags in (os.O_RDWR, os.O_RDWR | os.O_DIRECT):
        fd = os.open(fs.mount / "x", flags)
        assert os.pread(fd, BLOCK, 0) == content[:1000]
        assert os.pread(fd, BLOCK, 0) == content
        assert os.pwrite(fd, bytes(BLOCK), 0) == 5000
        assert (fs.backing / "x").read_bytes() == bytes(5000) + content[5000:]
        assert os.pwrite(fd, content, 0) == BLOCK
        os.close(fd)
        fs.lift()
        fs.inject(Rule("read", "short", 1000, nth=1), Rule("write", "short", 5000, nth=1))


def test_bits_flip_and_zeros_appear(fs: FaultFs) -> None:
    content = os.urandom(BLOCK)
    (fs.backing / "x").write_bytes(content)
    fs.inject(Rule("read", "bit_flip", 5000, times=1))
    fd = os.open(fs.mount / "x", os.O_RDONLY)
    assert os.pread(fd, 4096, 0) == content[:4096]  # the byte is not in this request
    spoilt = os.pread(fd, 4096, 4096)
    assert [i for i in range(4096) if spoilt[i] != content[4096 + i]] == [5000 - 4096]
    assert os.pread(fd, 4096, 4096) == content[4096:8192]
    fs.inject(Rule("read", "zero", 100))
    assert os.pread(fd, BLOCK, 0) == content[:100] + bytes(BLOCK - 100)
    os.close(fd)
    fs.lift()
    fs.inject(Rule("write", "bit_flip", -1))
    (fs.mount / "y").write_bytes(content)
    on_disk = (fs.backing / "y").read_bytes()
    assert [i for i in range(BLOCK) if on_disk[i] != content[i]] == [BLOCK // 2]
    assert on_disk[BLOCK // 2] ^ content[BLOCK // 2] == 1


def test_files_shrink_and_vanish_under_an_open(fs: FaultFs) -> None:
    for name in ("x", "y"):
        (fs.backing / name).write_bytes(bytes(BLOCK))
    fs.inject(Rule("open", "truncate", 100, path="/x"), Rule("open", "vanish", path="/y"))
    assert outcome("read", fs.mount / "x") == "short"
    assert (fs.backing / "x").stat().st_size == 100
    assert outcome("read", fs.mount / "y") == "ENOENT"
    assert os.listdir(fs.backing) == ["x"]
    fs.inject(Rule("rename", "vanish"))
    with pytest.raises(FileNotFoundError):
        os.rename(fs.mount / "x", fs.mount / "z")


@pytest.mark.parametrize("cached", [False, True])
def test_hung_requests_stop_no_others_and_end_at_lift(tmp_path: Path, cached: bool) -> None:
    hung = [f"hung-{i}" for i in range(40)]  # beyond libfuse's and the kernel's own limits
    for name in ("free", *hung):
        (tmp_path / name).write_bytes(bytes(1 << 20))
    with available(), FaultFs(tmp_path, cached=cached) as fs:
        fs.inject(Rule("read", "hang", path="/hung-*"))
        with ThreadPoolExecutor(len(hung)) as pool:
            try:
                futures = [pool.submit(outcome, "read", fs.mount / name, 1 << 20) for name in hung]
                fs.await_counts(lambda counts: counts["held"] >= len(hung))
                assert outcome("read", fs.mount / "free") == "ok"
                assert outcome("write", fs.mount / "free") == "ok"
                assert not any(future.done() for future in futures)
            finally:
                fs.lift()
            assert [future.result(WAIT_SECONDS) for future in futures] == ["ok"] * len(hung)
        assert fs.counts()["held"] == 0


def test_a_delay_takes_its_time_and_a_lift_cuts_it_short(fs: FaultFs) -> None:
    (fs.backing / "x").write_bytes(bytes(BLOCK))
    fs.inject(Rule("read", "delay", 0.05))
    started = time.monotonic()
    assert outcome("read", fs.mount / "x") == "ok"
    assert time.monotonic() - started >= 0.05
    fs.lift()
    fs.inject(Rule("read", "delay", 3600))
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(outcome, "read", fs.mount / "x")
        try:
            fs.await_counts(lambda counts: counts["held"] == 1)
        finally:
            fs.lift()
        assert future.result(WAIT_SECONDS) == "ok"


def test_a_disconnected_file_system_comes_back(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(BLOCK))
    with available(), FaultFs(tmp_path) as fs:
        fs.inject(Rule("read", "hang"))
        with ThreadPoolExecutor(1) as pool:
            hung = pool.submit(outcome, "read", fs.mount / "x")
            try:
                fs.await_counts(lambda counts: counts["held"] == 1)
            finally:
                fs.disconnect()
            assert hung.result(WAIT_SECONDS) in ("ENOTCONN", "ECONNABORTED")
        assert outcome("read", fs.mount / "x") == "ENOTCONN"
        fs.lift()
        assert outcome("read", fs.mount / "x") == "ok"
        fs.disconnect()  # and an end in this state leaves nothing either
    assert not is_mounted(fs.mount)


def test_with_the_page_cache_a_second_read_makes_no_request(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(BLOCK))
    with available(), FaultFs(tmp_path, cached=True) as fs:
        fd = os.open(fs.mount / "x", os.O_RDONLY)
        os.pread(fd, BLOCK, 0)
        reads = fs.counts()["requests"]["read"]
        assert os.pread(fd, BLOCK, 0) == bytes(BLOCK)
        assert fs.counts()["requests"]["read"] == reads
        os.close(fd)


def test_it_is_fast_enough_to_carry_traffic(fs: FaultFs) -> None:
    """No speed is asserted, which depends on the machine: only that pieces are large, so that speed is possible."""
    before = fs.counts()["requests"]
    for i in range(32):
        with open(fs.mount / f"{i}", "wb", buffering=0) as file:
            assert file.write(bytes(1 << 20)) == 1 << 20
    after = fs.counts()["requests"]
    assert after["write"] - before.get("write", 0) <= 2 * 32


@pytest.mark.parametrize("how", ["error", "killed"])
def test_no_mount_and_no_process_stays(tmp_path: Path, how: str) -> None:
    """A block that raises, or a process killed outright with requests hanging, leaves nothing behind."""
    program = f"""
import os, signal, sys, threading
from harness.faults import FaultFs, FaultUnavailable, Rule, small_disk
try:
    with FaultFs({str(tmp_path)!r}) as fs, small_disk(8 << 20, "ext4") as ext4, small_disk(1 << 20) as tmpfs:
        open(fs.mount / "x", "w").close()
        fs.inject(Rule("getattr", "hang", path="/x"))
        threading.Thread(target=lambda: os.path.exists(fs.mount / "x"), daemon=True).start()
        fs.await_counts(lambda counts: counts["held"] >= 1)
        print(fs.pid, fs.mount, ext4.mount, tmpfs.mount, flush=True)
        if {how!r} == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise KeyboardInterrupt
except FaultUnavailable as reason:
    print("unavailable", reason)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    if done.stdout.startswith("unavailable"):
        pytest.skip(done.stdout)
    assert done.returncode == (-signal.SIGKILL if how == "killed" else -signal.SIGINT), done.stderr
    pid, *mounts = done.stdout.split()
    deadline = time.monotonic() + WAIT_SECONDS
    while left := [m for m in mounts if is_mounted(m) or os.path.exists(m)] + [p for p in [pid] if running(p)]:
        assert how == "killed", f"{left} left after the block"
        assert time.monotonic() < deadline, f"{left} left"
        time.sleep(0.01)  # between looks, until the deadline
    loops = subprocess.run(["losetup", "-l", "-n", "-O", "BACK-FILE"], capture_output=True, text=True).stdout
    assert str(Path(mounts[1]).parent) not in loops


def running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_missing_program_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FaultUnavailable, match=r"fusermount3|/dev/fuse|mfusepy"), FaultFs(tmp_path):
        pass
    with pytest.raises(FaultUnavailable, match=r"not installed|root"), small_disk(1 << 20):
        pass
    with pytest.raises(FaultUnavailable, match="strace"):
        strace_inject(["true"], Injection("linkat", error="EIO"))
    monkeypatch.undo()
    with available():
        FaultFs.check_available()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(FaultUnavailable, match="did not start"), FaultFs(tmp_path):
        pass
    with pytest.raises(FileNotFoundError):
        FaultFs(tmp_path / "missing")


# --- rules, without a mount ---


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"operations": "raed", "action": "EIO"}, "'raed'; valid: .*read"),
        ({"operations": "", "action": "EIO"}, "empty"),
        ({"operations": "read", "action": "EOI"}, "'EOI'; valid: .*hang"),
        ({"operations": "open", "action": "short"}, "works on the operations read and write"),
        ({"operations": "read", "action": "zero", "late": True}, "cannot be late"),
        ({"operations": "read", "action": "short", "amount": -1}, "amount is -1"),
        ({"operations": "read", "action": "EIO", "every": 0}, "every 0"),
        ({"operations": "read", "action": "EIO", "probability": 1.5}, "probability 1.5"),
    ],
)
def test_a_senseless_rule_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rule(**fields)  # type: ignore[arg-type]


@given(st.integers(0, 5), st.integers(1, 5), st.integers(0, 5), st.integers(0, 40))
def test_which_requests_are_struck(nth: int, every: int, times: int, requests: int) -> None:
    """The counting of `Rule`, against its definition written down once more."""
    table = Table()
    table.inject([Rule("read", "EIO", nth=nth, every=every, times=times)])
    struck = [n for n in range(1, requests + 1) if table.strike("read", ("/x",), 0, 1, False)]
    due = [n for n in range(1, requests + 1) if (n == nth if nth else n % every == 0)]
    assert struck == (due[:times] if times else due)


# --- disks ---


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_small_disk_fills_and_recovers(kind: str) -> None:
    with available(), small_disk(8 << 20, kind) as disk:  # type: ignore[arg-type]
        (disk.mount / "old").write_bytes(bytes(BLOCK))
        assert disk.fill() > 1 << 20
        assert outcome("write", disk.mount / "new", 1 << 16) == "ENOSPC"
        assert outcome("read", disk.mount / "old") == "ok"
        disk.free()
        assert outcome("write", disk.mount / "new", 1 << 20) == "ok"
        assert {outcome("write", disk.mount / f"{i}", 1 << 20) for i in range(9)} >= {"ok", "ENOSPC"}
    assert not disk.mount.exists()


def test_read_only_and_back_even_if_busy_at_first() -> None:
    with contextlib.ExitStack() as stack:
        with available():
            disk = stack.enter_context(small_disk(1 << 20))
        (disk.mount / "old").write_bytes(bytes(BLOCK))
        held = open(disk.mount / "held", "wb")
        release = threading.Timer(0.05, held.close)
        release.start()
        with read_only(disk.mount):
            assert held.closed
            assert outcome("write", disk.mount / "new") == "EROFS"
            assert outcome("read", disk.mount / "old") == "ok"
        release.join()
        assert outcome("write", disk.mount / "new") == "ok"


# --- processes ---

PUBLISHER = """
import os, sys
folder = sys.argv[1]
at = os.open(folder, os.O_RDONLY)
for i in range(5):
    fd = os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o600)
    try:
        print("wrote", os.pwrite(fd, bytes(8192), 0), flush=True)
        os.link(f"/proc/self/fd/{fd}", f"{folder}/{i}", src_dir_fd=at, follow_symlinks=True)
    except OSError as error:
        print(error.strerror, flush=True)
    os.close(fd)
print(os.getpid())
"""


def publish(folder: Path, *injections: Injection | str) -> subprocess.CompletedProcess[str]:
    """Run five publications under injections on a file system that has O_TMPFILE; `pid` says whose pid Popen saw."""
    with available():
        argv = strace_inject([sys.executable, "-c", PUBLISHER, str(folder)], *injections)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        out, error = process.communicate(timeout=60)
    if process.returncode == 0:
        assert out.splitlines()[-1] == str(process.pid), "the started process is not the worker itself"
    return subprocess.CompletedProcess(argv, process.returncode, out, error)


def test_strace_kills_just_before_the_third_link(tmp_path: Path) -> None:
    done = publish(tmp_path, Injection(PUBLISH_STEPS["link"].calls, "3", kill="SIGKILL"))
    assert done.returncode == -signal.SIGKILL
    assert sorted(os.listdir(tmp_path)) == ["0", "1"]
    assert done.stdout.count("wrote") == 3


def test_strace_fails_and_shortens_exact_calls(tmp_path: Path) -> None:
    writes = PUBLISH_STEPS["write"].calls
    done = publish(tmp_path, Injection(writes, "2", error="ENOSPC"), Injection("linkat", "3", error="EEXIST"))
    assert done.returncode == 0, done.stderr
    # The second publication makes no link, so the third link is the fourth one's.
    lines = [line for line in done.stdout.splitlines() if not line.isdigit()]
    wrote, full, taken = "wrote 8192", os.strerror(errno.ENOSPC), os.strerror(errno.EEXIST)
    assert lines == [wrote, full, wrote, wrote, taken, wrote]
    assert sorted(os.listdir(tmp_path)) == ["0", "2", "4"]
    other = tmp_path / "short"
    other.mkdir()
    assert "wrote 4096" in publish(other, Injection(writes, "1", returns=4096)).stdout
    assert (other / "0").stat().st_size == 0
    assert (other / "1").stat().st_size == 8192


def test_strace_stops_a_process_in_the_middle(tmp_path: Path) -> None:
    with available():
        injection = Injection("linkat", "2", kill="SIGSTOP")
        argv = strace_inject([sys.executable, "-c", PUBLISHER, str(tmp_path)], injection)
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            _, status = os.waitpid(process.pid, os.WUNTRACED)
            assert os.WIFSTOPPED(status)
            assert sorted(os.listdir(tmp_path)) == ["0", "1"]
            os.kill(process.pid, signal.SIGCONT)
            process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert len(os.listdir(tmp_path)) == 5


def test_a_senseless_injection_is_refused() -> None:
    for fields, message in (
        ({}, "one of"),
        ({"error": "EIO", "kill": "SIGKILL"}, "one of"),
        ({"error": "EOI"}, "errno"),
        ({"kill": "KILL"}, "signal"),
    ):
        with pytest.raises(ValueError, match=message):
            Injection("write", **fields)  # type: ignore[arg-type]


CHILD = """
import os, sys
held = []
for line in sys.stdin:
    try:
        if line.startswith("open"):
            held.append(os.open("/dev/null", os.O_RDONLY))
            print("ok", flush=True)
        else:
            fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
            print(os.pwrite(fd, bytes(8192), int(line)), flush=True)
            os.close(fd)
    except OSError as error:
        print(error.strerror, flush=True)
"""


def test_limits_on_a_running_process_and_their_lift(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", CHILD, str(tmp_path / "file")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as child:
        assert child.stdin is not None
        assert child.stdout is not None

        def ask(line: str) -> str:
            assert child.stdin is not None
            assert child.stdout is not None
            print(line, file=child.stdin, flush=True)
            return child.stdout.readline().strip()

        try:
            assert ask("open") == "ok"
            with fd_limit(2, child.pid):
                assert [ask("open") for _ in range(4)] == ["ok"] * 2 + [os.strerror(errno.EMFILE)] * 2
            assert ask("open") == "ok"
            with file_size_limit(12288, child.pid):
                assert [ask("0"), ask("8192"), ask("12288")] == ["8192", "4096", os.strerror(errno.EFBIG)]
            assert ask("12288") == "8192"
        finally:
            child.kill()


def test_a_limit_on_this_process_ends_with_the_block() -> None:
    with contextlib.ExitStack() as stack:
        with fd_limit(3):
            for _ in range(3):
                stack.callback(os.close, os.open("/dev/null", os.O_RDONLY))
            with pytest.raises(OSError) as caught:
                os.open("/dev/null", os.O_RDONLY)
        assert caught.value.errno == errno.EMFILE
        os.close(os.open("/dev/null", os.O_RDONLY))
    with subprocess.Popen(["sleep", "60"]) as fatal:
        try:
            with pytest.raises(FaultUnavailable, match="SIGXFSZ"), file_size_limit(1, fatal.pid):
                pass
        finally:
            fatal.kill()


def test_a_clock_steps_under_a_running_process() -> None:
    program = "import sys, time\nfor _ in sys.stdin: print(time.time(), time.monotonic(), flush=True)"
    with available(), SteppedClock() as clock:
        argv, env = [sys.executable, "-c", program], {**os.environ, **clock.environment}
        with subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            ahead = []
            for step in (0, 3600, -3600, 0):
                clock.step(step)
                print(file=child.stdin, flush=True)
                wall, monotonic = map(float, child.stdout.readline().split())
                ahead.append(round((wall - time.time()) / 60))
                assert abs(monotonic - time.monotonic()) < 60
    assert ahead == [0, 60, -60, 0]


# --- damage ---


@pytest.fixture
def blocks(tmp_path: Path) -> tuple[Path, Path]:
    mine, others = tmp_path / "mine.bin", tmp_path / "others.bin"
    for path in (mine, others):
        path.write_bytes(os.urandom(BLOCK))
        os.utime(path, ns=(10**18, 10**18))
    return mine, others


CHANGES: dict[str, Callable[[bytes, bytes], bool]] = {
    "bit_flip": lambda a, b: bits(a, b) == 1,
    "bit_flip_tail": lambda a, b: a[:-4096] == b[:-4096] and bits(a, b) == 1,
    "zero_page": lambda a, b: (
        [p == q for p, q in pages(a, b)].count(False) == 1 and bytes(4096) in [q for _, q in pages(a, b)]
    ),
    "garbage_page": lambda a, b: [p == q for p, q in pages(a, b)].count(False) == 1,
    "swap_pages": lambda a, b: (
        sorted(p for p, _ in pages(a, b)) == sorted(q for _, q in pages(a, b))
        and [p == q for p, q in pages(a, b)].count(False) == 2
    ),
    "zero_fill": lambda a, b: b == bytes(len(a)),
    "truncate": lambda a, b: 0 < len(b) < len(a) and a.startswith(b),
    "lose_last_page": lambda a, b: b == a[:-4096],
    "empty": lambda a, b: b == b"",
    "extend": lambda a, b: len(b) > len(a) and b.startswith(a),
}


def bits(a: bytes, b: bytes) -> int:
    return sum((x ^ y).bit_count() for x, y in zip(a, b, strict=True))


def pages(a: bytes, b: bytes) -> list[tuple[bytes, bytes]]:
    assert len(a) == len(b)
    return [(a[i : i + 4096], b[i : i + 4096]) for i in range(0, len(a), 4096)]


@pytest.mark.parametrize("how", CHANGES)
@pytest.mark.parametrize("seed", range(3))
def test_damage_to_content_is_as_described(blocks: tuple[Path, Path], how: str, seed: int) -> None:
    mine, others = blocks
    before, was, neighbour = mine.read_bytes(), mine.stat(), others.read_bytes()
    said = mangle(mine, how, seed)
    after, now = mine.read_bytes(), mine.stat()
    assert said
    assert CHANGES[how](before, after)
    assert (now.st_ino, now.st_mtime_ns, now.st_mode) == (was.st_ino, was.st_mtime_ns, was.st_mode)
    assert others.read_bytes() == neighbour
    assert sorted(os.listdir(mine.parent)) == ["mine.bin", "others.bin"]
    mine.write_bytes(before)
    assert mangle(mine, how, seed) == said
    assert mine.read_bytes() == after


def test_an_amount_sizes_cuts_and_growths(blocks: tuple[Path, Path]) -> None:
    mine, _ = blocks
    mangle(mine, "truncate", amount=5000)
    assert mine.stat().st_size == 5000
    mangle(mine, "extend", amount=7)
    assert mine.stat().st_size == 5007


def test_damage_among_files(blocks: tuple[Path, Path]) -> None:
    mine, others = blocks
    a, b = mine.read_bytes(), others.read_bytes()
    mangle(mine, "swap", other=others)
    assert (mine.read_bytes(), others.read_bytes()) == (b, a)
    mangle(mine, "wrong_key_copy", other=others)
    assert filecmp.cmp(mine, others, shallow=False)
    assert sorted(os.listdir(mine.parent)) == ["mine.bin", "others.bin"]
    mangle(mine, "symlink", other=others)
    assert mine.is_symlink()
    assert mine.read_bytes() == others.read_bytes()
    with pytest.raises(ValueError, match="takes another"):
        mangle(others, "swap")
    with pytest.raises(ValueError, match="'rot'; valid: bit_flip"):
        mangle(others, "rot")


def test_a_hard_link_has_the_other_block(blocks: tuple[Path, Path]) -> None:
    mine, others = blocks
    mangle(mine, "hard_link", other=others)
    assert mine.samefile(others)
    assert not mine.is_symlink()
    assert sorted(os.listdir(mine.parent)) == ["mine.bin", "others.bin"]


def test_a_device_reads_as_endless_zeros(blocks: tuple[Path, Path]) -> None:
    mine, _ = blocks
    try:
        mangle(mine, "device")
    except FaultUnavailable as unavailable:
        pytest.skip(str(unavailable))
    assert stat.S_ISCHR(mine.lstat().st_mode)
    try:
        with mine.open("rb") as file:
            assert file.read(100_000) == bytes(100_000)
    except PermissionError:
        pytest.skip("device nodes cannot be opened on this file system")


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ("directory", stat.S_IFDIR),
        ("fifo", stat.S_IFIFO),
        ("socket", stat.S_IFSOCK),
        ("symlink_dangling", stat.S_IFLNK),
        ("symlink_loop", stat.S_IFLNK),
        ("remove", 0),
    ],
)
def test_damage_by_another_kind_of_file(blocks: tuple[Path, Path], how: str, kind: int) -> None:
    mine, _ = blocks
    mangle(mine, how)
    assert (stat.S_IFMT(mine.lstat().st_mode) if os.path.lexists(mine) else 0) == kind
    if how.startswith("symlink"):
        with pytest.raises(OSError) as caught:
            mine.read_bytes()
        assert caught.value.errno == (errno.ELOOP if how == "symlink_loop" else errno.ENOENT)
    assert sorted(os.listdir(mine.parent)) == ["mine.bin", "others.bin"][how == "remove" :]


def test_an_unreadable_file_is_no_fault_for_root(blocks: tuple[Path, Path]) -> None:
    mine, _ = blocks
    if os.geteuid() == 0:
        with pytest.raises(FaultUnavailable, match="root"):
            mangle(mine, "unreadable")
    else:
        mangle(mine, "unreadable")
        assert outcome("read", mine) == "EACCES"


def test_every_damage_is_tested() -> None:
    here = {*CHANGES, "swap", "wrong_key_copy", "symlink", "unreadable"}
    here |= {"hard_link", "device", "directory", "fifo", "socket", "symlink_dangling", "symlink_loop", "remove"}
    assert here == set(DAMAGES)


def test_stale_temps_look_alike_and_touch_nothing(tmp_path: Path) -> None:
    block = tmp_path / "00ff.bin"
    block.write_bytes(b"block")
    made = stale_temps(tmp_path, block.name, 4096)
    assert sorted(os.listdir(tmp_path)) == sorted(["00ff.bin", *(path.name for path in made)])
    assert block.read_bytes() == b"block"
    assert {path.stat().st_size for path in made if path.is_file()} == {0, 2048, 4096}
    assert any(path.is_dir() for path in made)


def test_hostile_configs_differ_from_the_valid_one() -> None:
    valid = json.dumps({"model_name": "m", "version": 1, "groups": [{"tokens": 16}]}).encode()
    seen = list(hostile_configs(valid))
    assert len({config.name for config in seen}) == len(seen) > 40
    assert len({config.content for config in seen}) > len(seen) - 5
    assert valid not in [config.content for config in seen]
    assert {"torn", "deeply nested", "version missing", "model_name '../outside'"} <= {c.name for c in seen}


# --- the table ---


def test_the_table_is_whole() -> None:
    for fault in FAULTS.values():
        assert fault.guarantees, fault.name
        assert set(fault.guarantees) <= set(GUARANTEES), fault.name
        assert (fault.mechanism == "rule") == bool(fault.rules), fault.name
        assert (fault.mechanism == "injection") == bool(fault.injections), fault.name
        assert (fault.mechanism == "damage") == (fault.damage in DAMAGES), fault.name
        assert all(hasattr(errno, reason) for reason in fault.reasons), fault.name
        assert f"| {fault.name} |" in describe_faults()
    assert {fault.damage for fault in FAULTS.values()} == {"", *DAMAGES}
    assert set(GUARANTEES) == {name for fault in FAULTS.values() for name in fault.guarantees}


def test_every_injection_of_the_table_is_understood_by_strace(tmp_path: Path) -> None:
    injections = [i for fault in FAULTS.values() for i in fault.injections if not i.kill]
    assert injections
    for injection in injections:
        done = publish(tmp_path, injection)
        assert done.returncode == 0, done.stderr
    kills = [i for fault in FAULTS.values() for i in fault.injections if i.kill]
    with available():
        for injection in kills:
            argv = strace_inject(["true"], injection)
            assert subprocess.run(argv, capture_output=True).returncode == 0, injection
