"""Derives the names of blocks under many settings, in a process of its own: `python -m harness.drivers.block_names`.

The determinism scenario starts it, with every Python of the machine; so it imports the standard library and the tier
alone, and for other interpreters than the tier's own only what names blocks. A line of JSON in, one out. It stores and
loads nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from harness.adapters import NAMES, UnknownTier, adapter_class
from harness.adapters.base import Adapter, Naming, PeerMissing, TierSetup

CHAINS = (
    ((0, 1, 2), tuple(range(48))),
    ((3, 4, 5), (1, *range(1, 48))),  # another first token: nothing in common
    ((0, 6), (*range(16), *range(100, 116))),  # the same first block, then another
    ((7,), (0, 1, 255, 256, 65535, 65536, 151643, 2**31 - 1, *range(8))),
)
"""(block ids, tokens): equal ids mean equal prefixes."""
START_SECONDS_MAX = 200.0


def derive(
    tier: str, whole: bool, fresh_roots: bool, setups: Sequence[dict[str, Any]], moments: Sequence[float] = ()
) -> list[dict[str, Any]]:
    """What this process calls the blocks of `CHAINS` under each setup: {"status": "names", "digest", "names": [[block,
    key, file name], ...]}, or "refused" with what its constructor said, or "raised" with what came later, or "missing"
    with what this interpreter lacks. Each at its moment by `time.monotonic()`, if there are moments."""
    answers = []
    for number, values in enumerate(setups):
        if moments:
            time.sleep(max(0.0, moments[number] - time.monotonic()))
        answers.append(_derive(tier, whole, fresh_roots, TierSetup(**values)))
    return answers


def _derive(tier: str, whole: bool, fresh_roots: bool, setup: TierSetup) -> dict[str, Any]:
    root = tempfile.mkdtemp(prefix="names-", dir=setup.root_dir) if fresh_roots else setup.root_dir
    setup = dataclasses.replace(setup, root_dir=root)
    naming: Naming | None = None
    try:
        naming = _naming(tier, whole, setup)
        names = [
            (block, key.hex(), naming.file_name(key) or key.hex())
            for blocks, tokens in CHAINS
            for block, key in zip(blocks, naming.keys(tokens), strict=True)
        ]
        return {"status": "names", "digest": naming.none_hash_digest(), "names": names, "why": ""}
    except (PeerMissing, ImportError, UnknownTier) as error:
        return {"status": "missing", "why": str(error)}
    except Exception as error:
        missing = "needs the package" in str(error)
        status = "missing" if missing else "raised" if naming else "refused"
        return {"status": status, "why": str(error) or type(error).__name__}
    finally:
        if isinstance(naming, Adapter):
            with contextlib.suppress(Exception):  # the last part of the scenario judges how a tier closes
                naming.close()
        if fresh_roots:
            shutil.rmtree(root, ignore_errors=True)


def _naming(tier: str, whole: bool, setup: TierSetup) -> Naming:
    if whole or tier not in NAMES:
        return adapter_class(tier)(setup)
    module_name, _, class_name = NAMES[tier].partition(":")
    found: Naming = getattr(import_module(module_name), class_name)(setup)
    return found


def _answer(connection: Any, job: dict[str, Any]) -> None:
    connection.send(derive(**job))
    connection.close()


def in_child(method: str, job: dict[str, Any]) -> list[dict[str, Any]]:
    """The same in a child of this process, started as `method` of multiprocessing does it."""
    context: Any = multiprocessing.get_context(method)
    mine, theirs = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(theirs, job))
    child.start()
    theirs.close()
    try:
        if not mine.poll(START_SECONDS_MAX):
            raise TimeoutError(f"a child started by {method} said nothing for {START_SECONDS_MAX:g} s")
        answer: list[dict[str, Any]] = mine.recv()
        return answer
    except EOFError:
        return [{"status": "refused", "why": f"a child started by {method} died"} for _ in job["setups"]]
    finally:
        child.kill()
        child.join()


def main() -> None:
    order = json.loads(sys.stdin.readline())
    methods = order.pop("start_methods")
    sys.path += order.pop("searched_last")
    for module in order.pop("preload"):
        with contextlib.suppress(ImportError):
            import_module(module)
    if order.pop("rendezvous"):
        with contextlib.suppress(Exception):
            adapter_class(order["tier"])  # its imports would part those that are to open at one moment
        print(json.dumps({"ready": True}), flush=True)
        order["moments"] = json.loads(sys.stdin.readline())
    answers = {"fresh": derive(**order)}
    answers |= {method: in_child(method, order) for method in methods}
    print("\n" + json.dumps({"python": sys.version.split()[0], "answers": answers}), flush=True)


if __name__ == "__main__":
    main()
