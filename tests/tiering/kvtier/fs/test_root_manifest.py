"""Key <-> path is exact both ways; a root is opened whole or refused in one sentence; nothing leaves the root."""

from __future__ import annotations

import io
import json
import logging
import os
import resource
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.config import ConfigError, KVCacheGroup, RootError, RunConfig
from kvtier.fs import root_manifest as layout
from kvtier.fs.file_mapper import FileMapper
from kvtier.fs.root_manifest import check_trust, open_root
from kvtier.hashing import BlockHash, OffloadKey, make_offload_key
from kvtier.ops.catalog import folders
from kvtier.ops.gc import collect

REPOSITORY = Path(__file__).resolve().parents[4]
GROUPS = (KVCacheGroup(16, ("model.layers.0.self_attn.attn", "model.layers.1.self_attn.attn")),)
QWEN: dict[str, Any] = {"model_name": "Qwen/Qwen3-8B", "blocks_per_file": 4, "kv_cache_groups": GROUPS}
HASH = "dcecb26759fe58a7e6db684cb3a4ae1c25b7b8dbff751c6aaa6d61563c41d31d"
DIGEST = "066b1e89" + "0" * 56
RECORD = {"format": 1, "hash_algorithm": "sha256", "none_hash_digest": DIGEST, "block_bytes": 4096}


def qwen(root: object = "/kv", **options: Any) -> FileMapper:
    return FileMapper(str(root), RunConfig(**{**QWEN, **options}))


def open_as(mapper: FileMapper, **options: Any) -> None:
    ours: dict[str, Any] = {
        "hash_algorithm": "sha256",
        "none_digest": DIGEST,
        "block_bytes": 4096,
        "on_mismatch": "refuse",
        "dir_mode": 0o700,
        "file_mode": 0o600,
    }
    open_root(mapper, **{**ours, **options})


def refusal(mapper: FileMapper, **options: Any) -> str:
    """The sentence. A refused root costs no descriptor."""
    before = os.listdir("/proc/self/fd")
    with pytest.raises(RootError) as caught:
        open_as(mapper, **options)
    assert os.listdir("/proc/self/fd") == before
    text = str(caught.value)
    assert "\n" not in text
    assert "root_dir" in text  # what to change is named
    return text


def key_of(text: str = HASH, group: int = 0) -> OffloadKey:
    return make_offload_key(BlockHash(bytes.fromhex(text)), group)


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


# ---- names


@pytest.mark.parametrize(
    ("options", "digest"),
    [({}, "ea96982909da"), ({"parallel_agnostic": True}, "22ca69f118a5"), ({"tp_size": 4}, "52969a807c99")],
)
def test_folders_are_those_of_vllm(options: dict[str, Any], digest: str) -> None:
    mapper = qwen(**options)
    assert mapper.digest == digest
    assert mapper.base_path == f"/kv/Qwen_Qwen3-8B_{digest}"
    assert mapper.blocks_path == f"/kv/Qwen_Qwen3-8B_{digest}_r0"
    assert mapper.config_path == f"/kv/Qwen_Qwen3-8B_{digest}/config.json"


def test_a_block_is_where_vllm_has_it() -> None:
    assert qwen().get_file_name(key_of()) == f"/kv/Qwen_Qwen3-8B_ea96982909da_r0/dce/cb_g0/{HASH}.bin"
    assert qwen(rank=3).get_file_name(key_of(group=12)) == f"/kv/Qwen_Qwen3-8B_ea96982909da_r3/dce/cb_g12/{HASH}.bin"


def test_an_agnostic_block_is_the_same_for_every_parallelism() -> None:
    plain = qwen(parallel_agnostic=True)
    other = qwen(parallel_agnostic=True, tp_size=8, pp_size=2, pcp_size=2, dcp_size=2, rank=7)
    assert (other.fields, other.blocks_path, other.record_path) == (plain.fields, plain.blocks_path, plain.record_path)
    assert "parallel_agnostic" not in plain.fields
    assert qwen().fields["parallel_agnostic"] is False


