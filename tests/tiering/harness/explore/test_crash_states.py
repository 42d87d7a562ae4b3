"""What a crash may leave of a few steps, by the rules of each kind of file system; and a recording of real calls.

A recording that leads to the files that are there, step by step, has understood every call.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.explore.crash_states import PAGE_BYTES, RULES, CrashStates, Tree, materialise, tree_at
from harness.explore.recording import ROOT, Recording, Step, recorded_python
from harness.faults.rules import FaultUnavailable
from kvtier.ops.catalog import folders
from kvtier.ops.gc import collect

NEW = bytes(range(1, 129)) * 64
"""Two pages, no zero byte."""
OLD = b"o" * len(NEW)


def steps(*said: Step) -> list[Step]:
    return [step._replace(call=step.call or step.kind) for step in said]


def contents(base: Tree, done: list[Step], rules: str, name: str = "a") -> set[bytes | str | None]:
    """What is under a name in any state: bytes, or "nothing"."""
    return {state.files.get(name, "nothing") for state in CrashStates(base, done, rules).states}


WRITE = (Step("create", 1, ROOT, "t"), Step("write", 1, data=NEW))
RENAME = Step("rename", 1, ROOT, "t", (ROOT, "a"))
HALF, ZEROS = NEW[:PAGE_BYTES], bytes(len(NEW))


def test_a_name_may_come_before_its_bytes() -> None:
    found = contents(Tree(), steps(*WRITE, RENAME), "ordered")
    zeros = bytes(PAGE_BYTES)
    assert found == {"nothing", NEW, b"", HALF, zeros, ZEROS, HALF + zeros, zeros + NEW[PAGE_BYTES:]}


def test_without_order_of_data_a_page_may_be_another_files() -> None:
    base = Tree({(ROOT, "b"): 9}, {9: OLD})
    found = contents(base, steps(*WRITE, RENAME), "writeback")
    assert {OLD, HALF + OLD[PAGE_BYTES:], OLD[:PAGE_BYTES]} < found
    assert found > contents(base, steps(*WRITE, RENAME), "ordered")
    assert OLD not in contents(base, steps(*WRITE, RENAME), "ordered")


@pytest.mark.parametrize("rules", RULES)
def test_a_barrier_before_the_name_keeps_the_bytes(rules: str) -> None:
    assert contents(Tree(), steps(*WRITE, Step("sync", 1), RENAME), rules) == {"nothing", NEW}


def test_a_direct_write_comes_before_later_names_where_names_are_ordered() -> None:
    direct = steps(WRITE[0], WRITE[1]._replace(direct=True), RENAME)
    assert contents(Tree(), direct, "ordered") == contents(Tree(), direct, "writeback") == {"nothing", NEW}
    assert ZEROS in contents(Tree(), direct, "unordered")


@pytest.mark.parametrize("rules", RULES)
def test_a_name_is_certain_when_its_folder_was_waited_for(rules: str) -> None:
    done = steps(*WRITE, Step("sync", 1), RENAME, Step("sync", ROOT), Step("mark", call="stored 7"))
    owing = [state.files for state in CrashStates(Tree(), done, rules).states if 7 in state.owed]
    assert owing == [{"a": NEW}]
    careless = CrashStates(Tree(), [step for step in done if step.inode != ROOT], rules).states
    assert any("a" not in state.files for state in careless if 7 in state.owed)


@pytest.mark.parametrize("rules", RULES)
def test_a_rename_replaces_the_old_bytes_at_once(rules: str) -> None:
    base = Tree({(ROOT, "a"): 9}, {9: OLD})
    assert contents(base, steps(*WRITE, Step("sync", 1), RENAME), rules) == {OLD, NEW}


def test_a_barrier_of_a_new_file_keeps_earlier_names_only_where_names_are_ordered() -> None:
    done = steps(
        Step("mkdir", 2, ROOT, "d"), Step("create", 1, 2, "a"), Step("write", 1, data=NEW), Step("sync", 1),
        Step("sync", 2), Step("mark", call="stored 1"),
    )  # fmt: skip
    for rules, safe in (("ordered", True), ("writeback", True), ("unordered", False)):
        owing = [state.files.get("d/a") for state in CrashStates(Tree(), done, rules).states if 1 in state.owed]
        assert (set(owing) == {NEW}) == safe, rules


def test_without_order_a_later_name_may_survive_an_earlier_one() -> None:
    done = steps(Step("mkdir", 1, ROOT, "first"), Step("mkdir", 2, ROOT, "second"))
    found = {rules: [set(s.files) for s in CrashStates(Tree(), done, rules).states] for rules in RULES}
    assert {"second"} in found["unordered"]
    assert found["ordered"] == found["writeback"] == [set(), {"first"}, {"first", "second"}]


def test_a_size_that_was_set_first_is_never_cut() -> None:
    done = steps(WRITE[0], Step("truncate", 1, offset=len(NEW)), WRITE[1], RENAME)
    base = Tree({(ROOT, "b"): 9}, {9: OLD})
    for rules in ("ordered", "writeback"):
        found = contents(base, done, rules) - {"nothing"}
        assert {len(content) for content in found if isinstance(content, bytes)} == {len(NEW)}, rules
        stale = base.contents[9]
        assert (stale in found) == (rules == "writeback"), "its place on the device is given when it is written"


def test_bytes_over_bytes_are_old_or_new() -> None:
    base = Tree({(ROOT, "a"): 9}, {9: OLD})
    found = contents(base, steps(Step("write", 9, data=NEW)), "writeback")
    assert found == {OLD, NEW, HALF + OLD[PAGE_BYTES:], OLD[:PAGE_BYTES] + NEW[PAGE_BYTES:]}


def test_a_state_is_made_as_it_is(tmp_path: Path) -> None:
    done = steps(Step("mkdir", 2, ROOT, "d"), Step("create", 1, 2, "a"), Step("write", 1, offset=3, data=b"x"))
    states = CrashStates(Tree(), done, "ordered").states
    for number, state in enumerate(states):
        (folder := tmp_path / str(number)).mkdir()
        materialise(state, folder)
        assert tree_at(str(folder)) == state.files
    assert {"d": None, "d/a": b"\0\0\0x"} in [state.files for state in states]


PROGRAM = """
import os, sys, threading
root = sys.argv[1]
os.chdir(root)
with open("appended", "wb") as file: file.write(b"first")
with open("appended", "ab") as file: file.write(b" second")
with open("appended", "r+b", buffering=0) as file:
    file.read(2); file.write(b"R"); file.seek(0, 2); file.write(b"!"); file.truncate(9)
