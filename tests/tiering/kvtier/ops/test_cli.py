"""The command `kvtier`, often as a process of its own: exit code 0 means that it has seen all of a root."""

from __future__ import annotations

import json
import mmap
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import pytest
from click.testing import CliRunner

from kvtier.base import ReqContext, TransferJob
from kvtier.config import FsTierConfig, RunConfig
from kvtier.factory import open_fs_tier
from kvtier.fs.trailer import read_trailer
from kvtier.hashing import BlockHash, OffloadKey, make_offload_key
from kvtier.ops import unaccounted_files
from kvtier.ops.cli import main

BLOCK = 4096
FILE = BLOCK + 4096
BLOCKS = 10
COMMAND = [sys.executable, "-c", "from kvtier.ops.cli import main; main()"]
EVICT = ("evict", "--max-bytes", "1GB")
COMMANDS = [("inspect",), ("verify",), EVICT, (*EVICT, "--dry-run")]
FAIL, INCONCLUSIVE, USAGE = 1, 2, 64
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


class Result(NamedTuple):
    code: int
    out: str
    err: str


def kvtier(root: Path, command: Sequence[str]) -> Result:
    """In this process, for speed."""
    name, *options = command
    result = CliRunner().invoke(main, [name, str(root), *options])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return Result(result.exit_code, result.stdout, result.stderr)


