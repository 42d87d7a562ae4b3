"""The promise that a tier changes nothing of its process, and none of the arguments that it is given."""

from __future__ import annotations

import gc
import locale
import os
import random
import signal
import sys
import time
from typing import Any

from harness.drivers.promises.subject import Subject, keys_of, require


def surroundings_stay(subject: Subject) -> None:
    """A tier leaves its process as it is: directory, umask, signals, environment, random generator, locale, time zone,
    collector. It changes no list that it is given."""
    before = _state()
    try:
        _use(subject, before)
    finally:
        os.chdir(before["working directory"])  # for what follows


def _use(subject: Subject, before: dict[str, Any]) -> None:
    adapter = subject.open()
    blocks = subject.blocks(adapter, 4)
    subject.store(adapter, blocks)
    subject.load_all(adapter, blocks, "blocks")
    keys, slots = keys_of(blocks), [3, 2, 1, 0]
    with subject.request(adapter) as name:
        subject.ask(adapter, blocks, name)
        for call in (adapter.submit_store, adapter.submit_load):
            given = list(keys), list(slots)
            call(job := 1 << 20, *given, name)
            subject.results(adapter, [job])
            require(given == (keys, slots), f"{call.__name__} changed a list that it was given")
        given_keys = list(keys)
        adapter.lookup(given_keys, name)
        require(given_keys == keys, "lookup changed a list that it was given")
    tokens = subject.tokens(2)
    given_tokens = list(tokens)
    adapter.keys(given_tokens)
    require(given_tokens == tokens, "keys changed a list that it was given")
    _same(before, "an open instance")
    subject.close(adapter)
    _same(before, "a closed instance")


def _same(before: dict[str, Any], who: str) -> None:
    after = _state()
    changed = [name for name, value in before.items() if after[name] != value]
    require(not changed, f"{who} has changed its process: {', '.join(changed)}")


def _state() -> dict[str, Any]:
    umask = os.umask(0o022)
    os.umask(umask)
    return {
        "working directory": os.getcwd(),
        "umask": umask,
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "blocked signals": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "environment": dict(os.environ),
        "random generator": random.getstate(),
        "locale": locale.setlocale(locale.LC_ALL),
        "time zone": time.tzname,
        "garbage collector": (gc.isenabled(), gc.get_threshold()),
        "switch interval": sys.getswitchinterval(),
        "recursion limit": sys.getrecursionlimit(),
    }
