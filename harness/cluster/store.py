"""The store through which nodes exchange messages: torch.distributed's `TCPStore`, which rank 0 or torchrun serves.

The only importer of torch in this folder. A connection does one call at a time, and a call that waits holds it: each
thread opens its own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol

from harness.cluster.launch import Launch
from harness.core.history import in_words
from harness.core.inputs import UsageError
from harness.entry_point import pip_install

CONNECT_PAUSE_SECONDS = 0.2
CALL_SECONDS_MAX = 30.0
"""A call of the store that does not wait for another node takes longer only where the network is gone."""


class ClusterLost(OSError):
    """Nodes cannot be reached (any more); the text is one sentence."""

    def __str__(self) -> str:
        return str(self.args[0])


class Store(Protocol):
    """Values under keys, for all nodes. Every call raises ConnectionError where the store is gone."""

    def put(self, key: str, value: bytes) -> None: ...

    def take(self, key: str, seconds: float) -> bytes:
        """Waits for the value and removes it. Raises TimeoutError."""

    def has(self, key: str) -> bool: ...

    def count(self, key: str) -> int:
        """One more than the last call on any node, from 1 on."""


Connect = Callable[[], Store]


class _TorchStore:
    """One connection to a `TCPStore`."""

    def __init__(self, store: Any, prefix: str) -> None:
        from torch.distributed import DistNetworkError

        self._store, self._prefix, self._network_error = store, prefix, DistNetworkError

    @contextlib.contextmanager
    def _named(self) -> Any:
        from torch.distributed import DistStoreError

        try:
            yield
        except DistStoreError as error:
            raise TimeoutError(str(error)) from None
        except self._network_error as error:
            raise ConnectionError(str(error).partition("\n")[0]) from None

    def put(self, key: str, value: bytes) -> None:
        with self._named():
            self._store.set(self._prefix + key, value)

    def take(self, key: str, seconds: float) -> bytes:
        with self._named():
            self._store.set_timeout(timedelta(seconds=seconds))
            value: bytes = self._store.get(self._prefix + key)
            self._store.delete_key(self._prefix + key)
            return value

    def has(self, key: str) -> bool:
        with self._named():
            return bool(self._store.check([self._prefix + key]))

    def count(self, key: str) -> int:
        with self._named():
            return int(self._store.add(self._prefix + key, 1))


def torch_store(launch: Launch, seconds: float) -> tuple[Connect, object]:
    """What opens a connection to the store, and an object that serves it as long as it lives (rank 0) or None.

    Raises `ClusterLost` where rank 0 is not reached within `seconds`, and `UsageError` where rank 0 cannot listen.
    """
    if importlib.util.find_spec("torch") is None:
        raise UsageError(f"a run over several nodes needs torch, which is not installed: {pip_install('cluster')}")
    host, port = launch.address, launch.port
    listener = _listener(host, port) if launch.rank == 0 and not launch.given_store else None
    if listener is None:
        _await_port(host, port, seconds)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # what fails is raised; the log repeats it with C++ frames
    from torch.distributed import TCPStore

    wait, server = timedelta(seconds=CALL_SECONDS_MAX), None
    if listener is not None:
        options = {"wait_for_workers": False, "master_listen_fd": listener.detach()}
        server = TCPStore(host, port, None, True, wait, **options)

    def connect() -> Store:
        try:
            store = TCPStore(host, port, None, False, wait, wait_for_workers=False)
        except Exception as error:
            text = f"the connection to rank 0 at {host}:{port} was refused: {str(error).partition(chr(10))[0]}"
            raise ClusterLost(text) from None
        return _TorchStore(store, f"kvtier/{launch.name}/")

    return connect, server


def _listener(host: str, port: int) -> socket.socket:
    """Listens on the address of rank 0 alone."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(1024)
    except OSError as error:
        raise UsageError(
            f"rank 0 cannot listen at {host}:{port}: {in_words(error)}; --address must be an address of this node, and "
            "--port a free port"
        ) from None
    return listener


def _await_port(host: str, port: int, seconds: float) -> None:
    deadline, why = time.monotonic() + seconds, "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            socket.create_connection((host, port), min(left, 5.0)).close()
            return
        except OSError as error:
            why = in_words(error) if error.errno else str(error)
            time.sleep(min(CONNECT_PAUSE_SECONDS, max(0.0, deadline - time.monotonic())))
    raise ClusterLost(
        f"rank 0 was not reached at {host}:{port} within {seconds:g} s: {why}; start it with the same --address and "
        f"--port, and open the port between the nodes"
    )
