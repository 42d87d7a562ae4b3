"""Every fault by name: its mechanism, what it hits, and a tier's guarantees under it. Scenarios and docs read it.

Pure data. The mechanisms are in `mounts`, `processes` and `damage`, and a scenario calls them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

from harness.faults.damage import DAMAGES
from harness.faults.processes import PUBLISH_STEPS, Injection
from harness.faults.rules import Rule

Mechanism = Literal[
    "rule",  # `FaultFs(root)`, then `inject(*fault.rules)` ... `lift()`
    "disconnect",  # `FaultFs(root)`, then `disconnect()` ... `lift()`
    "disk_full",  # root on `small_disk`, then `fill()` ... `free()`
    "read_only",  # root on `small_disk`, then `with read_only(mount)`
    "fd_limit",  # `with fd_limit(spare, pid)` of each worker
    "file_size_limit",  # `with file_size_limit(size_bytes, pid)` of each worker
    "injection",  # workers started by `strace_inject(argv, *fault.injections)`; ends by itself
    "damage",  # `mangle(path, fault.damage, seed)` on stored blocks
    "stale_temps",  # `stale_temps(folder, ...)` before and between stores
    "hostile_config",  # each of `hostile_configs(valid)` in place of config.json
    "clock",  # workers started with `SteppedClock.environment`, then `step(...)` ... `step(0)`
]
Stage = Literal["start", "lookup", "store", "load"]

GUARANTEES: dict[str, str] = {
    "no wrong byte": "a load reported ok holds exactly the bytes of its key",
    "one result": "every job gets exactly one result, in bounded time unless the device hangs",
    "reported": "a block that was not stored or loaded is reported failed, never ok",
    "others unharmed": "the other blocks of the same job, and other jobs, succeed",
    "counted": "the tier counts it, by a reason that names the cause",
    "no block": "nothing that is not the whole block gets its name",
    "no leftovers": "no temp file, descriptor or slot is left behind by a process that lives",
    "not blocked": "calls of the tier return at once, and the other direction goes on",
    "repaired": "a later store of the same block makes it good",
    "explained": "the process refuses to start with a reason, or works correctly and reports the fault",
}
"""All guarantees under faults, in full."""

_LOAD = ("no wrong byte", "one result", "reported", "others unharmed", "counted")
_STORE = ("no block", "one result", "reported", "others unharmed", "counted", "no leftovers")
_BOTH = (*_STORE, "no wrong byte")
_HALF = "*[02468ace].bin"
"""Half of the blocks, by their names: the kernel itself retries after ESTALE, which would hide each second request."""


class Fault(NamedTuple):
    """One fault. `reasons`: errno names by one of which a tier may count it (empty: its own word, or none is due).

    With `liveness`, traffic after the lift must succeed again in the same processes, without a restart.
    """

    name: str
    mechanism: Mechanism
    what: str
    hits: tuple[Stage, ...]
    guarantees: tuple[str, ...]
    liveness: bool = True
    reasons: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    injections: tuple[Injection, ...] = ()
    damage: str = ""


def _rule(name: str, what: str, hits: Stage, guarantees: tuple[str, ...], *rules: Rule, reasons: str = "") -> Fault:
    errors = tuple(rule.action for rule in rules if rule.error)
    return Fault(name, "rule", what, (hits,), guarantees, reasons=tuple(reasons.split()) or errors, rules=rules)


_OF_RULES = [
    _rule("eio_read", "each third read fails", "load", _LOAD, Rule("read", "EIO", every=3)),
    _rule("eio_read_all", "every read fails", "load", _LOAD, Rule("read", "EIO")),
    _rule("eio_write", "each third write fails", "store", _STORE, Rule("write", "EIO", every=3)),
    _rule("eio_write_some", "a tenth of writes fails", "store", _STORE, Rule("write", "EIO", probability=0.1)),
    _rule("eio_probe", "each third probe of a file fails", "lookup", _LOAD, Rule("getattr", "EIO", every=3)),
    _rule("enospc_write", "each second write finds no space", "store", _STORE, Rule("write", "ENOSPC", every=2)),
    _rule("enospc_create", "no file can be made", "store", _STORE, Rule("create mkdir", "ENOSPC")),
    _rule("edquot_close", "close() reports a quota", "store", _STORE, Rule("flush", "EDQUOT", every=2)),
    _rule("emfile_open", "the file system reports that no descriptor is left", "load", _LOAD, Rule("open", "EMFILE")),
    _rule("eacces_open", "no file may be opened", "load", _LOAD, Rule("open", "EACCES")),
    _rule("eacces_create", "no file may be made", "store", _STORE, Rule("create mkdir", "EACCES")),
    _rule("erofs", "suddenly read-only", "store", _STORE, Rule("create write mkdir rename", "EROFS")),
    _rule("eexist_rename", "each second rename: name taken", "store", _STORE, Rule("rename", "EEXIST", every=2)),
    _rule(
        "reply_lost",
        "renames and links are done and then reported failed, as when a network file system's reply is lost",
        "store",
        ("no wrong byte", "one result", "others unharmed", "no leftovers"),
        Rule("rename", "EIO", every=2, late=True),
        Rule("link", "EEXIST", every=2, late=True),
    ),
    _rule("enoent_rename", "temp files vanish before their rename", "store", _STORE, Rule("rename", "vanish", every=2)),
    _rule("short_read", "each second read ends after 1000 bytes", "load", _LOAD, Rule("read", "short", 1000, every=2)),
    _rule("end_of_file", "reads end at once, as of an empty file", "load", _LOAD, Rule("read", "short", 0)),
    _rule(
        "short_write",
        "each second write writes and reports 4096 bytes; going on after it is as right as failing",
        "store",
        ("no block", "no wrong byte", "one result", "no leftovers"),
        Rule("write", "short", 4096, every=2),
    ),
    _rule("bit_flip_read", "each fourth read inverts a bit", "load", _LOAD, Rule("read", "bit_flip", -1, every=4)),
    _rule(
        "bit_flip_write",
        "each fourth write inverts a bit on its way to the disk, unreported",
        "store",
        ("no wrong byte", "one result", "counted", "repaired"),
        Rule("write", "bit_flip", -1, every=4),
    ),
    _rule(
        "lost_write",
        "each fourth write leaves zeros, unreported",
        "store",
        ("no wrong byte", "one result", "counted", "repaired"),
        Rule("write", "zero", 0, every=4),
    ),
    _rule(
        "truncated_open",
        "files shrink when opened",
        "load",
        _LOAD,
        Rule("open", "truncate", 4096, every=3),
    ),
    _rule("vanished", "a file vanishes between lookup and load", "load", _LOAD, Rule("open", "vanish", every=3)),
    _rule(
        "slow",
        "every read and write takes 20 ms more",
        "load",
        ("no wrong byte", "one result", "not blocked"),
        Rule("read write", "delay", 0.02),
    ),
    _rule(
        "hung_read",
        "one read never ends until the fault is lifted",
        "load",
        ("no wrong byte", "not blocked", "others unharmed"),
        Rule("read", "hang", nth=1),
    ),
    _rule(
        "hung_write",
        "one write never ends until the fault is lifted",
        "store",
        ("no block", "no wrong byte", "not blocked", "others unharmed"),
        Rule("write", "hang", nth=1),
    ),
    _rule(
        "hung_device",
        "no read or write ends until the fault is lifted",
        "load",
        ("no wrong byte", "not blocked"),
        Rule("read write", "hang"),
    ),
    _rule(
        "no_direct_io",
        "opening with O_DIRECT is refused, from the start",
        "start",
        ("no wrong byte", "one result", "explained"),
        Rule("open create", "EINVAL", direct_only=True),
    ),
]

_LOST: dict[str, tuple[str, Stage, tuple[str, ...], Rule]] = {
    "probe": ("every probe of half of the blocks fails", "lookup", _LOAD, Rule("getattr", "EIO", path=_HALF)),
    "open": ("half of the blocks cannot be opened", "load", _LOAD, Rule("open", "EIO", path=_HALF)),
    "read": ("half of the blocks cannot be read", "load", _LOAD, Rule("read", "EIO", path=_HALF)),
    "write": ("each second write fails", "store", _STORE, Rule("write", "EIO", every=2)),
    "publish": ("half of the blocks cannot get their names", "store", _STORE, Rule("rename link", "EIO", path=_HALF)),
    "all": ("every call fails", "load", _BOTH, Rule("*", "EIO")),
}
_OF_A_LOST_SERVER = [
    _rule(f"{error.lower()}_{name}", f"{error}: {what}", hits, guarantees, replace(rule, action=error))
    for error in ("ESTALE", "EREMOTEIO", "ENOTCONN", "ESHUTDOWN")
    for name, (what, hits, guarantees, rule) in _LOST.items()
]
"""Errors of network file systems for an unreachable server, or for a file that another host has replaced."""

_OF_THE_SYSTEM = [
    Fault("disconnected", "disconnect", "the file system's server dies and comes back", ("store", "load"), _BOTH,
          reasons=("ENOTCONN", "ECONNABORTED", "EIO")),
    Fault("disk_full", "disk_full", "a real disk is full, then has room again", ("store",), _STORE,
          reasons=("ENOSPC",)),
    Fault("read_only", "read_only", "a real disk turns read-only and back", ("store",), _STORE, reasons=("EROFS",)),
    Fault("fd_limit", "fd_limit", "the process may open no more descriptors", ("store", "load"), _BOTH,
          reasons=("EMFILE",)),
    Fault("file_size_limit", "file_size_limit", "a write is cut short by RLIMIT_FSIZE", ("store",), _STORE,
          reasons=("EFBIG",)),
    Fault("stale_temps", "stale_temps", "temp files of dead writers are left", ("store", "lookup"),
          ("no wrong byte", "one result", "no block")),
    Fault("hostile_config", "hostile_config", "config.json holds anything at all", ("start",),
          ("no wrong byte", "explained")),
    Fault("clock_stepped", "clock", "the wall clock jumps an hour forth and back", ("store", "load"),
          ("no wrong byte", "one result", "others unharmed", "not blocked")),
]  # fmt: skip

_OF_SYSTEM_CALLS = [
    Fault("enospc_third_write", "injection", "a thread's third write finds no space", ("store",), _STORE,
          reasons=("ENOSPC",), injections=(Injection(PUBLISH_STEPS["write"].calls, "3", error="ENOSPC"),)),
    Fault("short_third_write", "injection", "a thread's third write reports 4096 bytes and writes none", ("store",),
          ("no wrong byte", "one result", "counted"),
          injections=(Injection(PUBLISH_STEPS["write"].calls, "3", returns=4096),)),
    Fault("eexist_link", "injection", "a thread's second link finds the name taken, and it is not", ("store",),
          ("no wrong byte", "one result"), injections=(Injection(PUBLISH_STEPS["link"].calls, "2", error="EEXIST"),)),
    *(
        Fault(f"killed_at_{step}", "injection", f"the process is killed just before its third {step}", ("store",),
              ("no block", "no wrong byte"), liveness=False, injections=(Injection(calls, "3", kill="SIGKILL"),))
        for step, (calls, _) in PUBLISH_STEPS.items() if step not in ("create", "plain_write")
    ),
]  # fmt: skip

_OF_DAMAGE = [
    Fault(f"damage_{name}", "damage", damage.what, ("lookup", "load"),
          ("no wrong byte", "one result", "others unharmed")
          + (() if name in ("remove", "lose_last_page") else ("counted",))
          + (("no block",) if name == "remove" else ())
          + (() if name in ("unreadable", "lose_last_page") else ("repaired",)),
          damage=name)
    for name, damage in DAMAGES.items()
]  # fmt: skip

_ALL = [*_OF_RULES, *_OF_A_LOST_SERVER, *_OF_THE_SYSTEM, *_OF_SYSTEM_CALLS, *_OF_DAMAGE]
FAULTS: dict[str, Fault] = {fault.name: fault for fault in _ALL}
"""All faults by name. Scenarios give the rules and damages their own seed (`dataclasses.replace(rule, seed=...)`)."""


def describe_faults() -> str:
    """The table as Markdown, for the docs."""
    rows = ["| fault | mechanism | what happens | guarantees | recovers after |", "|---|---|---|---|---|"]
    for fault in FAULTS.values():
        again = "lift" if fault.liveness else "restart"
        rows.append(f"| {fault.name} | {fault.mechanism} | {fault.what} | {', '.join(fault.guarantees)} | {again} |")
    meanings = [f"- **{name}**: {meaning}." for name, meaning in GUARANTEES.items()]
    return "\n".join([*rows, "", "## Guarantees", "", *meanings, ""])