os.mkdir("d"); os.makedirs("d/e/f")
d = os.open("d", os.O_RDONLY)
unnamed = os.open("e", os.O_TMPFILE | os.O_WRONLY, dir_fd=d)
os.pwritev(unnamed, [b"one", b"two"], 2)
os.fdatasync(unnamed)
os.link(f"/proc/self/fd/{unnamed}", "linked", src_dir_fd=unnamed, dst_dir_fd=d, follow_symlinks=True)
os.write(unnamed, b"0")
os.close(unnamed)
os.rename("d/linked", "moved"); os.link("moved", "d/e/again")
with open("gone", "w") as file: file.write("x")
os.unlink("gone"); os.rmdir("d/e/f"); os.fsync(d)
with open("moved", "wb") as file: os.writev(file.fileno(), [b"cut ", b"and written"])
def write(number):
    for i in range(20):
        with open(f"t{number}-{i}", "wb", buffering=0) as file:
            for _ in range(3): file.write(b"%d" % i)
        if i % 2: os.rename(f"t{number}-{i}", f"d/t{number}-{i}")
threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
with open("/dev/null", "wb") as file: file.write(b"elsewhere")
"""


def recorded(tmp_path: Path, program: str) -> Recording:
    (root := tmp_path / "root").mkdir()
    log = tmp_path / "calls.txt"
    try:
        python = recorded_python(sys.executable, log)
    except FaultUnavailable as reason:
        pytest.skip(str(reason))
    subprocess.run([python, "-c", program, str(root)], check=True)
    with open(log, "rb") as lines:
        return Recording(lines, str(root))


def test_a_recording_leads_to_the_files_that_are_there(tmp_path: Path) -> None:
    recording = recorded(tmp_path, PROGRAM)
    assert not recording.unknown
    assert Tree().after(recording.steps).files() == tree_at(str(tmp_path / "root"))
    kinds = {step.kind for step in recording.steps}
    assert kinds == {"create", "mkdir", "link", "unlink", "rename", "write", "truncate", "sync"}


def test_a_recording_says_what_it_cannot_follow(tmp_path: Path) -> None:
    program = (
        "import mmap, os, sys; os.chdir(sys.argv[1]); f = open('a', 'w+b'); f.truncate(4096)\n"
        "mmap.mmap(f.fileno(), 4096)[0] = 1; os.symlink('a', 'b')"
    )
    assert recorded(tmp_path, program).unknown == ["a file is mapped to be written", "symlink is not followed"]


STORES = """
import sys
from harness.adapters.base import TierSetup
from harness.adapters.kvtier import KvtierAdapter
from harness.core import content
options = {"io": "buffered"}
setup = TierSetup(sys.argv[1], 8192, 3, n_read_threads=1, n_write_threads=1, options=options)
tier = KvtierAdapter(setup)
keys = tier.keys(range(48))
for slot, key in enumerate(keys): content.fill(tier.view.cast("B")[slot * 8192 : (slot + 1) * 8192], key)
for slot, key in enumerate(keys):
    tier.request_started(str(slot)); tier.submit_store(slot, [key], [slot], str(slot)); tier.drain()
