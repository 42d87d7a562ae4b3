"""Options and files that cannot work: each is one sentence with the value, before any process starts."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.adapters import TIERS, UnknownTier, adapter_class
from harness.core.inputs import UsageError, absolute_path, check_number, check_output, check_path, read_file
from harness.core.request_traces import TraceError, read_trace
from harness.scenarios import scenarios
from harness.scenarios.base import check_tier
from harness.scenarios.capacity import CapacityOptions
from harness.scenarios.load import LoadOptions
from harness.scenarios.option_declaration import declarations
from harness.scenarios.starvation import StarvationOptions

REPOSITORY = Path(__file__).parents[4]
DECLARED = [(scenario, declared) for scenario in scenarios() for declared in declarations(scenario.options)]


@pytest.fixture
def strange(tmp_path: Path) -> Iterator[Path]:
    """A folder with one of each kind of file that is no regular one."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket"))
        yield tmp_path


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("fifo", "is a FIFO; it must be a regular file"),
        ("folder", "is a directory; it must be a regular file"),
        ("zero", "is a device; it must be a regular file"),
        ("socket", "cannot be read: it is a socket"),
        ("loop", "cannot be read: Too many levels of symbolic links"),
        ("missing", "cannot be read: No such file or directory"),
    ],
)
@pytest.mark.timeout(10)
def test_only_regular_files_are_read_and_nothing_waits(strange: Path, name: str, what: str) -> None:
    for read in (lambda path: read_file(path, 100), read_trace):
        with pytest.raises((UsageError, TraceError)) as caught:
            read(strange / name)  # type: ignore[operator]
        assert str(caught.value) == f"'{strange / name}' {what}"


def test_a_file_is_read_to_a_stated_limit_also_while_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "growing"
    path.write_bytes(b"x" * 100)
    assert read_file(path, 100) == b"x" * 100
    with pytest.raises(UsageError, match="holds more than 99 bytes, the largest that is read"):
        read_file(path, 99)
    assert b"Name:" in read_file("/proc/self/status", 1 << 20), "files without a size"
    with pytest.raises(UsageError, match="more than 10 bytes"):
        read_file("/proc/self/status", 10)
    stop = threading.Event()

    def grow() -> None:
        with open(path, "ab", buffering=0) as file:
            while not stop.is_set():
                file.write(b"y" * 4096)

    writer = threading.Thread(target=grow)
    writer.start()
    try:
        assert len(read_file(path, 1 << 30)) <= path.stat().st_size
    finally:
        stop.set()
        writer.join()


@pytest.mark.parametrize(("scenario", "declared"), DECLARED, ids=lambda value: getattr(value, "name", None))
def test_each_option_checks_its_type_and_its_bounds(scenario: Any, declared: Any) -> None:
    def refusal(value: Any) -> str:
        with pytest.raises(UsageError) as caught:
            scenario.options(**{declared.name: value})
        assert "\n" not in str(caught.value)
        return str(caught.value)

    name = "--" + declared.name.replace("_", "-")
    if declared.kind in (int, float):
        bounds = f"from {declared.low:g} to"
        assert declared.low <= declared.high < 2**61
        for value in (float("nan"), float("inf"), float("-inf")):
            assert f"{name} is {value}; it takes a" in refusal(value)
            assert declared.kind is int or bounds in refusal(value)
        assert f"{name} is {declared.high + 1}; it must be at most" in refusal(declared.high + 1)
        assert f"{name} is {declared.low - 1}; it must be at least" in refusal(declared.low - 1)
        for value in (True, "7 parsecs" if declared.is_size else "7", [1], {}):
            assert refusal(value).startswith(f"{name} is {value!r}; it takes a ")
    elif declared.kind is bool:
        assert refusal("yes") == f"{name} is 'yes'; valid choices: true, false"
    elif declared.is_list:
        assert refusal("x") == f"{name} is 'x'; it takes a list of texts"
        assert refusal([""]).startswith(f"{name} is ''")
        assert refusal([3]).startswith(f"{name} is 3; it takes")
    else:
        assert refusal("") == f"{name} is '', which is empty; it takes a {'path' if declared.is_path else 'value'}"
        assert refusal("a\0b").startswith(f"{name} is 'a\\x00b', which contains a NUL byte")
        assert refusal(3).startswith(f"{name} is 3; it takes")