@pytest.mark.parametrize("options", [{"replicated_layout": True}, {"canonical_format": "v1"}])
def test_younger_fields_appear_only_when_set(options: dict[str, Any]) -> None:
    assert qwen(**options).fields == {**qwen().fields, **options}
    assert qwen(**options).digest != qwen().digest


def test_ranks_share_a_folder_and_not_their_blocks() -> None:
    one, other = qwen(tp_size=2, rank=0), qwen(tp_size=2, rank=1)
    assert (one.base_path, one.config_path) == (other.base_path, other.config_path)
    assert one.blocks_path != other.blocks_path


@pytest.mark.parametrize("root", ["/", "/kv/", "/kv/../kv", "kv"])
def test_paths_are_absolute_and_plain(root: str) -> None:
    path = qwen(root).get_file_name(key_of())
    assert path == os.path.abspath(path)
    assert qwen(root).parse_file_name(path) == key_of()


KEYS = st.builds(
    make_offload_key, st.binary(min_size=1, max_size=64).map(BlockHash), st.integers(0, 2**32 - 1) | st.integers(0, 20)
)


@given(KEYS, KEYS)
def test_every_key_has_one_path_and_comes_back(a: OffloadKey, b: OffloadKey) -> None:
    mapper = qwen()
    assert mapper.parse_file_name(mapper.get_file_name(a)) == a
    assert (mapper.get_file_name(a) == mapper.get_file_name(b)) == (a == b)


@given(KEYS, st.data())
def test_a_changed_path_is_never_taken_for_the_same_key(key: OffloadKey, data: st.DataObject) -> None:
    mapper = qwen()
    path = mapper.get_file_name(key)
    start = data.draw(st.integers(0, len(path)))
    end = data.draw(st.integers(start, min(len(path), start + 2)))
    changed = path[:start] + data.draw(st.text("/_g.0aA \0é", max_size=2)) + path[end:]
    parsed = mapper.parse_file_name(changed)
    assert parsed is None or mapper.get_file_name(parsed) == changed
    assert (parsed == key) == (changed == path)


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.upper(),
        lambda path: path.replace(HASH, HASH.upper()),
        lambda path: path + ".tmp",
        lambda path: path.removesuffix(".bin") + "_7.tmp",
        lambda path: path.removesuffix(".bin"),
        lambda path: path.replace("_g0/", "_g00/"),
        lambda path: path.replace("_g0/", "_g+0/"),
        lambda path: path.replace("_g0/", "_g-1/"),
        lambda path: path.replace("_g0/", "_g4294967296/"),
        lambda path: path.replace("_g0/", f"_g{'9' * 5000}/"),
        lambda path: path.replace("/dce/", "/dcf/"),
        lambda path: path.replace("/cb_", "/cc_"),
        lambda path: path.replace("/dce/", "//dce/"),
        lambda path: path.replace("/dce/", "/./dce/"),
        lambda path: path.replace("_r0/", "_r1/"),
        lambda path: path.replace("/kv/", "/kw/"),
        lambda path: path[1:],
        lambda path: os.path.basename(path),
        lambda path: os.path.dirname(path),
        lambda path: path + "/",
        lambda path: path + "\n",
        lambda path: "",
    ],
)
def test_strays_are_no_blocks(change: Callable[[str], str]) -> None:
    assert qwen().parse_file_name(change(qwen().get_file_name(key_of()))) is None


HOSTILE = [
    "..",
    ".",
    "../../x",
    "/",
    "//",
    "/etc/passwd",
    "a/../../b",
    "~",
    "$HOME",
    "-rf",
    "a\\..\\b",
    " ",
    "模型",
    "m" * 200,
]


