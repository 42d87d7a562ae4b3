"""The promises of every tier to its engine, one function each; the driver "contract" checks them on real instances.

A promise uses the interface of adapters alone, so it applies to any tier, also one in C. A function returns when the
promise is kept and raises `Broken` otherwise. Scenarios check what needs several processes, floods or faults.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import psutil

from harness.adapters.base import Adapter, Finished, TierSetup, Verdict
from harness.checkers.base import some
from harness.core import content
from harness.core.history import Direction

ANSWER_SECONDS_MAX = 10.0
"""A lookup that says "retry" for so long, or a job without a result for so long, breaks its promise."""
PAUSE_SECONDS = 0.001
SLOTS_MIN = 32
"""The smallest number of slots that the promises can be checked with."""


class Broken(Exception):
    """A promise was not kept. Its text is one sentence with the observation."""


def require(kept: object, sentence: str) -> None:
    """Raise `Broken` with this sentence unless `kept` is true."""
    if not kept:
        raise Broken(sentence)


class Subject:
    """Instances of one tier on one root, driven as by an engine: calls belong to a request, jobs share no slot."""

    def __init__(self, adapter: type[Adapter], setup: TierSetup) -> None:
        assert setup.slots >= SLOTS_MIN, f"{setup.slots} slots; the promises need {SLOTS_MIN}"
        self.setup = setup
        self._adapter = adapter
        self._open: list[Adapter] = []
        self._numbers = itertools.count()
        self._jobs = itertools.count(1)

    def open(self) -> Adapter:
        """Another instance on the same root, as in another process."""
        adapter = self._adapter(self.setup)
        self._open.append(adapter)
        return adapter

    def close(self, adapter: Adapter | None = None) -> None:
        """Close this instance, or every open one."""
        for one in [adapter] if adapter else list(self._open):
            self._open.remove(one)
            one.close()

    def tokens(self, blocks: int) -> list[int]:
        """Tokens of so many blocks; no earlier call returned any of them."""
        first = next(self._numbers) << 16
        return list(range(first, first + blocks * self.setup.tokens_per_block))

    def keys(self, adapter: Adapter, blocks: int) -> list[bytes]:
        """Keys of fresh blocks."""
        return adapter.keys(self.tokens(blocks))

    def slot(self, adapter: Adapter, index: int) -> memoryview:
        size = self.setup.block_bytes
        return adapter.view.cast("B")[index * size : (index + 1) * size]

    @contextlib.contextmanager
    def request(self, adapter: Adapter) -> Iterator[str]:
        """Start a request, yield its name, finish it."""
        name = f"contract-{next(self._numbers)}"
        adapter.request_started(name)
        yield name
        adapter.request_finished(name)

    def ask(self, adapter: Adapter, keys: Sequence[bytes], name: str) -> list[Verdict]:
        """Look up until no verdict is "retry"."""
        until = time.monotonic() + ANSWER_SECONDS_MAX
        verdicts: list[Verdict] = ["retry"] * len(keys)
        while True:
            waiting = [i for i, verdict in enumerate(verdicts) if verdict == "retry"]
            got = adapter.lookup([keys[i] for i in waiting], name)
            require(len(got) == len(waiting), f"{len(waiting)} keys were looked up, {len(got)} verdicts came back")
            for i, verdict in zip(waiting, got, strict=True):
                require(verdict in ("hit", "miss", "retry"), f"a lookup answered {verdict!r}")
                verdicts[i] = verdict
            if "retry" not in verdicts:
                return verdicts
            require(time.monotonic() < until, f"a lookup said retry for {ANSWER_SECONDS_MAX:g} s")
            adapter.step()
            time.sleep(PAUSE_SECONDS)

    def look_up(self, adapter: Adapter, keys: Sequence[bytes]) -> list[Verdict]:
        """`ask` in a request of its own."""
        with self.request(adapter) as name:
            return self.ask(adapter, keys, name)

    def submit(
        self, adapter: Adapter, direction: Direction, keys: Sequence[bytes], slots: Sequence[int], name: str
    ) -> int:
        """Fill the slots of a store, poison those of a load, and submit; the job's number."""
        job = next(self._jobs)
        for key, index in zip(keys, slots, strict=True):
            if direction == "store":
                content.fill(self.slot(adapter, index), key)
            else:
                content.poison(self.slot(adapter, index))
        (adapter.submit_store if direction == "store" else adapter.submit_load)(job, keys, slots, name)
        return job

    def results(self, adapter: Adapter, jobs: Iterable[int]) -> dict[int, Finished]:
        """Step until each of these jobs has its one result. A result of another job breaks the promise."""
        waiting = set(jobs)
        found: dict[int, Finished] = {}
        until = time.monotonic() + ANSWER_SECONDS_MAX
        while waiting - found.keys():
            require(
                time.monotonic() < until, f"no result of {len(waiting - found.keys())} jobs in {ANSWER_SECONDS_MAX:g} s"
            )
            adapter.step()
            self._take(adapter, waiting, found)
            time.sleep(PAUSE_SECONDS)
        adapter.step()
        self._take(adapter, waiting, found)
        return found

    def _take(self, adapter: Adapter, waiting: set[int], found: dict[int, Finished]) -> None:
        for result in adapter.poll():
            require(result.job_id in waiting, f"a result for job {result.job_id}, which is not in flight")
            require(result.job_id not in found, f"a second result for job {result.job_id}")
            found[result.job_id] = result

    def account(self, result: Finished, keys: Sequence[bytes]) -> None:
        """Require that a result names each block of its job once, as ok or as failed."""
        named = [*result.ok, *result.failed]
        require(
            sorted(named) == sorted(keys),
            f"a job of {len(keys)} blocks ended with {len(result.ok)} ok and {len(result.failed)} failed, "
            f"{len(set(named) - set(keys))} of them not its own",
        )

    def store(self, adapter: Adapter, keys: Sequence[bytes], first_slot: int = 0) -> Finished:
        """Run one store and require that all its blocks are ok."""
        slots = range(first_slot, first_slot + len(keys))
        with self.request(adapter) as name:
            job = self.submit(adapter, "store", keys, slots, name)
            result = self.results(adapter, [job])[job]
        self.account(result, keys)
        require(not result.failed, f"{len(result.failed)} of {len(keys)} blocks were not stored, on a healthy device")
        return result

    def load(self, adapter: Adapter, keys: Sequence[bytes], slots: Sequence[int] | None = None) -> Finished:
        """Look up the blocks, require that all are hits, and load them."""
        with self.request(adapter) as name:
            verdicts = self.ask(adapter, keys, name)
            missed = verdicts.count("miss")
            require(not missed, f"{missed} of {len(keys)} blocks that were reported stored are not found")
            return self.load_hits(adapter, keys, slots or range(len(keys)), name)

    def load_hits(self, adapter: Adapter, keys: Sequence[bytes], slots: Sequence[int], name: str) -> Finished:
        """Run one load of blocks that this request has found; a block reported ok must have its bytes."""
        job = self.submit(adapter, "load", keys, slots, name)
        result = self.results(adapter, [job])[job]
        self.account(result, keys)
        ok = set(result.ok)
        for key, index in zip(keys, slots, strict=True):
            if key in ok and (wrong := content.judge(self.slot(adapter, index), key)):
                raise Broken(f"a block reported loaded has wrong bytes: {wrong}")
        return result

    def file(self, adapter: Adapter, key: bytes) -> Path:
        name = adapter.file_name(key)
        require(name is not None, "the adapter sets exposes_files, and file_name returns None")
        return Path(self.setup.root_dir) / str(name)