tier.close()
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="images are mounted by root alone")
@pytest.mark.parametrize(("kind", "rules"), [("ext4 ordered", "ordered"), ("ext4 writeback", "writeback")])
def test_what_a_real_file_system_keeps_is_among_the_states(kind: str, rules: str) -> None:
    """The disk is cloned again and again while ext4 writes back, as in the scenario `power_loss`."""
    from harness.scenarios import power_loss as power

    try:
        with power._cloning_disk() as disk:
            image = disk / "image"
            with open(image, "wb") as file:
                file.truncate(power.IMAGE_BYTES)
            power.run_command(kind, *power.FILE_SYSTEMS[kind][0], str(image))
            with power._mounted(image, kind) as folder:
                (root := folder / "root").mkdir()
                os.sync()
                log = disk / "calls.txt"
                subprocess.run([recorded_python(sys.executable, log), "-c", STORES, str(root)], check=True)
                seen = []
                deadline = time.monotonic() + 60
                while time.monotonic() < deadline and (not seen or seen[-1] != tree_at(str(root))):
                    power._clone(image, clone := disk / "clone")
                    with power._mounted(clone, kind) as found:
                        if (tree := tree_at(str(found / "root"))) not in seen:
                            seen.append(tree)
                    clone.unlink()
                with open(log, "rb") as lines:
                    recording = Recording(lines, str(root))
    except FaultUnavailable as reason:
        pytest.skip(str(reason))
    allowed = [state.files for state in CrashStates(Tree(), recording.steps, rules).states]
    assert len(seen) >= 2, seen
    for tree in seen:
        assert tree in allowed, {path: content and len(content) for path, content in tree.items()}


def test_gc_removes_what_a_crash_leaves_while_a_root_is_opened(tmp_path: Path) -> None:
    """Also of `BlockIO.probe`, whose temp files lie beside the manifest."""
    recording = recorded(tmp_path, STORES.partition("keys = ")[0] + "tier.close()")
    explored = CrashStates(Tree(), recording.steps, "ordered")
    left = 0
    for number, state in enumerate(explored.states):
        (folder := tmp_path / str(number)).mkdir()
        materialise(state, folder)
        for path in folder.rglob("*"):
            os.utime(path, (0, 0))
        temps = [path for path in state.files if path.endswith(".tmp")]
        left += len(temps)
        removed = sum(n for found in folders(str(folder)) for n in collect(found))
        assert removed == len(temps), state.what
        assert not list(folder.rglob("*.tmp")), state.what
    assert left >= 2, "the probe makes temp files"
