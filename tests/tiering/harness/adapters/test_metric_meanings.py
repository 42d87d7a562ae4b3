"""One scrape of a tier's endpoint."""

from __future__ import annotations

import urllib.request

import pytest
from prometheus_client import CollectorRegistry, Gauge, start_http_server

from harness.adapters.metric_meanings import Meaning, scrape


def test_a_scrape_uses_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the environment cannot reach this machine's loopback."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # urlopen keeps the proxies of its first call
    registry = CollectorRegistry()
    Gauge("flying", "Jobs without a result.", registry=registry).set(3)
    server, thread = start_http_server(0, "127.0.0.1", registry)
    try:
        found = scrape(f"127.0.0.1:{server.server_port}", [Meaning("jobs in flight", "flying")])
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert found == {"jobs in flight (both)": 3.0}