def slots_are_memory(subject: Subject) -> None:
    """The slots are writable, contiguous bytes of the shape that the setup states."""
    view = subject.open().view
    shape = (subject.setup.slots, subject.setup.block_bytes)
    require(view.format == "B", f"the slots have the format {view.format!r}, not 'B'")
    require(not view.readonly, "the slots are read-only")
    require(view.c_contiguous, "the slots are not contiguous")
    require(view.shape == shape, f"the slots have the shape {view.shape}, not {shape}")


def keys_name_prefixes(subject: Subject) -> None:
    """Keys are equal for equal prefixes in every instance, different for different ones, and chained after a parent."""
    one, two = subject.open(), subject.open()
    tokens = subject.tokens(6)
    keys = one.keys(tokens)
    size = subject.setup.tokens_per_block
    require(len(keys) == 6, f"6 blocks of tokens gave {len(keys)} keys")
    require(len(set(keys)) == 6, f"6 different blocks gave {len(set(keys))} different keys")
    require(two.keys(tokens) == keys, "two instances name the same tokens differently")
    require(one.keys(tokens[: 3 * size]) == keys[:3], "a block's key depends on tokens behind it")
    require(one.keys(tokens[3 * size :], keys[2]) == keys[3:], "keys chained after a parent are not those of the whole")
    changed = one.keys([tokens[0] + 1, *tokens[1:]])
    require(not set(changed) & set(keys), "a block's key does not depend on the tokens before it")
    if size > 1:
        require(one.keys(tokens[:-1]) == keys[:5], "a block that is not full has a key, or another key")
    require(one.none_hash_digest() == two.none_hash_digest(), "two instances of one process have different seeds")