@given(st.sampled_from(HOSTILE) | st.text(min_size=1, max_size=300) | st.text("./", min_size=1))
def test_no_model_name_leads_out_of_the_root(name: str) -> None:
    try:
        mapper = FileMapper("/kv", RunConfig(name))
    except ConfigError:
        return  # refused in words: NUL, newline, too long
    for path in (mapper.base_path, mapper.blocks_path):
        assert os.path.dirname(path) == "/kv"
        assert os.path.basename(path) not in ("", ".", "..")
        assert len(os.fsencode(os.path.basename(path))) <= 255
        assert os.path.normpath(path) == path
    for path in (mapper.config_path, mapper.record_path, mapper.quarantine_path):
        assert os.path.dirname(path) == mapper.base_path


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "m" * 300, ""])
def test_names_that_no_folder_can_have_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="model_name is"):
        RunConfig(name)


def test_hostile_names_on_a_real_disk(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for name in HOSTILE:
        open_as(FileMapper(str(root), RunConfig(name)))
    assert os.listdir(tmp_path) == ["root"]
    assert len(os.listdir(root)) == 2 * len(HOSTILE)


# ---- opening a root


def test_opening_makes_folders_and_both_files_and_repeating_it_changes_nothing(tmp_path: Path) -> None:
    mapper = qwen(tmp_path)
    open_as(mapper)
    base, blocks = (Path(path).name for path in (mapper.base_path, mapper.blocks_path))
    assert tree(tmp_path) == [base, f"{base}/config.json", f"{base}/kvtier.json", f"{base}/quarantine", blocks]
    written = io.StringIO()
    json.dump(mapper.fields, written, indent=2, sort_keys=True)
    assert Path(mapper.config_path).read_text() == written.getvalue()
    assert json.loads(Path(mapper.record_path).read_text()) == RECORD
    before = {path: os.stat(tmp_path / path) for path in tree(tmp_path)}
    open_as(mapper)
    assert {path: os.stat(tmp_path / path)[1:] for path in tree(tmp_path)} == {p: s[1:] for p, s in before.items()}


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_modes_hold_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    mapper = qwen(tmp_path)
    previous = os.umask(umask)
    try:
        open_as(mapper, dir_mode=0o2770, file_mode=0o640)
    finally:
        os.umask(previous)
    for path in (mapper.base_path, mapper.blocks_path, mapper.quarantine_path):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o2770
    for path in (mapper.config_path, mapper.record_path):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o640


def test_what_others_made_keeps_its_mode(tmp_path: Path) -> None:
    mapper = qwen(tmp_path)
    open_as(mapper, dir_mode=0o755, file_mode=0o644)
    root_mode = os.stat(tmp_path).st_mode
    open_as(mapper, dir_mode=0o700, file_mode=0o600)
    assert stat.S_IMODE(os.stat(mapper.base_path).st_mode) == 0o755
    assert stat.S_IMODE(os.stat(mapper.config_path).st_mode) == 0o644
    assert os.stat(tmp_path).st_mode == root_mode


def test_a_folder_of_vllm_is_accepted_and_gets_our_record(tmp_path: Path) -> None:
    mapper = qwen(tmp_path)
    os.makedirs(mapper.base_path)
    with open(mapper.config_path, "w") as file:
        json.dump(mapper.fields, file, indent=2, sort_keys=True)
    before = os.stat(mapper.config_path)
    open_as(mapper)
    assert os.stat(mapper.config_path) == before
    assert json.loads(Path(mapper.record_path).read_text()) == RECORD


def test_a_config_that_vllm_is_just_writing_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mapper = qwen(tmp_path)
    os.makedirs(mapper.base_path)
    pieces = iter(["", "{", json.dumps(mapper.fields)])

    def others_get_on(_seconds: float = 0) -> None:
        Path(mapper.config_path).write_text(next(pieces))

    others_get_on()
    monkeypatch.setattr("time.sleep", others_get_on)  # the pause is all that is steered; files and reads are real
    open_as(mapper)
    assert next(pieces, None) is None


def test_ranks_of_one_run_may_differ_in_block_size(tmp_path: Path) -> None:
    # pipeline stages with unequal numbers of layers
    open_as(qwen(tmp_path, pp_size=2, rank=0), block_bytes=4096)
    open_as(qwen(tmp_path, pp_size=2, rank=1), block_bytes=8192)
    assert "block_bytes 8192" in refusal(qwen(tmp_path, pp_size=2, rank=1), block_bytes=4096)


# ---- who would not share


def test_another_seed_is_refused_with_both_digests_and_what_to_set(tmp_path: Path) -> None:
    mapper = qwen(tmp_path)
    open_as(mapper)
    text = refusal(mapper, none_digest="1973e238" + "f" * 56)
    assert "none_hash_digest 066b1e89 (here 1973e238)" in text
    assert "nothing would be shared, since equal tokens get other file names here" in text
    assert "PYTHONHASHSEED" in text
    assert mapper.record_path in text
    assert DIGEST not in text


def test_another_algorithm_is_refused_with_what_to_set(tmp_path: Path) -> None:
    mapper = qwen(tmp_path)
    open_as(mapper)
    text = refusal(mapper, hash_algorithm="xxhash", none_digest="1973e238")
    assert "hash_algorithm 'sha256' (here 'xxhash'), none_hash_digest 066b1e89 (here 1973e238)" in text
    assert "set hash_algorithm to 'sha256'" in text


@pytest.mark.parametrize("on_mismatch", ["refuse", "warn"])
def test_another_block_size_is_always_refused(tmp_path: Path, on_mismatch: str) -> None:
    mapper = qwen(tmp_path)
    open_as(mapper)
    text = refusal(mapper, block_bytes=8192, on_mismatch=on_mismatch)
    assert "block_bytes 4096, here it is 8192" in text
    assert "set block_bytes to 4096" in text


def test_warn_logs_the_same_and_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mapper = qwen(tmp_path)
    open_as(mapper)
    with caplog.at_level(logging.WARNING):
        open_as(mapper, on_mismatch="warn")
        assert not caplog.records
        open_as(mapper, none_digest="1973e238", on_mismatch="warn")
    assert [(record.name, record.levelname) for record in caplog.records] == [("kvtier.fs.root_manifest", "WARNING")]
    assert caplog.records[0].getMessage() == refusal(mapper, none_digest="1973e238")
    assert json.loads(Path(mapper.record_path).read_text()) == RECORD  # the first one's stays


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokens_per_hash": 32}, "tokens_per_hash 32 (here 16)"),
        ({"tokens_per_hash": 16.0}, "tokens_per_hash 16.0 (here 16)"),
        ({"tp_size": True}, "tp_size True (here 1)"),
        ({"extra": "x" * 999}, "extra 'xxx"),
        ({"kv_cache_groups": []}, "kv_cache_groups [] (here [{"),
    ],
)
def test_an_edited_config_is_refused_with_the_field(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    mapper = qwen(tmp_path)
    os.makedirs(mapper.base_path)
    Path(mapper.config_path).write_text(json.dumps({**mapper.fields, **change}))
    text = refusal(mapper)
    assert words in text
    assert len(text) < 1000
    assert mapper.config_path in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, "format 2 (here 1)"),
        ({"format": True}, "format True (here 1)"),
        ({"hash_algorithm": ["sha256"]}, "hash_algorithm ['sha256'] (here 'sha256')"),
        ({"none_hash_digest": 7}, "none_hash_digest 7 (here 066b1e89)"),
        ({"none_hash_digest": "a\nb\x1b[2J"}, "none_hash_digest 'a\\nb\\x1b[2J' (here 066b1e89)"),
        ({"a\nb\x1b[2J": 1}, "'a\\nb\\x1b[2J' 1 (here is absent)"),
        ({"block_bytes": "4096"}, "block_bytes '4096'"),
        ({"block_bytes": None}, "block_bytes None"),
    ],
)
def test_an_edited_record_is_refused_with_the_field(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    mapper = qwen(tmp_path)
    open_as(mapper)
    Path(mapper.record_path).write_text(json.dumps({**RECORD, **change}))
    text = refusal(mapper)
    assert words in text
    assert text.isprintable()


def test_an_absent_field_is_named(tmp_path: Path) -> None:
    mapper = qwen(tmp_path)
    open_as(mapper)
    Path(mapper.config_path).write_text("{}")
    assert "model_name is absent (here 'Qwen/Qwen3-8B')" in refusal(mapper)


def plant_huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def plant_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        folder = os.open(path.parent, os.O_PATH)  # a socket's path is short
        try:
            server.bind(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)


PLANTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "is not JSON"),
    "cut": (lambda path: path.write_bytes(b'{"format": 1,'), "is not JSON"),
    "binary": (lambda path: path.write_bytes(bytes(range(256))), "is not JSON"),
    "deep": (lambda path: path.write_bytes(b"[" * 200_000), "is not JSON"),
    "digits": (lambda path: path.write_bytes(b"1" * 100_000), "is not JSON"),
    "list": (lambda path: path.write_bytes(b"[1]"), "holds [1] where an object should be"),
    "null": (lambda path: path.write_bytes(b"null"), "holds None where an object should be"),
    "huge": (plant_huge, "is longer than"),
    "folder": (lambda path: path.mkdir(), "is not a regular file"),
    "pipe": (lambda path: os.mkfifo(path), "is not a regular file"),
    "socket": (plant_socket, "is not a regular file"),
    "dangling link": (lambda path: path.symlink_to("nowhere"), "is not a regular file"),
    "link out": (lambda path: path.symlink_to("/etc/passwd"), "is not a regular file"),
}


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("which", ["config_path", "record_path"])
def test_rubbish_is_refused_named_and_left_alone(
    tmp_path: Path, plant: str, which: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(layout, "SETTLE_SECONDS", 0)
    mapper = qwen(tmp_path)
    os.makedirs(mapper.base_path)
    path = Path(getattr(mapper, which))
    put, words = PLANTS[plant]
    put(path)
    before = os.lstat(path)
    assert f"{path} {words}" in refusal(mapper)
    open_as(mapper, on_mismatch="warn")
    assert len(caplog.records) == 1
    assert os.lstat(path)[:7] == before[:7]
    assert not [name for name in tree(tmp_path) if name.endswith(".tmp")]


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder to another user needs root")
@pytest.mark.parametrize("which", ["root_dir", "base_path", "blocks_path"])
@pytest.mark.parametrize(
    ("owner", "mode", "words"),
    [(0, 0o700, None), (0, 0o2770, None), (0, 0o1777, "everybody may write"), (4711, 0o700, "belongs to user 4711")],
)
def test_a_root_with_other_writers_is_logged_or_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, which: str, owner: int, mode: int, words: str | None
) -> None:
    mapper = qwen(tmp_path)
    open_as(mapper)
    path = getattr(mapper, which)
    os.chown(path, owner, 0)
    os.chmod(path, mode)
    check_trust(mapper, "warn")
    if words is None:
        check_trust(mapper, "refuse")
        assert not caplog.records
    else:
        assert f"{path} is not to be trusted: " in caplog.text
        assert words in caplog.text
        with pytest.raises(RootError, match=words):
            check_trust(mapper, "refuse")


