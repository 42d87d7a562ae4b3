"""An engine's process seen from the driver: start, ask, kill, stop. It knows the lines, not what they mean."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness.core.installation import module_command

REPOSITORY = Path(__file__).resolve().parents[2]
UP_SECONDS_MAX = 600.0
ANSWER_SECONDS_MAX = 120.0
"""An engine that is silent for so long hangs."""
STOP_SECONDS_MAX = 30.0
TRACKER_SECONDS_MAX = 5.0
LAST_OUTPUT_LINES = 25
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
    """An engine died, hung or refused; the text says which, then its last output."""


class EngineProcess:
    """`harness.e2e.engine` under `python`, with its children in a session of its own. `overlay` goes first in its path.

    Starting does not wait: `up` does. One question at a time; `ask` is `send` and `answer` in one.
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
        path = os.pathsep.join(map(str, filter(None, (overlay, REPOSITORY))))
        with open(log, "wb") as stderr:
            self._popen = subprocess.Popen(
                module_command(str(python), "harness.e2e.engine"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                env={**os.environ, **_ENVIRONMENT, **environment, "PYTHONPATH": path},
                start_new_session=True,
            )
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._read, name=f"reader-{name}", daemon=True).start()
        self._send(dict(options))

    def up(self) -> str:
        """Wait until the engine serves; its vLLM's version."""
        return str(self._answer(UP_SECONDS_MAX))

    def ask(self, do: str, **question: Any) -> Any:
        self.send(do, **question)
        return self.answer()

    def send(self, do: str, **question: Any) -> None:
        self._send({"do": do, **question})

    def answer(self) -> Any:
        return self._answer(ANSWER_SECONDS_MAX)

    def kill(self) -> None:
        """SIGKILL for all its processes, without warning; what they leave in /dev/shm goes too."""
        shared = {path for folder in self._processes() for path in _shared_memory(folder)}
        for folder in self._processes():
            with suppress(OSError):
                # Python's tracker lives on, as it would: it removes what the dead have left, then ends.
                if b"resource_tracker" not in (folder / "cmdline").read_bytes():
                    os.kill(int(folder.name), signal.SIGKILL)
        self._popen.wait()
        deadline = time.monotonic() + TRACKER_SECONDS_MAX
        while self._processes() and time.monotonic() < deadline:
            time.sleep(0.01)
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, signal.SIGKILL)
        for path in shared:
            path.unlink(missing_ok=True)

    def stop(self) -> None:
        """Let it end in good order; kill what does not."""
        assert self._popen.stdin is not None
        with suppress(OSError):
            self._popen.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(STOP_SECONDS_MAX)
        self.kill()

    def _processes(self) -> list[Path]:
        """/proc/<pid> of all that live in its session; a dead one that nobody has waited for has no command line."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # gone
                if os.getsid(int(folder.name)) == self._popen.pid and (folder / "cmdline").read_bytes():
                    found.append(folder)
        return found

    def _send(self, question: dict[str, Any]) -> None:
        assert self._popen.stdin is not None
        try:
            self._popen.stdin.write(json.dumps(question) + "\n")
            self._popen.stdin.flush()
        except OSError as error:
            raise self._failed(f"is gone ({error})") from error

    def _answer(self, seconds_max: float) -> Any:
        started = time.monotonic()
        try:
            line = self._answers.get(timeout=seconds_max)
        except queue.Empty:
            raise self._failed(f"has not answered for {time.monotonic() - started:.0f} s") from None
        if not line:
            raise self._failed("died")
        answer, error = json.loads(line)
        if error is not None:
            raise self._failed(f"says: {error}")
        return answer

    def _read(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout as lines:
            for line in lines:
                self._answers.put(line)
        self._answers.put("")

    def _failed(self, what: str) -> EngineFailed:
        words = self.log_path.read_text(errors="replace").splitlines()[-LAST_OUTPUT_LINES:]
        return EngineFailed("\n  ".join([f"engine {self.name} {what}; the end of {self.log_path}:", *words]))


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
