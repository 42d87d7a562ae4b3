"""Where system calls cannot be stopped, the reason is said."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from harness.explore import seccomp
from harness.explore.model import CannotExplore
from harness.explore.search import explore, replay, unavailable
from tests.tiering.harness.explore.small import SOUND, program

WITHOUT_SECCOMP = """
import ctypes, struct
import harness.explore.seccomp as seccomp

refuse = b"".join([
    struct.pack("=HBBI", 0x20, 0, 0, 0),  # the call's number
    struct.pack("=HBBI", 0x15, 0, 1, 317),
    struct.pack("=HBBI", 0x06, 0, 0, 0x00050000 | 1),  # EPERM, as a container's profile says
    struct.pack("=HBBI", 0x06, 0, 0, 0x7fff0000),
])
buffer = ctypes.create_string_buffer(refuse, len(refuse))
program = seccomp._Program(len(refuse) // 8, ctypes.addressof(buffer))
seccomp._libc.prctl(38, 1, 0, 0, 0)
seccomp._seccomp(1, 0, ctypes.byref(program))
print(seccomp.unavailable())
"""


@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
def test_a_container_that_forbids_seccomp_is_named_as_the_reason() -> None:
    said = subprocess.run([sys.executable, "-c", WITHOUT_SECCOMP], capture_output=True, text=True, check=True).stdout
    assert said == (
        "the kernel or the container offers no seccomp user notification (seccomp: Operation not permitted)\n"
    )


@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
def test_a_process_whose_calls_are_stopped_already_is_named_as_the_reason() -> None:
    inside = replay(program(lambda root: unavailable()), (), lambda outcome: outcome.results[0])
    assert inside == "a filter cannot be installed (seccomp: Device or resource busy)"


def test_another_architecture_is_named_as_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert unavailable() == "the system is Linux on aarch64, and system calls are known for Linux on x86-64"
    with pytest.raises(CannotExplore, match=r"system calls cannot be stopped: the system is Linux on aarch64"):
        explore(SOUND["flock"])


def test_the_filter_is_shorter_than_the_kernel_allows() -> None:
    assert len(seccomp._filter()) // 8 <= 256  # jumps have 8 bits