def absent_blocks_are_misses(subject: Subject) -> None:
    """A block that was never stored is a miss."""
    adapter = subject.open()
    verdicts = subject.look_up(adapter, subject.keys(adapter, 8))
    require(set(verdicts) == {"miss"}, f"of 8 blocks that were never stored {verdicts.count('hit')} are hits")


def stored_blocks_load(subject: Subject) -> None:
    """A stored block is found and loads with its bytes, into other slots and in another order."""
    adapter = subject.open()
    for blocks in (1, 7):
        keys = subject.keys(adapter, blocks)
        subject.store(adapter, keys)
        result = subject.load(adapter, keys[::-1], range(9, 9 + blocks))
        require(not result.failed, f"{len(result.failed)} of {blocks} stored blocks could not be loaded")


def another_instance_finds_them(subject: Subject) -> None:
    """A block that one instance stored is found by an earlier instance, which had missed it, and by a later one."""
    one, two = subject.open(), subject.open()
    keys = subject.keys(one, 5)
    subject.look_up(two, keys)
    subject.store(one, keys)
    for other in (two, subject.open()):
        result = subject.load(other, keys)
        require(not result.failed, f"{len(result.failed)} of 5 blocks of another instance could not be loaded")


def jobs_touch_only_their_slots(subject: Subject) -> None:
    """A store leaves its slots unchanged, a load writes its own slots, and no job writes another's."""
    adapter = subject.open()
    old = subject.keys(adapter, 8)
    subject.store(adapter, old)
    fresh = subject.keys(adapter, 8)
    for index in range(subject.setup.slots):
        subject.slot(adapter, index)[:] = bytes([index % 251]) * subject.setup.block_bytes
    with subject.request(adapter) as name:
        require(set(subject.ask(adapter, old, name)) == {"hit"}, "blocks reported stored are not found")
        jobs = []
        for i in range(8):
            jobs.append(subject.submit(adapter, "store", [fresh[i]], [3 * i], name))
            jobs.append(subject.submit(adapter, "load", [old[i]], [3 * i + 1], name))
        subject.results(adapter, jobs)
    for index in range(subject.setup.slots):
        slot = subject.slot(adapter, index)
        number, kind = divmod(index, 3)
        if number < 8 and kind < 2:
            wrong = content.judge(slot, (fresh, old)[kind][number])
            require(not wrong, f"slot {index} of a {('store', 'load')[kind]} has wrong bytes after it: {wrong}")
        else:
            same = slot == bytes([index % 251]) * subject.setup.block_bytes
            require(same, f"slot {index}, which belongs to no job, was written")


def large_jobs_lose_nothing(subject: Subject) -> None:
    """A job over all slots stores and loads every block, also its last."""
    adapter = subject.open()
    blocks = subject.setup.slots
    keys = subject.keys(adapter, blocks)
    subject.store(adapter, keys)
    result = subject.load(subject.open(), keys)
    require(not result.failed, f"{len(result.failed)} of {blocks} blocks of one job could not be loaded")