def test_paths_become_absolute_and_a_tilde_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert LoadOptions(root_dir="~/kv", trace="t.jsonl").root_dir == f"{tmp_path}/kv"
    assert LoadOptions(root_dir="kv").root_dir == f"{tmp_path}/kv"
    assert LoadOptions(trace="sub/t.jsonl").trace == f"{tmp_path}/sub/t.jsonl"
    with pytest.raises(UsageError, match=r"--root-dir is '~nosuchuser/kv'; there is no home folder of '~nosuchuser'"):
        LoadOptions(root_dir="~nosuchuser/kv")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(UsageError, match="--root-dir is 'kv', and the working directory is gone; give a full path"):
        LoadOptions(root_dir="kv")
    assert absolute_path("--x", "/a") == "/a"
    assert check_path("--x", "/~") == "/~"


def test_what_is_written_replaces_regular_files_alone(strange: Path) -> None:
    check_output("--output", strange / "new.html")
    (strange / "old.html").write_text("old")
    check_output("--output", strange / "old.html")
    for name, what in (("fifo", "a FIFO"), ("folder", "a directory"), ("zero", "a device"), ("socket", "a socket")):
        with pytest.raises(
            UsageError, match=f"--output is '{strange / name}', which is {what}; it takes a file's path"
        ):
            check_output("--output", strange / name)
    with pytest.raises(UsageError, match="which cannot be used: Too many levels"):
        check_output("--output", strange / "loop")
    assert (strange / "old.html").read_text() == "old"
    assert stat.S_ISFIFO((strange / "fifo").stat().st_mode)


def test_numbers_are_finite_and_refused_with_their_bounds() -> None:
    check_number("--n", 3, True, 1, 5)
    check_number("--n", 3, False, 1, 5)
    with pytest.raises(UsageError, match=r"--n is nan; it takes a finite number from 0\.5 to 1e\+06"):
        check_number("--n", float("nan"), False, 0.5, 1e6)
    with pytest.raises(UsageError, match=r"--n is 2\.0; it takes a whole number"):
        check_number("--n", 2.0, True, 1, 5)


