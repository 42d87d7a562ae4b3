"""Names of the files in a run folder, and how they are written: whole or not at all. `recorded_run` reads them."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path


def process_label(process: int, incarnation: int = 0) -> str:
    """Names a process in files and findings: "3", or "3.1" after its first restart."""
    return f"{process}.{incarnation}" if incarnation else f"{process}"


def trace_ids(run_name: str, req_id: str) -> tuple[str, str]:
    """W3C trace id (32 hex digits) and span id (16) of a request, from the name of the run's folder."""
    name = hashlib.blake2b(f"{run_name}/{req_id}".encode(), digest_size=24).hexdigest()
    return name[:32], name[32:]


def write_text(path: Path, text: str) -> None:
    """Replaces a file in one step: a reader never gets half of it. Raises OSError with the path; then the file is as it
    was before."""
    fresh = path.with_name(f".{path.name}.{os.urandom(6).hex()}")
    try:
        fresh.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files may be any bytes
        fresh.replace(path)
    except OSError as error:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
        error.filename, error.filename2 = str(path), None
        raise


def write_json(path: Path, value: object) -> None:
    """As `write_text`."""
    write_text(path, json.dumps(value, indent=1, default=str) + "\n")