@pytest.mark.parametrize("which", ["base_path", "blocks_path", "quarantine_path"])
@pytest.mark.parametrize("plant", ["file", "link out", "dangling link"])
def test_what_is_in_the_way_of_a_folder_is_refused(tmp_path: Path, which: str, plant: str) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    mapper = qwen(root)
    path = Path(getattr(mapper, which))
    path.parent.mkdir(exist_ok=True)
    if plant == "file":
        path.touch()
    else:
        path.symlink_to(outside if plant == "link out" else tmp_path / "nowhere")
    for on_mismatch in ("refuse", "warn"):
        assert f"{path} is in the way, it is not a folder" in refusal(mapper, on_mismatch=on_mismatch)
    assert os.listdir(outside) == []


# ---- roots that cannot be used


def test_a_missing_root_is_refused_and_not_made(tmp_path: Path) -> None:
    root = tmp_path / "a b" / "c"
    assert refusal(qwen(root)) == f"root_dir '{root}' does not exist; mount it, or create it with: mkdir -p '{root}'"
    assert tree(tmp_path) == []


def test_a_file_as_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "is not a directory" in refusal(qwen(tmp_path / "file"))
    assert "Not a directory" in refusal(qwen(tmp_path / "file" / "below"))


def test_a_root_with_too_long_a_path_is_refused(tmp_path: Path) -> None:
    assert "choose a shorter root_dir" in refusal(qwen("/" + "/".join(["x" * 200] * 30)))


