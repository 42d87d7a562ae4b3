"""An engine's process, the driver's side: start, send, receive, kill, stop. The lines' meaning is `vllm_engine`'s."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.core.installation import ROOT as REPOSITORY
from harness.runtime.process import ChildEnded, JsonProcess

UP_SECONDS_MAX = 600.0
ANSWER_SECONDS_MAX = 120.0
"""An engine without an answer for this time hangs."""
STOP_SECONDS_MAX = 30.0
TRACKER_SECONDS_MAX = 5.0
_ENVIRONMENT = {
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several engines share the cores
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONUNBUFFERED": "1",
}


class EngineFailed(Exception):
    """An engine died, hung or reported an error; the text states which, then its last output."""


class EngineProcess:
    """`harness.e2e.vllm_engine` under `python`, its children in a session of its own. `overlay` goes first in its path.

    The constructor does not wait; `up` does. One request at a time; `request` is `send` and `answer` in one.
    """

    def __init__(
        self,
        name: str,
        python: Path,
        overlay: Path | None,
        options: Mapping[str, Any],
        log: Path,
        environment: Mapping[str, str],
    ) -> None:
        self.name, self.log_path = name, log
        log.write_bytes(b"")
        self._process = JsonProcess(
            str(python),
            "harness.e2e.vllm_engine",
            path=os.pathsep.join(map(str, filter(None, (overlay, REPOSITORY)))),
            environment={**_ENVIRONMENT, **environment},
            stderr=log,
        )
        self._send(dict(options))

    def up(self) -> str:
        """Wait until the engine serves; its vLLM's version."""
        return str(self._answer(UP_SECONDS_MAX))

    def request(self, do: str, **arguments: Any) -> Any:
        self.send(do, **arguments)
        return self.answer()

    def send(self, do: str, **arguments: Any) -> None:
        self._send({"do": do, **arguments})

    def answer(self) -> Any:
        return self._answer(ANSWER_SECONDS_MAX)

    def kill(self) -> None:
        """SIGKILL all its processes, and remove their files in /dev/shm."""
        shared = {path for folder in self._processes() for path in _shared_memory(folder)}
        for folder in self._processes():
            with suppress(OSError):
                # Python's resource tracker stays: it removes what killed processes left, then ends.
                if b"resource_tracker" not in (folder / "cmdline").read_bytes():
                    os.kill(int(folder.name), signal.SIGKILL)
        self._process.reap()
        deadline = time.monotonic() + TRACKER_SECONDS_MAX
        while self._processes() and time.monotonic() < deadline:
            time.sleep(0.01)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for path in shared:
            path.unlink(missing_ok=True)

    def stop(self) -> None:
        """Wait for an orderly end, then kill what is left."""
        self._process.close_stdin()
        with suppress(TimeoutError):
            self._process.wait(STOP_SECONDS_MAX)
        self.kill()

    def _processes(self) -> list[Path]:
        """/proc/<pid> of the live processes of its session; a zombie has no command line."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # gone
                if os.getsid(int(folder.name)) == self._process.pid and (folder / "cmdline").read_bytes():
                    found.append(folder)
        return found

    def _send(self, request: dict[str, Any]) -> None:
        if not self._process.send(request):
            raise self._failed("ended before it read its request")

    def _answer(self, seconds_max: float) -> Any:
        try:
            answer, error = self._process.receive(seconds_max)
        except TimeoutError:
            raise self._failed(f"has not answered for {seconds_max:.0f} s") from None
        except ChildEnded:
            raise self._failed("died") from None
        if error is not None:
            raise self._failed(f"failed: {error}")
        return answer

    def _failed(self, what: str) -> EngineFailed:
        lines = self._process.last_output().splitlines()
        return EngineFailed("\n  ".join([f"engine {self.name} {what}; the end of {self.log_path}:", *lines]))


def _shared_memory(process: Path) -> set[Path]:
    """Files in /dev/shm that a process has mapped."""
    with suppress(OSError):
        lines = (process / "maps").read_text().splitlines()
        return {
            path
            for line in lines
            if (path := Path(line[line.find("/") :])).is_relative_to("/dev/shm") and path.exists()
        }
    return set()
