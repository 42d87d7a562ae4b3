"""A contestant's process, `python -m harness.bench.child TIER`, started by `compared_tiers`. It imports the tier once,
then forks for every measurement: each begins with a new tier, and ends even if threads of the tier hang.

JSON lines. In: {"measure", "setup", "arguments", "processes", "seconds_max"}. Out: {"ready"} once, then for each
{"results": [one dict a process]} or {"error": sentence}.
"""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import sys
import time
import traceback
from typing import Any

from harness.adapters import adapter_class
from harness.adapters.base import PeerMissing, TierSetup
from harness.bench import measures, raw
from harness.runtime.process import claim_stdout, serve

NO_TIER = "raw"
"""The contestant without a tier: the device, the memory, the file system themselves."""


def main(tier: str) -> int:
    sink = claim_stdout()
    try:
        if tier != NO_TIER:
            adapter_class(tier)
        if tier == "vllm":
            from harness.adapters.vllm import import_vllm

            import_vllm(c_extension=True)  # seconds, once
    except PeerMissing as error:
        print(json.dumps({"missing": str(error)}), file=sink)
        return 2
    print(json.dumps({"ready": True}), file=sink)
    serve(functools.partial(_measure, tier), sink)
    return 0


def _measure(tier: str, order: dict[str, Any]) -> dict[str, Any]:
    """Fork `processes` children, start them together when all are ready, and gather their results."""
    count = order.get("processes", 1)
    deadline = time.monotonic() + order["seconds_max"]
    start_read, start_write = os.pipe()
    children: list[tuple[int, int]] = []
    for index in range(count):
        out_read, out_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(out_read)
            os.close(start_write)
            _child(tier, order, index, start_read, out_write)
        os.close(out_write)
        children.append((pid, out_read))
    os.close(start_read)
    output = [b""] * count
    try:
        for index, (_, pipe) in enumerate(children):
            output[index] += _read(pipe, deadline, until=b"\n")
        os.close(start_write)  # the end of this pipe is the start
        start_write = -1
        for index, (_, pipe) in enumerate(children):
            output[index] += _read(pipe, deadline)
        return _gather(output)
    except TimeoutError:
        return {"error": f"{order['measure']} did not end within {order['seconds_max']:g} s"}
    finally:
        if start_write >= 0:
            os.close(start_write)
        if stalled := order["arguments"].get("fuse_pid"):
            os.kill(stalled, signal.SIGCONT)  # else the child that stopped it could not be ended
        for pid, pipe in children:
            os.close(pipe)
            os.kill(pid, signal.SIGKILL)  # at once: jobs that are queued in the tier shall not run
            os.waitpid(pid, 0)


def _gather(output: list[bytes]) -> dict[str, Any]:
    results = []
    for text in output:
        lines = text.decode().splitlines()
        answer = json.loads(lines[-1]) if lines else {"error": "the process died without a result"}
        if "error" in answer:
            return {"error": answer["error"]}
        if "result" not in answer:
            return {"error": "the process died in the middle of its measurement"}
        results.append(answer["result"])
    return {"results": results}


def _read(pipe: int, deadline: float, until: bytes | None = None) -> bytes:
    """Bytes from `pipe` up to its end, or to the first `until`."""
    data = b""
    while until is None or until not in data:
        if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError
        piece = os.read(pipe, 1 << 16)
        if not piece:
            break
        data += piece
    return data


def _child(tier: str, order: dict[str, Any], index: int, start: int, sink: int) -> None:
    """Never returns."""
    try:
        source = open(os.devnull)  # the parent alone reads orders
        os.dup2(source.fileno(), 0)

        def go() -> None:
            os.write(sink, b'{"ready":true}\n')
            os.read(start, 1)

        if tier == NO_TIER:
            result = getattr(raw, order["measure"])(go, **order["arguments"])
        else:
            setup = TierSetup(**order["setup"] | {"process": index})
            result = getattr(measures, order["measure"])(adapter_class(tier)(setup), go, **order["arguments"])
        answer = {"result": result}
    except BaseException as error:
        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {error}"}
    data = json.dumps(answer, default=float).encode() + b"\n"
    while data:
        data = data[os.write(sink, data) :]
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