def test_a_rank_that_no_folder_name_can_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rank is 1000"):
        qwen(tmp_path, rank=10**240)


CHILD = """
import json, os, sys
from kvtier.config import RootError, RunConfig
from kvtier.fs.file_mapper import FileMapper
from kvtier.fs.root_manifest import open_root
print("ready", flush=True)
for line in sys.stdin:
    uid, root, run, options = json.loads(line)
    if uid is not None:
        os.setgroups([]), os.setgid(uid), os.setuid(uid)
    try:
        open_root(FileMapper(root, RunConfig(**run)), **options)
        print("ok", flush=True)
    except RootError as error:
        print(error, flush=True)
"""
OPTIONS: dict[str, Any] = {
    "hash_algorithm": "sha256",
    "none_digest": DIGEST,
    "block_bytes": 4096,
    "on_mismatch": "refuse",
    "dir_mode": 0o700,
    "file_mode": 0o600,
}


class Child:
    """A process that opens roots when told to."""

    def __init__(self, *prefix: str) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", CHILD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1"},
        )

    def tell(self, root: object, uid: int | None = None, run: dict[str, Any] | None = None, **options: Any) -> None:
        assert self.process.stdin
        line = json.dumps([uid, str(root), run or {"model_name": "m"}, {**OPTIONS, **options}])
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        """The next line; empty once the process is dead."""
        assert self.process.stdout
        return self.process.stdout.readline().rstrip("\n")

    def __enter__(self) -> Child:
        assert self.hear() == "ready"
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(30)


