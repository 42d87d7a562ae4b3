"""The programs whose interleavings are run, as text: what each actor does with its tier, and on which files.

    A short: load A | store A | then store A

Before the colon stands what is under the root at the beginning, then each actor's operations, separated by commas. An
actor that begins with "then" starts when the first has ended or was killed: its restart. A and B are blocks of one
folder, C is one of another folder, where the tier has folders. `Kit` turns a text into the explorer's `Program`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import random
import select
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from harness.adapters.base import Adapter, TierSetup
from harness.core import content
from harness.core.inputs import UsageError, near
from harness.explore.model import Actor, CannotExplore, Outcome, Program

BLOCKS = "ABC"
DAMAGES = ("corrupt", "short", "long", "foreign")
OPERATIONS = ("open", "open other", "lookup", "load", "store", "evict", "collect")
REPEATABLE = ("load", "store", "evict", "collect")
"""Operations that an instance whose tier `forgets` does in one schedule after another."""
KEEP_BLOCKS = 1
"""So many blocks `evict` leaves under the root."""
OLD_SECONDS = 7200.0
"""Age of what is under the root at the beginning: nothing there belongs to a running writer."""
POLL_SECONDS = 0.0002
TICK_SECONDS = 0.2
NAMES_MAX = 20_000
"""Keys tried to find two blocks of one folder."""


class Step(NamedTuple):
    """One operation of an actor; `block` is "" where it has none."""

    operation: str
    block: str = ""

    def __str__(self) -> str:
        return f"{self.operation} {self.block}".rstrip()


class Spec(NamedTuple):
    """A program as its text says it. `given`: (block, damage or "")."""

    text: str
    given: tuple[tuple[str, str], ...]
    actors: tuple[tuple[Step, ...], ...]
    restarts: tuple[bool, ...]

    @property
    def blocks(self) -> list[str]:
        """Every block that the program names, in order."""
        named = {block for block, _ in self.given} | {step.block for actor in self.actors for step in actor}
        return sorted(named - {""})

    def has(self, *operations: str) -> bool:
        """Whether an actor does one of these."""
        return any(step.operation in operations for actor in self.actors for step in actor)

    @property
    def has_other_seed(self) -> bool:
        return self.has("open other")


def parse(text: str) -> Spec:
    """A program's text. Raises `UsageError` with the valid choices."""
    before, colon, after = text.partition(":")
    if not colon:
        before, after = "", text
    given = tuple(_given(part, text) for part in before.split(",") if part.strip())
    parts = [part.strip() for part in after.split("|")]
    restarts = tuple(part.startswith("then ") for part in parts)
    actors = tuple(tuple(_step(one, text) for one in part.removeprefix("then ").split(",")) for part in parts)
    if restarts[0]:
        raise UsageError(f"program {text!r} begins with 'then'; the first actor starts at once")
    return Spec(" ".join(text.split()), given, actors, restarts)


def _given(part: str, text: str) -> tuple[str, str]:
    block, _, damage = part.strip().partition(" ")
    if block in BLOCKS and len(block) == 1 and damage in ("", *DAMAGES):
        return block, damage
    valid = f"one of the blocks {', '.join(BLOCKS)}, alone or with {', '.join(DAMAGES)}"
    raise UsageError(f"program {text!r} has {part.strip()!r} before its colon; valid: {valid}")


def _step(part: str, text: str) -> Step:
    name = part.strip()
    if name in ("open", "open other", "evict", "collect"):
        return Step(name)
    operation, _, block = name.partition(" ")
    if operation in ("lookup", "load", "store") and block and block in BLOCKS and len(block) == 1:
        return Step(operation, block)
    valid = "open, open other, evict, collect, and lookup, load or store with a block A, B or C"
    raise UsageError(f"program {text!r} has the operation {name!r}{near(name, OPERATIONS)}; valid: {valid}")