def kvtier_process(root: Path, command: Sequence[str], wrapper: Sequence[str] = ()) -> Result:
    name, *options = command
    done = subprocess.run([*wrapper, *COMMAND, name, str(root), *options], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr, done.stderr
    return Result(done.returncode, done.stdout, done.stderr)


def key(number: int) -> OffloadKey:
    return make_offload_key(BlockHash(bytes([number]) * 32), 0)


class Tier:
    """What an engine leaves below a root: `blocks` blocks of one model."""

    def __init__(self, root: Path, model: str = "org/model", blocks: int = BLOCKS, **run: Any) -> None:
        view = memoryview(mmap.mmap(-1, max(1, blocks) * BLOCK)).cast("B", (max(1, blocks), BLOCK))
        config = FsTierConfig(str(root), BLOCK, n_read_threads=1, n_write_threads=1)
        manager = open_fs_tier(config, RunConfig(model, **run), view)
        self.mapper = manager.file_mapper
        if blocks:
            keys = tuple(map(key, range(blocks)))
            manager.submit_store(TransferJob(1, keys, tuple(range(blocks)), False, ReqContext("r")))
            manager.drain_jobs()
            assert all(result.success for result in manager.get_finished_jobs())
        manager.shutdown()
        self.base, self.blocks = Path(self.mapper.base_path), Path(self.mapper.blocks_path)
        self.config = Path(self.mapper.config_path)

    def path(self, number: int) -> Path:
        return Path(self.mapper.get_file_name(key(number)))


@pytest.fixture
def tier(tmp_path: Path) -> Tier:
    return Tier(tmp_path)


@pytest.fixture(params=COMMANDS, ids=" ".join)
def command(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return request.param  # type: ignore[no-any-return]


# --- exit code 0 ---


def test_a_root_in_use_exits_with_0(tmp_path: Path, tier: Tier, command: tuple[str, ...]) -> None:
    Tier(tmp_path, "other", blocks=0)
    (tmp_path / "lost+found").mkdir(0o700)
    (tmp_path / "lost+found" / "#1").write_bytes(b"x")
    assert kvtier_process(tmp_path, command).code == 0
    assert kvtier_process(tmp_path, (*command, "--json")).code == 0


def test_a_root_that_an_engine_has_opened_exits_with_0_before_the_first_block(
    tmp_path: Path, command: tuple[str, ...]
) -> None:
    Tier(tmp_path, blocks=0)
    result = kvtier_process(tmp_path, command)
    assert (result.code, result.err) == (0, "")


@pytest.mark.parametrize("name", ["list_root", "bases", "folders"])
def test_a_folder_that_an_engine_adds_during_the_walk_is_not_unowned(
    tmp_path: Path, tier: Tier, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(unaccounted_files, name)

    def slow(*arguments: Any) -> list[Any]:
        found = list(real(*arguments))
        monkeypatch.setattr(unaccounted_files, name, real)
        Tier(tmp_path, "newcomer")
        return found

    monkeypatch.setattr(unaccounted_files, name, slow)
    assert kvtier(tmp_path, ("inspect",)).code == 0
    assert len(os.listdir(tmp_path)) == 4, "the other engine added its folders"


# --- what cannot be read ---


def not_json(tier: Tier) -> None:
    tier.config.write_text("{")


def no_object(tier: Tier) -> None:
    tier.config.write_text("[1]")


def link(tier: Tier) -> None:
    tier.config.rename(tier.base / "elsewhere.json")
    tier.config.symlink_to(tier.base / "elsewhere.json")


def fifo(tier: Tier) -> None:
    tier.config.unlink()
    os.mkfifo(tier.config)


def edited(tier: Tier) -> None:
    tier.config.write_text(json.dumps({**json.loads(tier.config.read_text()), "dtype": "float8"}))


def missing(tier: Tier) -> None:
    tier.config.unlink()


def no_base(tier: Tier) -> None:
    shutil.rmtree(tier.base)


DAMAGES = {
    not_json: "is not JSON",
    no_object: "holds no JSON object",
    link: "is a symbolic link",
    fifo: "is not JSON",
    edited: "does not belong to the name of its folder: it was edited, or is not kvtier's",
    missing: "is missing",
    no_base: "is missing",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_config_is_named_with_the_bytes_of_its_folder(
    tmp_path: Path, tier: Tier, damage: Callable[[Tier], None]
) -> None:
    damage(tier)
    for command in COMMANDS:
        result = kvtier(tmp_path, command)
        assert result.code == INCONCLUSIVE, command
        assert f"{tier.config} {DAMAGES[damage]}\n" in result.out
        assert f"belong to no readable folder: in {tier.blocks} (80 KiB)" in result.out
        assert f"when no engine uses the folder: kvtier remove {tmp_path} {tier.base.name}\n" in result.out
    assert not (tmp_path / ".kvtier-evictor").exists(), "nothing is written where nothing is known"
    assert len(list(tier.blocks.rglob("*.bin"))) == BLOCKS


def test_a_damaged_folder_does_not_stop_work_on_the_others(tmp_path: Path, tier: Tier) -> None:
    damaged = Tier(tmp_path, "other")
    not_json(damaged)
    result = kvtier(tmp_path, ("inspect",))
    assert result.code == INCONCLUSIVE
    assert "org/model, rank 0" in result.out
    result = kvtier(tmp_path, ("verify",))
    assert (result.code, f"{BLOCKS} blocks: {BLOCKS} right\n" in result.out) == (INCONCLUSIVE, True)
    result = kvtier(tmp_path, ("evict", "--max-bytes", str(5 * FILE)))
    assert result.code == INCONCLUSIVE
    assert "evicted 6 blocks" in result.out
    assert result.out.endswith("whether the root is within its limits is not known\n")
    result = kvtier(tmp_path, ("evict", "--max-bytes", str(2 * FILE), "--dry-run"))
    assert (result.code, "would evict" in result.out, str(damaged.config) in result.out) == (FAIL, True, True)
    next(tier.blocks.rglob("*.bin")).write_bytes(b"?")
    assert kvtier(tmp_path, ("verify",)).code == FAIL, "a corrupt block outweighs what could not be read"


def test_json_carries_the_same_facts(tmp_path: Path, tier: Tier, command: tuple[str, ...]) -> None:
    damaged = Tier(tmp_path, "other")
    not_json(damaged)
    result = kvtier(tmp_path, (*command, "--json"))
    assert (result.code, result.err) == (INCONCLUSIVE, "")
    seen = json.loads(result.out.splitlines()[-1])["coverage"]
    assert seen["unreadable"] == [{"path": str(damaged.config), "problem": "is not JSON"}]
    unowned = seen["unowned"]
    assert (seen["complete"], unowned["all_counted"]) == (False, True)
    assert unowned["largest"][str(damaged.blocks)] == BLOCKS * FILE
    hidden = [path for folder in (damaged.base, damaged.blocks) for path in folder.rglob("*") if path.is_file()]
    assert (unowned["files"], unowned["bytes"]) == (len(hidden), sum(path.stat().st_size for path in hidden))


def test_a_rank_that_its_config_does_not_have_is_named(tmp_path: Path, command: tuple[str, ...]) -> None:
    tier = Tier(tmp_path)
    agnostic = open_fs_tier(
        FsTierConfig(str(tmp_path), BLOCK),
        RunConfig("a", parallel_agnostic=True),
        memoryview(bytearray(BLOCK)).cast("B", (1, BLOCK)),
    )
    agnostic.shutdown()
    stray = Path(agnostic.file_mapper.base_path + "_r1")
    shutil.copytree(tier.blocks, stray)
    result = kvtier(tmp_path, command)
    assert result.code == INCONCLUSIVE
    assert f"{stray} is no rank of the run configuration in {agnostic.file_mapper.config_path}\n" in result.out


def test_a_damaged_manifest_is_named(tmp_path: Path, tier: Tier, command: tuple[str, ...]) -> None:
    Path(tier.mapper.record_path).write_text("{")
    result = kvtier(tmp_path, command)
    assert result.code == INCONCLUSIVE
    assert f"{tier.mapper.record_path} is not JSON\n" in result.out


def test_blocks_without_a_manifest_are_verified(tmp_path: Path, tier: Tier) -> None:
    os.unlink(tier.mapper.record_path)
    assert kvtier(tmp_path, ("verify",)) == (0, f"{BLOCKS} blocks: {BLOCKS} right\n", "")


@pytest.mark.parametrize("options", [(), ("--fix",)])
@pytest.mark.parametrize("block_bytes", [2 * BLOCK, 1 << 50])
def test_an_edited_block_size_is_refused_and_no_block_is_quarantined(
    tmp_path: Path, tier: Tier, options: tuple[str, ...], block_bytes: int
) -> None:
    other = Tier(tmp_path, "other")
    record = Path(tier.mapper.record_path)
    record.write_text(json.dumps({**json.loads(record.read_text()), "block_bytes": block_bytes}))
    os.truncate(tier.path(1), 100)
    result = kvtier(tmp_path, ("verify", *options))
    assert result.code == INCONCLUSIVE
    says = f"says block_bytes {block_bytes}, but 9 of 9 sampled trailers say {BLOCK}: nothing was verified"
    assert f"{record} {says}; set block_bytes to {BLOCK}\n" in result.out
    assert f"{BLOCKS} blocks: {BLOCKS} right\n" in result.out, "the blocks of the other model were verified"
    assert all(tier.path(number).exists() for number in range(BLOCKS))
    assert other.path(0).exists()


def test_a_block_size_beyond_the_memory_is_named(tmp_path: Path, tier: Tier) -> None:
    for number in range(BLOCKS):  # without trailers, as vLLM writes
        os.truncate(tier.path(number), BLOCK)
    record = Path(tier.mapper.record_path)
    record.write_text(json.dumps({**json.loads(record.read_text()), "block_bytes": 1 << 50}))
    result = kvtier(tmp_path, ("verify", "--fix"))
    assert result.code == INCONCLUSIVE
    assert f"{record} says block_bytes {1 << 50}, which exceeds the memory\n" in result.out
    assert tier.path(0).exists()


NO_OVERRIDE = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
"""Root without the right to read what its modes forbid."""


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
@pytest.mark.parametrize("level", ["base", "rank", "prefix", "leaf"])
def test_a_folder_without_permission_is_named(tmp_path: Path, tier: Tier, level: str) -> None:
    leaf = tier.path(3).parent
    path = {"base": tier.base, "rank": tier.blocks, "prefix": leaf.parent, "leaf": leaf}[level]
    path.chmod(0)
    named = path / "config.json" if level == "base" else path
    try:
        for command in COMMANDS:
            result = kvtier_process(tmp_path, command, NO_OVERRIDE if os.geteuid() == 0 else ())
            assert result.code == INCONCLUSIVE, (command, result)
            assert f"{named} cannot be read: EACCES (Permission denied)\n" in result.out
    finally:
        path.chmod(0o700)


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_a_block_that_cannot_be_read_is_not_called_corrupt(tmp_path: Path, tier: Tier) -> None:
    tier.path(3).chmod(0)
    result = kvtier_process(tmp_path, ("verify",), NO_OVERRIDE if os.geteuid() == 0 else ())
    assert result.code == INCONCLUSIVE
    assert f"{tier.path(3)} cannot be read: EACCES\n" in result.out


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_a_root_that_cannot_be_listed_is_one_sentence(tmp_path: Path, tier: Tier, command: tuple[str, ...]) -> None:
    tmp_path.chmod(0)
    try:
        result = kvtier_process(tmp_path, command, NO_OVERRIDE if os.geteuid() == 0 else ())
    finally:
        tmp_path.chmod(0o700)
    assert result.code == 74
    assert result.out == ""
    assert f"{str(tmp_path)!r} cannot be read: EACCES (Permission denied)" in result.err
    assert result.err.count("\n") == 1


# --- what is not kvtier's ---


@pytest.mark.parametrize("content", ["empty", "files"])
def test_a_wrong_root_exits_with_2(tmp_path: Path, command: tuple[str, ...], content: str) -> None:
    if content == "files":
        (tmp_path / "ssh").mkdir()
        (tmp_path / "ssh" / "config").write_bytes(bytes(1000))
        (tmp_path / "passwd").write_bytes(bytes(24))
        (tmp_path / "outside").symlink_to("/usr")
    before = sorted(tmp_path.rglob("*"))
    result = kvtier_process(tmp_path, command)
    assert result.code == INCONCLUSIVE
    assert f"no kvtier folder below {tmp_path}: " in result.out
    unowned = f"2 files, 1 KiB, belong to no readable folder: in {tmp_path}/ssh (1e+03 B), {tmp_path}/passwd (24 B)\n"
    assert (unowned in result.out) is (content == "files")
    assert sorted(tmp_path.rglob("*")) == before, "nothing was written there"


def test_bytes_beside_the_folders_are_counted(tmp_path: Path, tier: Tier, command: tuple[str, ...]) -> None:
    (tmp_path / "backup" / "deep").mkdir(parents=True)
    (tmp_path / "backup" / "deep" / "copy").write_bytes(bytes(2048))
    result = kvtier(tmp_path, command)
    assert result.code == INCONCLUSIVE
    assert f"1 files, 2 KiB, belong to no readable folder: in {tmp_path}/backup (2 KiB)\n" in result.out
    assert ("within its limits is not known" in result.out) is (command == EVICT)


def test_control_characters_in_names_are_escaped(tmp_path: Path, tier: Tier) -> None:
    (tmp_path / "a\x1b[2Jb\n").write_bytes(b"x")
    result = kvtier(tmp_path, ("inspect",))
    assert "\x1b" not in result.out
    assert repr(f"{tmp_path}/a\x1b[2Jb\n") in result.out


@needs_root
def test_another_file_system_below_the_root_is_named_and_not_walked(tmp_path: Path, tier: Tier) -> None:
    mount = tmp_path / "backup" / "mount"
    mount.mkdir(parents=True)
    (tmp_path / "backup" / "copy").write_bytes(bytes(2048))
    subprocess.run(["mount", "-t", "tmpfs", "none", mount], check=True)
    try:
        (mount / "file").write_bytes(bytes(4096))
        result = kvtier(tmp_path, ("inspect",))
    finally:
        subprocess.run(["umount", mount], check=True)
    assert result.code == INCONCLUSIVE
    assert f"{mount} is on another file system, and is not counted\n" in result.out
    assert "at least 1 files, 2 KiB, belong" in result.out


LIMITED = "import kvtier.ops.unaccounted_files as c; c.UNOWNED_{} = {}; from kvtier.ops.cli import main; main()"


@pytest.mark.parametrize(
    ("limit", "value", "said"), [("FILES_MAX", 3, "at least 3 files"), ("SECONDS_MAX", 0, "at least ")]
)
def test_counting_ends_at_a_limit(tmp_path: Path, tier: Tier, limit: str, value: int, said: str) -> None:
    for number in range(9):
        (tmp_path / f"{number}.txt").write_bytes(b"x")
    command = [sys.executable, "-c", LIMITED.format(limit, value), "inspect", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == INCONCLUSIVE
    assert said in done.stdout


# --- verify: what is no block ---


def make_device(path: Path) -> None:
    os.mknod(path, 0o600 | 0o020000, os.makedev(1, 5))


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        here = os.getcwd()
        os.chdir(path.parent)
        try:
            one.bind(path.name)
        finally:
            os.chdir(here)


OTHERS: list[Any] = [
    pytest.param(os.mkfifo, id="fifo"),
    pytest.param(os.mkdir, id="folder"),
    pytest.param(lambda path: path.symlink_to("/etc/passwd"), id="link"),
    pytest.param(make_socket, id="socket"),
    pytest.param(make_device, id="device", marks=needs_root),
]


@pytest.mark.parametrize("make", OTHERS)
def test_an_entry_with_a_blocks_name_that_is_no_file_is_corrupt(
    tmp_path: Path, tier: Tier, make: Callable[[Path], None]
) -> None:
    path = tier.path(3)
    path.unlink()
    make(path)
    result = kvtier(tmp_path, ("verify",))
    assert (result.code, result.out) == (FAIL, f"kind: {path}\n10 blocks: 1 kind, 9 right\n")
    assert os.path.lexists(path)
    result = kvtier(tmp_path, ("verify", "--fix"))
    assert result.code == FAIL
    assert f"kind: {path} -> {tier.base}/quarantine/{path.name}.kind." in result.out
    assert not os.path.lexists(path)
    assert kvtier(tmp_path, ("verify",)) == (0, "9 blocks: 9 right\n", "")


def test_a_folder_of_one_fifo_exits_with_1(tmp_path: Path) -> None:
    tier = Tier(tmp_path, blocks=1)
    os.unlink(tier.mapper.record_path)
    tier.path(0).unlink()
    os.mkfifo(tier.path(0))
    assert kvtier(tmp_path, ("verify",)).code == FAIL


@pytest.mark.parametrize("level", ["prefix", "leaf"])
def test_an_entry_in_the_place_of_a_folder_is_named(
    tmp_path: Path, tier: Tier, level: str, command: tuple[str, ...]
) -> None:
    path = tier.path(3).parent if level == "leaf" else tier.path(3).parent.parent
    path.rename(tmp_path.parent / f"{tmp_path.name}-{level}")
    path.symlink_to(tmp_path.parent / f"{tmp_path.name}-{level}")
    result = kvtier(tmp_path, command)
    assert (result.code, f"{path} is not a folder\n" in result.out) == (INCONCLUSIVE, True)


def test_verify_prints_the_writer_of_a_corrupt_block(tmp_path: Path, tier: Tier) -> None:
    for number in (3, 4):
        trailer = read_trailer(str(tier.path(number)))
        assert trailer
        with open(tier.path(number), "r+b") as file:
            file.write(b"?")
    os.truncate(tier.path(4), BLOCK + 10)
    writer = trailer.instance_id.hex()
    result = kvtier(tmp_path, ("verify",))
    assert f"checksum: {tier.path(3)} (writer {writer})\nsize: {tier.path(4)}\n" in sorted_lines(result.out)
    (entry, _) = sorted(json.loads(kvtier(tmp_path, ("verify", "--json")).out)["corrupt"], key=lambda e: e["reason"])
    assert (entry["path"], entry["writer"]) == (str(tier.path(3)), writer)
    result = kvtier(tmp_path, ("verify", "--fix"))
    assert f"checksum: {tier.path(3)} (writer {writer}) -> {tier.base}/quarantine/" in result.out


def sorted_lines(text: str) -> str:
    return "".join(sorted(text.splitlines(keepends=True)))


# --- inspect ---


def test_inspect_shows_the_fields_in_which_fingerprints_of_one_model_differ(tmp_path: Path, tier: Tier) -> None:
    assert "\n  run " not in kvtier(tmp_path, ("inspect",)).out, "one fingerprint needs no explanation"
    Tier(tmp_path, "other", tp_size=8)
    Tier(tmp_path, tp_size=2, dtype="float8", canonical_format="x" * 1000)
    runs = [line for line in kvtier(tmp_path, ("inspect",)).out.splitlines() if line.startswith("  run ")]
    assert sorted(line.split()[1:6] for line in runs) == [
        ["tp_size", "1,", "dtype", '"bfloat16",', "canonical_format"],
        ["tp_size", "2,", "dtype", '"float8",', "canonical_format"],
    ]
    assert max(map(len, runs)) < 300


@pytest.mark.parametrize("option", ["--quarantined", "--aside"])
def test_inspect_lists_quarantined_files_under_both_names_of_the_option(
    tmp_path: Path, tier: Tier, option: str
) -> None:
    (tier.base / "quarantine" / "1.bin.size.00").write_bytes(b"x")
    assert f"{tier.base}/quarantine/1.bin.size.00: 1 B, 0 s old\n" in kvtier(tmp_path, ("inspect", option)).out
    shown = CliRunner().invoke(main, ["inspect", "--help"]).stdout
    assert ("--quarantined" in shown, "--aside" in shown) == (True, False)


# --- evict: what cannot be removed, shares; remove ---

WHY_IT_STAYS = " cannot be removed: EACCES (Permission denied)"


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_evict_prints_why_blocks_stay(tmp_path: Path, tier: Tier) -> None:
    leaves = [tier.path(number).parent for number in range(BLOCKS)]
    for leaf in leaves:
        leaf.chmod(0o500)
    impatient = "import kvtier.ops.evict_command as e; e.STUCK_SECONDS = 0.2; from kvtier.ops.cli import main; main()"
    wrapper = NO_OVERRIDE if os.geteuid() == 0 else []
    command = [*wrapper, sys.executable, "-c", impatient, "evict", str(tmp_path), "--max-bytes", str(5 * FILE)]
    done = subprocess.run(command, capture_output=True, text=True)
    for leaf in leaves:
        leaf.chmod(0o700)
    assert (done.returncode, done.stderr) == (FAIL, "")
    named = [line.partition(" ")[0] for line in done.stdout.splitlines() if line.endswith(WHY_IT_STAYS)]
    assert named
    assert set(named) <= {str(tier.path(number)) for number in range(BLOCKS)}
    assert "too many" in done.stdout


@pytest.mark.parametrize("seconds", ["inf", "nan", "-1", "0", "soon", "1e12"])
def test_a_pause_that_cannot_be_is_one_sentence(tmp_path: Path, tier: Tier, seconds: str) -> None:
    result = kvtier(tmp_path, (*EVICT, "--every", seconds))
    sentence = f"kvtier: --every is {seconds!r}; it takes a number of seconds from 0.1 to 86400\n"
    assert result == (USAGE, "", sentence)


@pytest.mark.parametrize("options", [(), ("--dry-run",), ("--every", "1")])
def test_a_share_of_a_model_that_is_not_there_is_refused(tmp_path: Path, tier: Tier, options: tuple[str, ...]) -> None:
    result = kvtier(tmp_path, (*EVICT, "--share", "org/model=1", "--share", "nosuchmodel=2", *options))
    assert (result.code, result.out) == (USAGE, "")
    assert result.err == (
        f"kvtier: --share names 'nosuchmodel', which no folder below {tmp_path} has; valid names: org/model\n"
    )
    assert kvtier(tmp_path, (*EVICT, "--share", "org/model=2")).code == 0


def test_remove_names_and_removes_a_damaged_folder(tmp_path: Path, tier: Tier) -> None:
    damaged = Tier(tmp_path, "other")
    not_json(damaged)
    result = kvtier(tmp_path, ("remove", "nonsense"))
    assert (result.code, result.out) == (USAGE, "")
    assert result.err == f"kvtier: folder is 'nonsense'; valid choices: {tier.base.name}, {damaged.base.name}\n"
    result = kvtier(tmp_path, ("remove", damaged.base.name))
    assert result.code == 0
    assert f"{damaged.base}: 8" in result.out
    assert "its config.json is unreadable" in result.out
    assert damaged.path(0).exists()
    assert kvtier(tmp_path, ("remove", damaged.base.name, "--yes")).code == 0
    assert sorted(os.listdir(tmp_path)) == sorted([tier.base.name, tier.blocks.name])
    assert kvtier(tmp_path, ("verify",)).code == 0


def test_remove_refuses_a_folder_of_another_program(tmp_path: Path) -> None:
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "config.json").write_text('{"model_type": "llama"}')
    result = kvtier(tmp_path, ("remove", "llama", "--yes"))
    assert (result.code, result.out) == (USAGE, "")
    assert result.err.startswith("kvtier: folder is 'llama'; valid choices: none (")
    assert (tmp_path / "llama" / "config.json").exists()


# --- evict --every ---


@contextmanager
def every(root: Path, *options: str, wrapper: Sequence[str] = ()) -> Iterator[tuple[subprocess.Popen[str], IO[str]]]:
    """The process and its output; both have ended and are released at the end, whatever fails."""
    # A shell that runs the tests in the background has its children ignore SIGINT.
    heeding = ["env", "--default-signal=INT", *wrapper, *COMMAND]
    command = [*heeding, "evict", str(root), "--every", "0.1", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as evictor:
        assert evictor.stdout
        try:
            yield evictor, evictor.stdout
        finally:
            evictor.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_evict_every_prints_what_it_does_and_ends_on_a_signal(
    tmp_path: Path, tier: Tier, number: signal.Signals, code: int
) -> None:
    with every(tmp_path, "--max-bytes", str(5 * FILE), "--min-free-bytes", "1KiB") as (evictor, said):
        start, *lines = (said.readline() for _ in range(3))
        evictor.send_signal(number)
        out, err = evictor.communicate(timeout=30)
    assert start == (
        f"evicting below {tmp_path}: blocks take at most 40 KiB; at least 1 KiB stay free; evict above 95% of a limit, "
        "down to 90%; a round every 0.1 s, until SIGINT or SIGTERM\n"
    )
    assert lines[0].startswith("evicted 6 blocks, 48 KiB, last used ")
    assert lines[0].endswith("(max_bytes); left: 4 blocks, 32 KiB\n")
    assert lines[1].startswith("left: 4 blocks, 32 KiB; 1 rounds in 0 s: evicted 6 blocks")
    assert out.startswith(f"ended by {number.name}; ")
    assert out.endswith(": evicted 6 blocks, 48 KiB; gc removed 0 files; left: 4 blocks, 32 KiB\n")
    assert out.count("\n") == 1, "rounds in which nothing happened are not reported"
    assert (evictor.returncode, err) == (code, "")


def test_evict_every_prints_json_lines_only(tmp_path: Path, tier: Tier) -> None:
    with every(tmp_path, "--max-bytes", str(5 * FILE), "--json") as (evictor, said):
        lines = [said.readline() for _ in range(3)]
        evictor.terminate()
        out, err = evictor.communicate(timeout=30)
    events = [json.loads(line) for line in (*lines, *out.splitlines())]
    assert [event["event"] for event in events] == ["start", "round", "status", "end"]
    start, done, status, end = events
    assert (start["max_bytes"], start["every_seconds"]) == (5 * FILE, 0.1)
    assert done["evicted_files"] == status["total_evicted_files"] == end["total_evicted_files"] == 6
    assert (end["signal"], end["root"]["files"], end["coverage"]["complete"]) == ("SIGTERM", 4, True)
    assert (evictor.returncode, err) == (143, "")


def test_evict_every_waits_for_an_engine_and_names_what_is_damaged(tmp_path: Path) -> None:
    with every(tmp_path, "--max-bytes", str(5 * FILE)) as (evictor, said):
        lines = [said.readline() for _ in range(3)]
        assert lines[1].startswith(f"no kvtier folder below {tmp_path}: ")
        assert lines[2].startswith("nothing was measured or removed; 0 rounds in ")
        assert os.listdir(tmp_path) == []
        Tier(tmp_path)
        assert said.readline().startswith("evicted 6 blocks")
        evictor.terminate()
        out, _ = evictor.communicate(timeout=30)
    assert out.endswith("left: 4 blocks, 32 KiB\n")
    assert evictor.returncode == 143


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv")
def test_evict_every_prints_why_no_round_succeeds(tmp_path: Path, tier: Tier) -> None:
    tmp_path.chmod(0o500)
    wrapper = NO_OVERRIDE if os.geteuid() == 0 else []
    try:
        with every(tmp_path, "--max-bytes", "1GB", wrapper=wrapper) as (evictor, said):
            _, failure = (said.readline() for _ in range(2))
            evictor.terminate()
            out, _ = evictor.communicate(timeout=30)
    finally:
        tmp_path.chmod(0o700)
    problem = f"EACCES (Permission denied): {tmp_path}/.kvtier-evictor\n"
    assert failure == f"this round failed: {problem}"
    assert out.endswith(f"nothing was measured or removed: {problem}")


def test_evict_every_goes_on_after_a_volume_that_goes_and_comes_back(tmp_path: Path) -> None:
    root, away = tmp_path / "root", tmp_path / "away"
    root.mkdir()
    Tier(root, blocks=0)
    with every(root, "--max-bytes", str(5 * FILE)) as (_, said):
        lines = [said.readline() for _ in range(2)]
        assert lines[1].startswith("left: 0 blocks, 0 B")
        root.rename(away)
        assert said.readline().startswith(f"this round failed: root_dir {str(root)!r} does not exist")
        Tier(away)
        away.rename(root)
        assert said.readline().startswith("evicted 6 blocks")