def many_jobs_at_once(subject: Subject) -> None:
    """Each of many jobs in flight together has its own result."""
    adapter = subject.open()
    keys = subject.keys(adapter, SLOTS_MIN)
    with subject.request(adapter) as name:
        jobs = {subject.submit(adapter, "store", [key], [i], name): key for i, key in enumerate(keys)}
        for job, result in subject.results(adapter, jobs).items():
            subject.account(result, [jobs[job]])
    result = subject.load(adapter, keys)
    require(not result.failed, f"{len(result.failed)} of {len(keys)} blocks of single jobs could not be loaded")


def storing_twice_is_harmless(subject: Subject) -> None:
    """A present block may be stored again, by this or another instance, also at the same time."""
    one, two = subject.open(), subject.open()
    keys = subject.keys(one, 6)
    subject.store(one, keys[:3])
    subject.store(two, keys[::-1])
    fresh = subject.keys(one, 6)
    with subject.request(one) as a, subject.request(two) as b:
        jobs = [(each, subject.submit(each, "store", fresh, range(6), name)) for each, name in ((one, a), (two, b))]
        for each, job in jobs:
            subject.account(subject.results(each, [job])[job], fresh)
    result = subject.load(subject.open(), [*keys, *fresh])
    require(not result.failed, f"{len(result.failed)} of 12 blocks that were stored twice could not be loaded")


def nothing_comes_without_a_job(subject: Subject) -> None:
    """There is no result without a job, also after a drain, and each job has one result."""
    adapter = subject.open()
    adapter.drain()
    require(not adapter.poll(), "a result, although no job was submitted")
    subject.store(adapter, subject.keys(adapter, 3))
    for _ in range(3):
        adapter.step()
    adapter.drain()
    require(not adapter.poll(), "a result came twice")


def drain_waits_for_all(subject: Subject) -> None:
    """After a drain every job submitted before it has its result."""
    adapter = subject.open()
    keys = subject.keys(adapter, 16)
    with subject.request(adapter) as name:
        jobs = [subject.submit(adapter, "store", keys[i : i + 2], range(i, i + 2), name) for i in range(0, 16, 2)]
        adapter.drain()
        found = [result.job_id for result in adapter.poll()]
    require(sorted(found) == jobs, f"after a drain {len(found)} of {len(jobs)} jobs had their result")


def close_answers_for_all(subject: Subject) -> None:
    """After close every job in flight has one result, and each block reported stored is found."""
    adapter = subject.open()
    keys = subject.keys(adapter, 24)
    name = "contract-last"
    adapter.request_started(name)
    jobs = [subject.submit(adapter, "store", keys[i : i + 3], range(i, i + 3), name) for i in range(0, 24, 3)]
    subject.close(adapter)
    results = adapter.poll()
    require(sorted(r.job_id for r in results) == jobs, f"of {len(jobs)} jobs {len(results)} had a result after close")
    stored = [key for result in results for key in result.ok]
    if stored:
        verdicts = subject.look_up(subject.open(), stored)
        require(
            set(verdicts) == {"hit"}, f"{verdicts.count('miss')} of {len(stored)} blocks stored before close are lost"
        )


def requests_may_end_before_their_jobs(subject: Subject) -> None:
    """Stores of a finished request have results. A request may end without a lookup, or without a load of its hits."""
    adapter = subject.open()
    keys = subject.keys(adapter, 8)
    with subject.request(adapter) as name:
        job = subject.submit(adapter, "store", keys, range(8), name)
    subject.account(subject.results(adapter, [job])[job], keys)
    with subject.request(adapter):
        adapter.step()
    with subject.request(adapter) as name:
        subject.ask(adapter, keys, name)  # hits without a load
    result = subject.load(adapter, keys)
    require(not result.failed, "blocks that an earlier request had found and not loaded could not be loaded")


