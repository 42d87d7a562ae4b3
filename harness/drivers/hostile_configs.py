"""Opens a root again and again with damaged or hostile files in place of those that the tier keeps beside its blocks.

For each: does the tier refuse in words, or open, store a block and load it again? One process for all, since each
opening is short; a note "opening" per case. It judges no case.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

from harness.adapters import adapter_class
from harness.adapters.base import Adapter
from harness.checkers.base import is_bookkeeping
from harness.core import content, notes
from harness.core.patience import Patience
from harness.core.request_traces import tokens_of
from harness.faults import hostile_configs
from harness.runtime.worker import Worker

TRY_SECONDS_MAX = 5.0


def _round_trip(adapter: Adapter, block: int) -> str:
    """Store a block and load it into another slot; "" when it came back right."""
    size = adapter.setup.block_bytes
    flat = adapter.view.cast("B")
    slots = [flat[i * size : (i + 1) * size] for i in range(2)]
    (key,) = adapter.keys(tokens_of(block, adapter.setup.tokens_per_block))
    identity = adapter.setup.identity(block)
    content.fill(slots[0], identity)
    content.poison(slots[1])
    req_id = f"opening-{block}"
    adapter.request_started(req_id)
    patience = Patience(TRY_SECONDS_MAX)
    for number, submit in enumerate((adapter.submit_store, adapter.submit_load)):
        while number and adapter.lookup([key], req_id) != ["hit"]:  # asked for before it is loaded, as engines do
            adapter.step()
            if patience.is_over():
                return "the block stored was not found"
        submit(number, [key], [number], req_id)
        while not (finished := adapter.poll()):
            adapter.step()
            if patience.is_over():
                return "no result came"
        if finished[0].failed:
            return f"{'load' if number else 'store'} failed"
    adapter.request_finished(req_id)
    return content.judge(slots[1], identity) or ""


def _open(worker: Worker, root: Path, block: int) -> dict[str, str]:
    setup = dataclasses.replace(
        worker.setup,
        root_dir=str(root),
        slots=8,
        n_read_threads=1,
        n_write_threads=1,
        options=dict(worker.setup.options),
    )
    try:
        adapter = adapter_class(worker.instruction.tier)(setup)
    except Exception as error:
        return {"outcome": "refused", "error": type(error).__name__, "said": str(error)}
    try:
        return {"outcome": "opened", "error": "", "said": _round_trip(adapter, block)}
    except Exception as error:
        return {"outcome": "opened", "error": type(error).__name__, "said": f"{type(error).__name__}: {error}"}
    finally:
        adapter.close()


def drive(worker: Worker, every: int = 1) -> None:
    """All hostile contents, or each `every`-th, in each JSON file that the tier keeps in a root opened before."""
    if worker.parent.receive("go") is None:
        return
    root = Path(worker.setup.root_dir) / "hostile"
    root.mkdir()
    said = _open(worker, root, 0)
    worker.note(notes.Opening(file="", **said), "untouched")
    own = worker.adapter.bookkeeping
    kept = [p for p in root.rglob("*.json") if is_bookkeeping(p.relative_to(root).as_posix(), own)]
    clean = {path: path.read_bytes() for path in kept}
    block = 0
    for path, valid in clean.items():
        try:
            is_object = isinstance(json.loads(valid), dict)
        except ValueError:
            is_object = False
        for index, hostile in enumerate(hostile_configs(valid if is_object else b"{}")):
            if index % every or worker.parent.stop.is_set():
                continue
            block += 1
            for other, content_before in clean.items():
                other.write_bytes(content_before)
            path.write_bytes(hostile.content)
            said = _open(worker, root, block)
            worker.note(notes.Opening(file=path.name, **{k: v[:500] for k, v in said.items()}), hostile.name)
            worker.tick()
    shutil.rmtree(root, ignore_errors=True)