class Kit(NamedTuple):
    """What programs need of a tier: its class and setup, and of each block its key and the name of its file under the
    root ("" where the tier has no file for it)."""

    tier: type[Adapter]
    setup: TierSetup
    keys: Mapping[str, bytes]
    files: Mapping[str, str]

    @classmethod
    def of(cls, adapter: Adapter) -> Kit:
        """The kit of an adapter's tier. Its setup serves any root."""
        keys = _keys(adapter)
        files = {block: adapter.file_name(key) or "" for block, key in keys.items()}
        setup = dataclasses.replace(adapter.setup, n_read_threads=1, n_write_threads=1, slots=2 * len(BLOCKS))
        return cls(type(adapter), setup, keys, files)

    def lacks(self, spec: Spec) -> str:
        """Why the tier cannot run a program; "": it can."""
        if spec.has("evict", "collect"):
            wanted = {step.operation for actor in spec.actors for step in actor} & {"evict", "collect"}
            if missing := sorted(wanted.difference(self.tier.operations)):
                return f"the tier has no {' and no '.join(missing)}"
        if any(damage for _, damage in spec.given) and not self.tier.exposes_files:
            return "the tier has no file for a block"
        return ""

    def program(
        self,
        spec: Spec,
        check: Callable[[Outcome], list[str]],
        state: Callable[[Outcome], Hashable] | None = None,
    ) -> Program:
        """The explorer's program. Of actors that do the same only the first may be killed: others are its mirror."""
        actors = []
        for number, steps in enumerate(spec.actors):
            alike = any(earlier == steps for earlier in spec.actors[:number])
            after = 0 if spec.restarts[number] else None
            name = f"{number}: {', '.join(map(str, steps))}"
            again = None
            if self.tier.forgets and all(step.operation in REPEATABLE for step in steps):
                again = Subject.again
            opener, mortal = self._opener(steps), after is None and not alike
            looks = any(step.operation not in self.tier.ignores_folder_status for step in steps)
            actors.append(Actor(name, opener, run_steps(steps), after, mortal, again, looks))
        return Program(spec.text, lambda root: self.fill(root, spec), tuple(actors), check, state)

    def _opener(self, steps: Sequence[Step]) -> Callable[[Path], Subject]:
        def open_subject(root: Path) -> Subject:
            subject = Subject(self, root)
            if not steps[0].operation.startswith("open"):
                subject.open()
            return subject

        return open_subject

    def fill(self, root: Path, spec: Spec) -> None:
        """What is under the root at the beginning, made by a process of its own, then damaged and aged."""
        if not spec.given and all(steps[0].operation.startswith("open") for steps in spec.actors):
            return  # an empty root
        stored = dict(spec.given)
        needed = [*stored, *("B" for damage in stored.values() if damage == "foreign" and "B" not in stored)]
        made = in_child(lambda: Subject(self, root).run([Step("open"), *(Step("store", block) for block in needed)]))
        if failed := [result for result in made if not result["ok"]]:
            raise CannotExplore(f"the tier cannot prepare the root of {spec.text!r}: {failed[0]}")
        for block, damage in stored.items():
            if damage:
                _damage(root / self.files[block], damage, root / self.files["B"])
        for block in set(needed) - set(stored):
            (root / self.files[block]).unlink()
        age(root)
        for number, block in enumerate(stored):  # the first is the least recently used
            if self.files[block]:
                then = time.time() - OLD_SECONDS + number
                os.utime(root / self.files[block], (then, then))


def _keys(adapter: Adapter) -> dict[str, bytes]:
    """Keys of the blocks: A and B have their files in one folder, if two can be found, and C in another."""
    size, folders = adapter.setup.tokens_per_block, dict[str, bytes]()

    def key(number: int) -> bytes:
        return adapter.keys([number] * size)[0]

    a, b, c = key(0), key(1), key(2)
    for number in range(NAMES_MAX):
        name = adapter.file_name(found := key(number))
        if name is None:
            break
        folder = os.path.dirname(name)
        if folder in folders:
            a, b, c = folders[folder], found, next((k for f, k in folders.items() if f != folder), c)
            break
        folders[folder] = found
    return dict(zip(BLOCKS, (a, b, key(NAMES_MAX) if c in (a, b) else c), strict=True))


