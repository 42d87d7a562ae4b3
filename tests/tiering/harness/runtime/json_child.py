"""The child of `test_process`: carries out one order a line."""

from __future__ import annotations

import os
import sys
from typing import Any

from harness.runtime.process import claim_stdout, serve


def _answer(order: dict[str, Any]) -> Any:
    match order["do"]:
        case "echo":
            return order["value"]
        case "print":  # a library that prints is no answer
            print(order["value"])
            os.write(1, b"raw\n")
            return True
        case "where":
            return {"argv": sys.argv[1:], "group": os.getpgrp(), "session": os.getsid(0), "env": dict(os.environ)}
        case "die":
            print(order["value"], file=sys.stderr)
            os._exit(order["code"])
        case "tear":
            os.write(sink.fileno(), b'{"half": ')
            os._exit(0)
        case "hang":
            sys.stdin = open(os.devnull)  # it never notices that its own stdin ends
            while True:
                os.read(os.pipe()[0], 1)


if __name__ == "__main__":
    sink = claim_stdout()
    serve(_answer, sink)