def a_vanished_block_is_no_data(subject: Subject) -> None:
    """A block whose file vanishes between lookup and load is not reported loaded with wrong bytes and fails no other
    block; a later instance misses it, and it can be stored again."""
    one = subject.open()
    keys = subject.keys(one, 5)
    subject.store(one, keys)
    two = subject.open()
    with subject.request(two) as name:
        require(set(subject.ask(two, keys, name)) == {"hit"}, "blocks reported stored are not found")
        subject.file(two, keys[2]).unlink()
        result = subject.load_hits(two, keys, range(5), name)
    lost = set(result.failed) - {keys[2]}
    require(not lost, f"with one block of 5 gone, {len(lost)} of the others were not loaded")
    late = subject.open()
    require(
        subject.look_up(late, [keys[2]]) == ["miss"],
        "a block whose file is gone is a hit for a later instance",
    )
    subject.store(late, [keys[2]])
    again = subject.load(subject.open(), keys)
    require(not again.failed, "a block that was gone and was stored again could not be loaded")


def accounts_are_in_order(subject: Subject) -> None:
    """The tier's own checks find nothing, its gauges are numbers, and its schedule covers the stored bytes."""
    adapter = subject.open()
    keys = subject.keys(adapter, 8)
    subject.store(adapter, keys)
    subject.load(adapter, keys)
    require(not adapter.findings(), f"the tier's own checks found: {some(adapter.findings())}")
    odd = [name for name, value in adapter.gauges().items() if not isinstance(value, int | float)]
    require(not odd, f"gauges that are no numbers: {some(odd)}")
    if adapter.exposes_schedule:
        tasks = adapter.tasks()
        stored = sum(task.bytes for task in tasks if task.direction == "store")
        least = len(keys) * subject.setup.block_bytes
        require(stored >= least, f"the schedule has {stored} bytes stored; the store had {least}")
        require(not adapter.tasks(), "the schedule returned a task twice")


def close_gives_everything_back(subject: Subject) -> None:
    """A closed instance leaves no thread running and no descriptor open."""
    me = psutil.Process()
    subject.close(subject.open())  # what is made once per process is no leak
    before = me.num_fds(), me.num_threads()
    for _ in range(2):
        adapter = subject.open()
        keys = subject.keys(adapter, 4)
        subject.store(adapter, keys)
        subject.load(adapter, keys)
        subject.close(adapter)
    until = time.monotonic() + ANSWER_SECONDS_MAX
    while me.num_threads() > before[1] and time.monotonic() < until:
        time.sleep(PAUSE_SECONDS)  # the kernel still counts a thread just after its join
    after = me.num_fds(), me.num_threads()
    require(after[0] <= before[0], f"two instances left {after[0] - before[0]} descriptors open")
    require(after[1] <= before[1], f"two instances left {after[1] - before[1]} threads running")


PROMISES: tuple[Callable[[Subject], None], ...] = (
    slots_are_memory,
    keys_name_prefixes,
    absent_blocks_are_misses,
    stored_blocks_load,
    another_instance_finds_them,
    jobs_touch_only_their_slots,
    large_jobs_lose_nothing,
    many_jobs_at_once,
    storing_twice_is_harmless,
    nothing_comes_without_a_job,
    drain_waits_for_all,
    close_answers_for_all,
    requests_may_end_before_their_jobs,
    a_vanished_block_is_no_data,
    accounts_are_in_order,
    close_gives_everything_back,
)
NEEDS_FILES = (a_vanished_block_is_no_data,)
OF_ADAPTERS = (slots_are_memory, keys_name_prefixes)
"""Promises about slots and keys. A tier that is given both, as kvtier's managers are, has no part in them."""


def promises(adapter: type[Adapter]) -> list[Callable[[Subject], None]]:
    """Those that apply to this tier: without a file for each block, none can vanish."""
    return [promise for promise in PROMISES if adapter.exposes_files or promise not in NEEDS_FILES]


def title(promise: Callable[[Subject], None]) -> str:
    """The promise in words."""
    return " ".join((promise.__doc__ or promise.__name__).split()).rstrip(".")