class Subject:
    """The tier of one process, opened on `root`, and the operations of programs on it. Used by one thread."""

    def __init__(self, kit: Kit, root: Path) -> None:
        self._kit, self._root = kit, root
        self._adapter: Adapter | None = None
        self._jobs = itertools.count()

    def open(self, other_seed: bool = False) -> None:
        """Open the tier and fill the slots of all blocks, for stores."""
        if other_seed:
            os.environ["PYTHONHASHSEED"] = "1" if os.environ.get("PYTHONHASHSEED") == "0" else "0"
        self._adapter = self._kit.tier(dataclasses.replace(self._kit.setup, root_dir=str(self._root)))
        self._random = random.getstate()
        for slot, block in enumerate(BLOCKS):
            content.fill(self._slot(slot), self._kit.keys[block])

    def again(self) -> None:
        """Ready for the next schedule: what an application seeded is as it was after the opening."""
        random.setstate(self._random)

    def run(self, steps: Sequence[Step]) -> list[dict[str, Any]]:
        """Each operation, one after the other: what it gave, as JSON values. A refused opening ends it."""
        return list(self.reports(steps))[-1]

    def reports(self, steps: Sequence[Step]) -> Iterator[list[dict[str, Any]]]:
        """The same, after each operation what all gave so far."""
        done: list[dict[str, Any]] = []
        for step in steps:
            request = f"request {next(self._jobs)}" if step.block else ""
            if request:
                self.adapter.request_started(request)
            done.append({"step": str(step), **self._run(step, request)})
            yield done
            if request:
                self.adapter.request_finished(request)
            if "refused" in done[-1]:
                return

    def _run(self, step: Step, request: str) -> dict[str, Any]:
        if step.operation.startswith("open"):
            try:
                self.open(step.operation == "open other")
            except Exception as error:
                return {"ok": False, "refused": f"{type(error).__name__}: {error}"}
            return {"ok": True, "digest": self.adapter.none_hash_digest()}
        if step.operation in ("evict", "collect"):
            self.adapter.operate(step.operation, KEEP_BLOCKS)
            return {"ok": True}
        key = self._kit.keys[step.block]
        if step.operation == "lookup" or (step.operation == "load" and self.adapter.keeps_in_memory):
            verdict = self._lookup(key, request)
            if step.operation == "lookup":
                return {"ok": True, "seen": verdict}
            if verdict != "hit":
                return {"ok": False, "results": 1, "reasons": "miss"}
        if step.operation == "load":
            return self._load(key, step.block, request)
        return self._job("store", key, BLOCKS.index(step.block), request)

    @property
    def adapter(self) -> Adapter:
        assert self._adapter is not None, "the tier is not open"
        return self._adapter

    def _slot(self, slot: int) -> memoryview:
        size = self._kit.setup.block_bytes
        return self.adapter.view.cast("B")[slot * size : (slot + 1) * size]

    def _lookup(self, key: bytes, request: str) -> str:
        while (verdict := self.adapter.lookup([key], request)[0]) == "retry":
            self.adapter.step()
            time.sleep(POLL_SECONDS)
        return verdict

    def _load(self, key: bytes, block: str, request: str) -> dict[str, Any]:
        slot = len(BLOCKS) + BLOCKS.index(block)
        content.poison(self._slot(slot))
        result = self._job("load", key, slot, request)
        if result["ok"]:
            seeds = {content.seed_of(other): name for name, other in self._kit.keys.items()}
            result["wrong"] = content.judge(self._slot(slot), key, candidates=seeds)
        return result

    def _job(self, direction: str, key: bytes, slot: int, request: str) -> dict[str, Any]:
        number = next(self._jobs)
        submit = self.adapter.submit_load if direction == "load" else self.adapter.submit_store
        submit(number, [key], [slot], request)
        finished = list(self.adapter.poll())
        while not finished:
            time.sleep(POLL_SECONDS)
            self.adapter.step()
            finished = list(self.adapter.poll())
        finished += self.adapter.poll()
        mine = [one for one in finished if one.job_id == number]
        first = finished[0]
        return {
            "ok": list(first.ok) == [key],
            "results": len(mine),
            "outcomes": len(first.ok) + len(first.failed),
            "refused_blocks": first.refused,
            "reasons": first.reasons,
        }


def run_steps(steps: Sequence[Step]) -> Callable[[Subject], object]:
    """An actor's steps, for the engine."""
    return lambda subject: subject.reports(steps)


def in_child(work: Callable[[], Any], tick: Callable[[], bool] = lambda: True) -> Any:
    """What `work` returns, a JSON value, done in a process of its own. While it works `tick` is called now and then;
    when that returns False, the process is killed. Raises `CannotExplore` when it gave nothing."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():  # Python 3.12 warns of threads; the child uses none of theirs
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        sys.stdin = None  # a thread of the parent may hold its lock for ever, and multiprocessing closes it
        logging.disable(logging.ERROR)  # thousands of equal warnings about damaged files; this process only explores
        with contextlib.suppress(BaseException):
            os.close(reading)
            try:
                said = json.dumps({"value": work()})
            except BaseException as error:
                name = "" if isinstance(error, CannotExplore) else f"{type(error).__name__}: "
                said = json.dumps({"error": f"{name}{error}"})
            with os.fdopen(writing, "w") as pipe:
                pipe.write(said)
        os._exit(0)
    os.close(writing)
    parts: list[bytes] = []
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while not parts or parts[-1]:
            if select.select([pipe], [], [], TICK_SECONDS)[0]:
                parts.append(pipe.read(1 << 16))
            elif not tick():
                os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    answer = json.loads(b"".join(parts) or b'{"error": "the process died"}')
    if "error" in answer:
        raise CannotExplore(answer["error"])
    return answer["value"]


def _damage(path: Path, damage: str, other: Path) -> None:
    """What damages a block's file: its size stays with "corrupt" and "foreign" (another block's file)."""
    if damage == "foreign":
        shutil.copyfile(other, path)
        return
    size = path.stat().st_size
    with open(path, "r+b") as file:
        if damage == "short":
            file.truncate(size * 3 // 4)
        elif damage == "long":
            file.truncate(size + 512)
        else:
            file.seek(1000)
            file.write(b"damaged!")


def age(root: Path) -> None:
    """Make everything below `root` old."""
    then = time.time() - OLD_SECONDS
    for folder, _, files in os.walk(root, topdown=False):
        for name in (*files, ""):
            os.utime(os.path.join(folder, name), (then, then), follow_symlinks=False)