NOBODY = 65534 if os.geteuid() == 0 else None  # permissions do not stop root: its child becomes nobody


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that any user can reach; pytest's own are its owner's alone."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)
        os.chmod(folder, 0o755)


def test_an_unwritable_root_is_refused(reachable: Path) -> None:
    reachable.chmod(0o555)
    with Child() as child:
        child.tell(reachable, NOBODY)
        text = child.hear()
    assert text.startswith(f"root_dir '{reachable}' cannot be used: Permission denied at '{reachable}/m_")
    assert f"give user {NOBODY or os.geteuid()} access to it" in text
    assert tree(reachable) == []


def test_a_root_that_cannot_even_be_reached_is_refused(reachable: Path) -> None:
    (reachable / "closed" / "root").mkdir(parents=True)
    (reachable / "closed").chmod(0o000)
    try:
        with Child() as child:
            child.tell(reachable / "closed" / "root", NOBODY)
            assert "cannot be used: Permission denied" in child.hear()
    finally:
        (reachable / "closed").chmod(0o700)


@pytest.mark.parametrize("which", ["base_path", "blocks_path", "quarantine_path", "config_path", "record_path"])
def test_folders_and_files_closed_to_us_are_refused(reachable: Path, which: str) -> None:
    mapper = FileMapper(str(reachable), RunConfig("m"))
    open_as(mapper, dir_mode=0o777, file_mode=0o666)
    path = getattr(mapper, which)
    os.chmod(path, 0o555 if os.path.isdir(path) else 0o000)
    with Child() as child:
        child.tell(reachable, NOBODY, on_mismatch="warn")  # a setting about sharing, not about access
        text = child.hear()
    assert f"Permission denied at '{path}'; give user" in text


