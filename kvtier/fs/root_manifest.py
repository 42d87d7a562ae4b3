"""`open_root`: the folders below a root, and the manifest that identifies the blocks in them. Touches no block file.

The names are vLLM's. A folder belongs to one run configuration, whose digest is in its name and whose fields are in its
`config.json`. `kvtier.json` beside it, the manifest, has what vLLM does not record: the hash algorithm, a digest of
`NONE_HASH` and the block size. A process with other values would share nothing, or read wrong bytes, and is refused.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shlex
import stat
import time
from typing import Any

from kvtier.config import RootError
from kvtier.fs.file_mapper import FileMapper
from kvtier.fs.posix import UnfitFileError, make_dir, publish_file, read_small_file
from kvtier.hashing import SEED_VARIABLE

logger = logging.getLogger(__name__)

RECORD_FORMAT = 1
RECORD_BYTES_MAX = 4 << 20  # a longer config.json or kvtier.json is refused unread
SETTLE_ATTEMPTS_MAX = 5
SETTLE_SECONDS = 0.05  # pause between attempts
_NOT_JSON = "is not JSON"


def open_root(
    mapper: FileMapper,
    *,
    hash_algorithm: str | None,
    none_digest: str | None,
    block_bytes: int,
    on_mismatch: str,
    dir_mode: int,
    file_mode: int,
) -> None:
    """Make the mapper's folders below an existing root, and agree with the process that was there first.

    A process without its `NONE_HASH` yet gives None for it, and for the algorithm unless it demands one: then the
    manifest is compared as far as possible, and not published.

    Publishes `config.json` and the record beside it, each whole or not at all, unless they are there; then compares
    what is there with what this process has. A root that cannot be used and any difference raise `RootError`; with
    `on_mismatch="warn"` a difference is logged instead, except in the block size. Modes hold whatever the umask; what
    others created keeps theirs. Repeating it changes nothing.
    """
    record = {
        "format": RECORD_FORMAT,
        "hash_algorithm": hash_algorithm,
        "none_hash_digest": none_digest,
        "block_bytes": block_bytes,
    }
    try:
        check_root(mapper.root_dir)
        for folder in (mapper.base_path, mapper.blocks_path, mapper.quarantine_path):
            _make_folder(folder, dir_mode)
        config_there = _settle(mapper.config_path, mapper.fields, file_mode)
        record_there = _settle(mapper.record_path, record if none_digest is not None else None, file_mode)
    except OSError as error:
        raise _unusable(mapper.root_dir, error) from error
    if isinstance(record_there, dict) and record_there.get("block_bytes") != block_bytes:
        theirs = _short(record_there.get("block_bytes"))
        raise RootError(
            f"{mapper.record_path} says block_bytes {theirs}, here it is {block_bytes}: every file there would "
            f"have the wrong size; set block_bytes to {theirs} or choose another root_dir"
        )
    if none_digest is None and isinstance(record_there, dict):
        record = {name: value for name, value in record.items() if value is not None}
        record_there = {name: value for name, value in record_there.items() if name in record}
    for problem in (_config_problem(mapper, config_there), _record_problem(mapper, record_there, record)):
        if problem is not None and on_mismatch == "warn":
            logger.warning("%s", problem)
        elif problem is not None:
            raise RootError(problem)


def check_trust(mapper: FileMapper, on_untrusted_root: str) -> None:
    """See to it that only this user, root and a group can write in the root and in those of the mapper's folders that
    are there: other writers could plant, replace and remove blocks. Raises RootError, or logs it ("warn")."""
    for path in (mapper.root_dir, mapper.base_path, mapper.blocks_path):
        try:
            status = os.stat(path)
        except OSError:
            continue  # `check_root` finds out whether it can be used
        owner, anybody = status.st_uid, status.st_mode & stat.S_IWOTH
        if owner in (os.geteuid(), 0) and not anybody:
            continue
        who = "everybody may write there" if anybody else f"it belongs to user {owner}, who may write there"
        problem = f"{path} is not to be trusted: {who}, and so plant or remove blocks; change its owner or mode, or "
        if on_untrusted_root == "refuse":
            raise RootError(f"{problem}choose another root_dir")
        logger.warning("%schoose another root_dir (on_untrusted_root is 'warn')", problem)


def check_root(root_dir: str) -> None:
    """Raises RootError if there is no such directory: kvtier makes no root, since it may be a mount that is missing."""
    try:
        if not stat.S_ISDIR(os.stat(root_dir).st_mode):
            raise RootError(f"root_dir {root_dir!r} is not a directory; give the path of one that exists")
    except FileNotFoundError:
        raise RootError(
            f"root_dir {root_dir!r} does not exist; mount it, or create it with: mkdir -p {shlex.quote(root_dir)}"
        ) from None
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP):  # the path is wrong, not the device
            hint = "choose a shorter root_dir" if error.errno == errno.ENAMETOOLONG else "give the path of a directory"
            raise RootError(f"root_dir {root_dir!r} cannot be used: {error.strerror}; {hint}") from None
        raise


def _make_folder(path: str, mode: int) -> None:
    if make_dir(path, mode):
        return
    if not stat.S_ISDIR(os.lstat(path).st_mode):  # a link could lead out of the root
        raise RootError(f"{path} is in the way, it is not a folder; remove it or choose another root_dir")
    # A probe that writes nothing: a second process must be able to open a root whose disk is full.
    if not os.access(path, os.W_OK | os.X_OK, effective_ids=True):
        code = errno.EROFS if os.statvfs(path).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(code, os.strerror(code), path)


def _settle(path: str, ours: dict[str, Any] | None, mode: int) -> dict[str, Any] | str | None:
    """Offer `ours`, and return what is at `path` afterwards; a string is the reason why it cannot be used. With None
    for `ours`, nothing is written, and the answer may be None: there is no file."""
    there: dict[str, Any] | str | None = None
    for attempt in range(SETTLE_ATTEMPTS_MAX):
        if attempt:
            time.sleep(SETTLE_SECONDS)
        there = _read(path)
        if there is None:
            if ours is None:
                return None
            publish_file(path, json.dumps(ours, indent=2, sort_keys=True).encode(), mode)
            there = _read(path)  # ours, or that of the process that was first
        # vLLM writes its config.json in place: for a moment it is there and not yet JSON.
        if there is not None and there != _NOT_JSON:
            return there
    return there or "vanishes as soon as it is written"


def _read(path: str) -> dict[str, Any] | str | None:
    """The object in a file; None if there is no file; a string is the reason why it cannot be used."""
    try:
        there = json.loads(read_small_file(path, RECORD_BYTES_MAX))
    except FileNotFoundError:
        return None
    except UnfitFileError as error:
        return str(error)
    except (ValueError, RecursionError):
        return _NOT_JSON
    return there if isinstance(there, dict) else f"holds {_short(there)} where an object should be"


def _config_problem(mapper: FileMapper, there: dict[str, Any] | str | None) -> str | None:
    path = mapper.config_path
    if isinstance(there, str):
        return f"{path} {there}, so nobody can tell what these blocks are; remove it or choose another root_dir"
    if there is None or not (differences := _differences(there, mapper.fields)):
        return None
    return (
        f"{path} says {differences}: its fields do not belong to the folder's name, so it was edited, or moved there "
        "with blocks that mean something else; remove the folder or choose another root_dir"
    )


def _record_problem(mapper: FileMapper, there: dict[str, Any] | str | None, ours: dict[str, Any]) -> str | None:
    path = mapper.record_path
    if isinstance(there, str):
        return f"{path} {there}, so nobody can tell who shares these blocks; remove it or choose another root_dir"
    if there is None or not (differences := _differences(there, ours)):
        return None
    if there.get("format") != RECORD_FORMAT:
        remedy = "use one version of kvtier for all"
    elif "hash_algorithm" in ours and there.get("hash_algorithm") != ours["hash_algorithm"]:
        remedy = f"set hash_algorithm to {_short(there.get('hash_algorithm'))}"
    else:
        remedy = f"give all processes the same seed_policy and the same {SEED_VARIABLE}"
    return (
        f"{path} says {differences}: nothing would be shared, since equal tokens get other file names here; {remedy}, "
        "or choose another root_dir"
    )


def _differences(there: dict[str, Any], ours: dict[str, Any]) -> str:
    """The fields that differ, with both values, as part of a sentence; empty if none does. Any user may have written
    what is there, so it is shown escaped and shortened."""
    names = [name for name in {**ours, **there} if _canonical(there, name) != _canonical(ours, name)]
    return ", ".join(
        f"{name if name.isidentifier() else _short(name)} {_value(there, name)} (here {_value(ours, name)})"
        for name in names[:8]
    )


def _canonical(fields: dict[str, Any], name: str) -> str | None:
    return json.dumps(fields[name], sort_keys=True) if name in fields else None  # so that 1, 1.0 and true differ


def _value(fields: dict[str, Any], name: str) -> str:
    if name not in fields:
        return "is absent"
    value = fields[name]
    return value[:8] if name == "none_hash_digest" and isinstance(value, str) and value.isalnum() else _short(value)


def _short(value: object) -> str:
    return text if len(text := repr(value)) <= 60 else text[:57] + "..."


def _unusable(root_dir: str, error: OSError) -> RootError:
    remedy = {
        **dict.fromkeys(
            (errno.EACCES, errno.EPERM), f"give user {os.geteuid()} access to it, or choose another root_dir"
        ),
        errno.EROFS: "mount it read-write, or choose another root_dir",
        errno.ENOSPC: "free some space, or choose another root_dir",
        errno.EDQUOT: "raise the quota, or choose another root_dir",
        errno.ENAMETOOLONG: "choose a shorter root_dir",
        errno.ENOTDIR: "give the path of a directory",
    }.get(error.errno or 0, "choose another root_dir")
    where = f" at {error.filename!r}" if error.filename and error.filename != root_dir else ""
    return RootError(f"root_dir {root_dir!r} cannot be used: {error.strerror or error}{where}; {remedy}")
