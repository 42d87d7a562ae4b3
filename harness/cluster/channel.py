"""Messages in order from one node to another through a store: a JSON object and a payload of bytes.

`Outbox` and `Inbox` of one name are the two ends. A receiver that is slow holds the sender of payloads back, so that
the store keeps at most `PAYLOADS_MAX` of them for each node.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any

from harness.cluster.store import Store

PAYLOADS_MAX = 8
FULL_PAUSE_SECONDS = 0.002

Message = tuple[dict[str, Any], bytes]


class Outbox:
    """The sending end. Thread-safe."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self._sent = 0
        self._payloads: list[int] = []
        self._lock = threading.Lock()

    def send(self, message: dict[str, Any], payload: bytes = b"") -> None:
        """Raises ConnectionError where the store is gone."""
        value = json.dumps(message, separators=(",", ":")).encode() + b"\n" + payload
        with self._lock:
            if payload:
                self._payloads.append(self._sent)
                if len(self._payloads) > PAYLOADS_MAX:
                    oldest = self._key(self._payloads.pop(0))
                    while self._store.has(oldest):
                        time.sleep(FULL_PAUSE_SECONDS)
            self._store.put(self._key(self._sent), value)
            self._sent += 1

    def _key(self, number: int) -> str:
        return f"{self._name}/{number}"


class Inbox:
    """The receiving end, for one thread."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self._received = 0

    def receive(self, seconds: float) -> Message:
        """The next message. Raises TimeoutError, and ConnectionError where the store is gone."""
        value = self._store.take(f"{self._name}/{self._received}", seconds)
        self._received += 1
        head, _, payload = value.partition(b"\n")
        message: dict[str, Any] = json.loads(head)
        return message, payload