def test_a_folder_open_to_others_is_shared_with_them(reachable: Path) -> None:
    mapper = FileMapper(str(reachable), RunConfig("m"))
    open_as(mapper, dir_mode=0o777, file_mode=0o666)
    with Child() as child:
        child.tell(reachable, NOBODY)
        assert child.hear() == "ok"


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts, or remounts, a small file system with the given options."""
    folder = tmp_path / "mount"
    folder.mkdir()
    mounted = False

    def mount(options: str) -> Path:
        nonlocal mounted
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", ("remount," if mounted else "") + options, "kvtier-test", str(folder)],
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            pytest.skip(f"this test mounts a tmpfs, which is not allowed here: {done.stderr.strip()}")
        mounted = True
        return folder

    yield mount
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_read_only_mount_is_refused_new_or_known(tmpfs: Callable[[str], Path]) -> None:
    root = tmpfs("rw,size=1m")
    open_as(qwen(root))
    tmpfs("ro,size=1m")
    assert "Read-only file system" in refusal(qwen(root))
    text = refusal(FileMapper(str(root), RunConfig("another")))
    assert f"Read-only file system at '{root}/another_" in text
    assert "mount it read-write" in text


def test_a_full_disk_is_refused_and_keeps_no_rubbish(tmpfs: Callable[[str], Path]) -> None:
    root = tmpfs(f"rw,size={os.sysconf('SC_PAGESIZE')}")  # room for one of the two files
    mapper = qwen(root)
    text = refusal(mapper)
    assert "No space left on device" in text
    assert "free some space" in text
    assert os.listdir(mapper.blocks_path) == []
    assert sorted(os.listdir(mapper.base_path)) == ["config.json", "quarantine"]
    assert json.loads(Path(mapper.config_path).read_text()) == mapper.fields
    tmpfs("rw,size=1m")
    open_as(mapper)
    with pytest.raises(OSError, match="No space left"):
        Path(mapper.quarantine_path, "ballast").write_bytes(bytes(2 << 20))
    open_as(mapper)  # a known root needs no space: its blocks can still be read


def test_too_few_descriptors_are_refused(tmp_path: Path) -> None:
    with Child() as child:
        resource.prlimit(child.process.pid, resource.RLIMIT_NOFILE, (3, 3))
        child.tell(tmp_path)
        assert "Too many open files" in child.hear()


# ---- several processes, and processes that die


def test_simultaneous_first_openings_agree(tmp_path: Path) -> None:
    with Child() as a, Child() as b, Child() as c, Child() as d:
        children = (a, b, c, d)
        for i in range(30):
            root = tmp_path / str(i)
            root.mkdir()
            for child in children:
                child.tell(root)
            assert [child.hear() for child in children] == ["ok"] * 4
            base = FileMapper(str(root), RunConfig("m")).base_path
            assert sorted(os.listdir(base)) == ["config.json", "kvtier.json", "quarantine"]


def test_of_simultaneous_first_openings_with_two_seeds_exactly_one_seed_passes(tmp_path: Path) -> None:
    digests = [DIGEST, "f" * 64, DIGEST, "f" * 64]
    winners = set()
    with Child() as a, Child() as b, Child() as c, Child() as d:
        children = (a, b, c, d)
        for i in range(30):
            root = tmp_path / str(i)
            root.mkdir()
            order = range(4) if i % 2 else range(3, -1, -1)
            for j in order:
                children[j].tell(root, none_digest=digests[j])
            answers = [child.hear() for child in children]
            there = json.loads(Path(FileMapper(str(root), RunConfig("m")).record_path).read_text())["none_hash_digest"]
            assert there in digests
            winners.add(there)
            for answer, digest in zip(answers, digests, strict=True):
                assert (answer == "ok") == (digest == there), answer
                assert answer == "ok" or f"none_hash_digest {there[:8]} (here {digest[:8]})" in answer
    assert len(winners) == 2  # else the race was never run


@pytest.fixture
def strace() -> str:
    if (found := shutil.which("strace")) is None:
        pytest.skip("this test injects faults with strace, which is not installed")
    if subprocess.run([found, "-o", os.devnull, "true"], capture_output=True).returncode != 0:
        pytest.skip("this test injects faults with strace, which may not trace here")
    return found


def inject(strace: str, *faults: str) -> tuple[str, ...]:
    return (strace, "-f", "-qq", "-o", os.devnull, *(word for fault in faults for word in ("-e", f"inject={fault}")))


@pytest.mark.parametrize("when", [1, 2])
@pytest.mark.parametrize("call", ["linkat", "fsync"])
def test_a_process_killed_while_publishing_leaves_nothing_behind(
    tmp_path: Path, strace: str, call: str, when: int
) -> None:
    with Child(*inject(strace, f"{call}:signal=SIGKILL:when={when}")) as child:
        child.tell(tmp_path)
        assert child.hear() == ""
    mapper = FileMapper(str(tmp_path), RunConfig("m"))
    assert sorted(os.listdir(mapper.base_path)) == [*["config.json"][: when - 1], "quarantine"]
    open_as(mapper)
    assert json.loads(Path(mapper.config_path).read_text()) == mapper.fields


def test_gc_collects_what_a_process_killed_while_publishing_left(tmp_path: Path, strace: str) -> None:
    """Where the file system has no unnamed files; also under the name that kvtier 0.1.0 gave such a file."""
    with Child(*inject(strace, "linkat:error=ENOENT:when=1+2", "fsync:signal=SIGKILL:when=4")) as child:
        child.tell(tmp_path)
        assert child.hear() == ""
    base = Path(FileMapper(str(tmp_path), RunConfig("m")).base_path)
    (left,) = base.glob("*.tmp")
    older = [base / f"{name}.json.0123456789abcdef.tmp" for name in ("config", "kvtier", "kvtier_r3")]
    vllm = base / "config.json.7.tmp"
    for path in (*older, vllm):
        path.write_bytes(b"{")
    (folder,) = folders(str(tmp_path))
    assert sum(collect(folder)) == 0, "they may belong to a living process"
    for path in (left, *older, vllm):
        os.utime(path, (0, 0))
    assert sum(collect(folder)) == 4
    assert sorted(os.listdir(base)) == ["config.json", "config.json.7.tmp", "quarantine"]


@pytest.mark.parametrize(
    "faults",
    [
        ("linkat:error=ENOENT:when=1+2",),  # no /proc: the unnamed file cannot be linked, a named one can
        ("linkat,link:error=EPERM",),  # no links at all: renamed into place
        ("linkat,link:error=EOPNOTSUPP",),
    ],
)
def test_file_systems_without_unnamed_files_or_links_work_too(
    tmp_path: Path, strace: str, faults: tuple[str, ...]
) -> None:
    mapper = FileMapper(str(tmp_path), RunConfig("m"))
    previous = os.umask(0o777)
    try:
        with Child(*inject(strace, *faults)) as child:
            for digest, answer in (
                (DIGEST, "ok"),
                (DIGEST, "ok"),
                ("f" * 64, "none_hash_digest 066b1e89 (here ffffffff)"),
            ):
                child.tell(tmp_path, none_digest=digest, file_mode=0o640)
                assert answer in child.hear()
    finally:
        os.umask(previous)
    assert sorted(os.listdir(mapper.base_path)) == ["config.json", "kvtier.json", "quarantine"]
    assert json.loads(Path(mapper.config_path).read_text()) == mapper.fields
    assert stat.S_IMODE(os.stat(mapper.config_path).st_mode) == 0o640


@pytest.mark.parametrize("error", ["ENOSPC", "EIO", "EDQUOT"])
def test_a_failing_disk_is_refused_and_keeps_no_rubbish(tmp_path: Path, strace: str, error: str) -> None:
    mapper = FileMapper(str(tmp_path), RunConfig("m"))
    with Child(*inject(strace, f"fsync:error={error}")) as child:
        child.tell(tmp_path)
        assert "cannot be used" in child.hear()
    assert os.listdir(mapper.base_path) == ["quarantine"]