@pytest.mark.parametrize(
    ("tier", "options", "words"),
    [
        ("kvtier", ["nosuch=1"], "unknown option 'nosuch'; valid options: root_dir, block_bytes,"),
        ("kvtier", ["io=sideways"], "io is 'sideways'; valid choices: auto, direct, buffered"),
        ("kvtier", ["integrity=3"], "integrity is 3; valid choices: verify, require, off"),
        ("kvtier", ["n_read_threads=0"], "n_read_threads is not the tier's to choose here; give --read-threads"),
        ("kvtier", ["root_dir=/nowhere"], "root_dir is not the tier's to choose here; give --root-dir"),
        ("kvtier-stack", ["block_bytes=4096"], "block_bytes is not the tier's to choose here; give --block-bytes"),
        ("kvtier", ['thread_nice="four"'], "thread_nice is 'four'; it takes a whole number"),
        ("kvtier", ["cpu_chunks=4"], "unknown option 'cpu_chunks'"),
        ("kvtier", ["hung_seconds=-1"], "hung_seconds is -1"),
        ("kvtier", ["capacity={}"], "capacity: no limit is set"),
        ("kvtier-stack", ["cpu_chunks=0"], "num_chunks is 0; it must be at least 1"),
        ("kvtier-stack", ["cpu_chunks=lots"], "num_chunks is 'lots'; it takes a whole number"),
        ("memory", ["nosuch=1"], "unknown option 'nosuch'; the reference tier takes none"),
        ("vllm", ["nosuch=1"], "unknown option nosuch; the vllm tier takes c_extension,"),
        ("vllm", ["c_extension=maybe"], "c_extension is 'maybe'; valid choices: true, false"),
        ("vllm", ["seed_random=1.5"], "seed_random is 1.5; it takes a whole number, or null"),
        ("tests.tiering.harness.broken.tiers:CannotCheck", ["a=1"], "cannot use its options: KeyError: 'needed'"),
    ],
)
def test_options_that_a_tier_refuses_are_refused_before_it_is_started(
    tier: str, options: list[str], words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        check_tier(LoadOptions(tier=tier, tier_option=tuple(options)))
    given = " ".join(f"--tier-option {option}" for option in options)
    assert str(caught.value).startswith(f"tier '{tier}' refuses {given}: ")
    assert words in str(caught.value)


def test_options_that_a_tier_takes_are_not_refused() -> None:
    check_tier(LoadOptions(tier="kvtier", tier_option=("io=buffered", 'capacity={"max_bytes": 1000000}')))
    check_tier(LoadOptions(tier="kvtier-stack", tier_option=("cpu_chunks=8",)))
    check_tier(LoadOptions(tier="vllm", tier_option=("seed_random=null", "c_extension=false")))
    check_tier(LoadOptions(tier="tests.tiering.harness.broken.tiers:Leaks", tier_option=()))
    # The scenario's own limit completes the tier's option; threads left to the scenario are not the tier's affair.
    check_tier(CapacityOptions(tier="kvtier", tier_option=('capacity={"high_water": 0.6, "low_water": 0.3}',)))
    check_tier(StarvationOptions(tier="kvtier", write_threads=0))


def test_one_option_of_a_tier_is_given_once() -> None:
    with pytest.raises(UsageError, match="--tier-option io is given twice; give it once"):
        LoadOptions(tier_option=("io=auto", "io=direct"))


def test_mutants_are_tiers_by_the_names_of_the_page() -> None:
    names = re.findall(r"^\| (\w+) \|", (REPOSITORY / "docs/mutants.md").read_text(), re.MULTILINE)[1:]
    assert len(names) > 30
    for name in names:
        found = adapter_class(name)
        assert found.__name__ == name
        assert found.__module__.startswith("harness.mutants.")


@pytest.mark.parametrize(
    ("tier", "words"),
    [
        ("kvteir", "tier is 'kvteir' (did you mean 'kvtier'?); valid choices: kvtier, kvtier-stack, reference, "),
        ("kvteir", ", vllm, a mutant's name"),
        ("ReturnStaleSlots", "(did you mean 'ReturnsStaleSlots'?)"),
        ("zzz", "tier is 'zzz'; valid choices: kvtier,"),
        ("zzz", "`kvtier-harness list` has all names"),
        (":Class", "module:Class takes a module's dotted name, a colon and a class's name"),
        ("module:", "module:Class takes"),
        ("..up:Class", "module:Class takes"),
        ("a/b.py:Class", "module:Class takes"),
        ("no_such:Tier", "there is no module 'no_such'"),
        ("json:JSONDecoder", "json has no Adapter class named 'JSONDecoder'"),
        ("json:Nothing", "json has no Adapter class named 'Nothing'"),
        ("harness.adapters.base:Adapter", "Adapter lacks close, drain, keys, lookup"),
        ("bad_syntax:Tier", "module 'bad_syntax' cannot be imported: SyntaxError: "),
        ("bad_import:Tier", "module 'bad_import' cannot be imported: ZeroDivisionError: division by zero"),
        ("bad_exit:Tier", "module 'bad_exit' cannot be imported: SystemExit: 3"),
    ],
)
def test_an_unknown_tier_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tier: str, words: str
) -> None:
    (tmp_path / "bad_syntax.py").write_text("def (:\n")
    (tmp_path / "bad_import.py").write_text("1 / 0\n")
    (tmp_path / "bad_exit.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UnknownTier) as caught:
        adapter_class(tier)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_known_tier_has_its_class() -> None:
    for name in TIERS:
        assert adapter_class(name).name == name


def test_a_trace_that_is_no_prefix_tree_is_explained_with_both_lines(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    common = {"timestamp": 0, "input_length": 1, "output_length": 1}
    path.write_text("".join(json.dumps({**common, "hash_ids": ids}) + "\n" for ids in ([7], [1, 2], [1, 2, 3], [1, 3])))
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert str(caught.value) == (
        f"{path}, line 4: hash_ids must form a prefix tree, in which an id always follows the same id: "
        "3 follows 1 here, but follows 2 in line 3 (docs/traces.md)"
    )


def test_the_page_on_traces_shows_a_trace_that_is_read(tmp_path: Path) -> None:
    (example,) = re.findall(r"```jsonl\n(.*?)```", (REPOSITORY / "docs/traces.md").read_text(), re.DOTALL)
    (tmp_path / "trace.jsonl").write_text(example)
    assert len(read_trace(tmp_path / "trace.jsonl")) >= 3
