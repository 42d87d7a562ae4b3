"""What the small parts cost, one at a time: `make bench` times them, a plain pytest run checks that they still run."""

from __future__ import annotations

import hashlib
import mmap
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import xxhash

from kvtier.config import FsTierConfig, KVCacheGroup, RunConfig
from kvtier.events import Event, FanOut, JobFinished, NullObserver, TaskFact
from kvtier.fs.async_lookup import AsyncLookupManager
from kvtier.fs.block_io import BlockIO
from kvtier.fs.file_mapper import FileMapper
from kvtier.fs.thread_pool import DualQueue, DualQueueThreadPool
from kvtier.fs.trailer import Trailer
from kvtier.hashing import BlockHash, OffloadKey, hash_function, hash_tokens, make_offload_key, none_hash

KIB, MIB = 1 << 10, 1 << 20
TOKENS = list(range(100_000, 100_000 + 4096))
RUN = RunConfig("bench/model", kv_cache_groups=(KVCacheGroup(16, ("layer",)),))

Benchmark = Any  # pytest-benchmark has no types


def keys(number: int, label: str = "") -> list[OffloadKey]:
    return [make_offload_key(BlockHash(hashlib.sha256(f"{label} {i}".encode()).digest())) for i in range(number)]


@pytest.mark.parametrize("algorithm", ["sha256", "sha256_cbor", "xxhash", "xxhash_cbor"])
def test_hashing_4096_tokens(benchmark: Benchmark, algorithm: str) -> None:
    if algorithm.endswith("_cbor") and find_spec("cbor2") is None:
        pytest.skip("cbor2 is not installed")
    h, none = hash_function(algorithm), none_hash(algorithm)
    hashes = benchmark(hash_tokens, TOKENS, 16, h, none)
    assert len(set(hashes)) == len(TOKENS) // 16
    benchmark.extra_info["tokens"] = len(TOKENS)


def test_1000_keys_to_paths(benchmark: Benchmark) -> None:
    mapper, many = FileMapper("/root", RUN), keys(1000)
    assert len(set(benchmark(lambda: [mapper.get_file_name(key) for key in many]))) == len(many)


def test_1000_paths_to_keys(benchmark: Benchmark) -> None:
    mapper, many = FileMapper("/root", RUN), keys(1000)
    paths = [mapper.get_file_name(key) for key in many]
    assert benchmark(lambda: [mapper.parse_file_name(path) for path in paths]) == many


@pytest.fixture
def pool() -> Iterator[DualQueueThreadPool]:
    pool = DualQueueThreadPool(DualQueue(16, 16))
    yield pool
    pool.shutdown()


def test_pool_hand_over_of_one_task(benchmark: Benchmark, pool: DualQueueThreadPool) -> None:
    def hand_over() -> int:
        pool.submit(1, "load", [(int, 1)])
        while not (done := pool.get_finished()):
            time.sleep(0)  # lets the pool's thread have the interpreter
        return len(done)

    assert benchmark(hand_over) == 1


def test_pool_hand_over_of_512_tasks(benchmark: Benchmark, pool: DualQueueThreadPool) -> None:
    works = [(int, 1)] * 512

    def hand_over() -> int:
        pool.submit(1, "store", works)
        pool.wait_idle()
        return sum(len(done.results) for done in pool.get_finished())

    assert benchmark(hand_over) == 512


def asked(manager: AsyncLookupManager, many: list[OffloadKey], request: str) -> list[bool | None]:
    answers = [manager.lookup(key, request) for key in many]
    manager.flush()
    while None in answers:
        time.sleep(0)  # lets the lookup's thread have the interpreter
        if manager.lookup(many[-1], request) is not None:
            answers = [manager.lookup(key, request) for key in many]
    manager.cleanup(request)
    return answers


@pytest.mark.parametrize("known", [False, True], ids=["first_question", "known"])
def test_lookup_of_128_keys_without_the_file_system(benchmark: Benchmark, known: bool) -> None:
    manager = AsyncLookupManager(lambda batch: [known] * len(batch), 1 << 18, "lookup")
    many, numbers = keys(128), count()
    asked(manager, many, "before")
    assert set(benchmark(lambda: asked(manager, many, str(next(numbers))))) == {known}
    manager.shutdown()


@pytest.mark.parametrize("block_bytes", [64 * KIB, MIB])
def test_checksum(benchmark: Benchmark, block_bytes: int) -> None:
    data = memoryview(mmap.mmap(-1, block_bytes))
    assert benchmark(xxhash.xxh3_64_intdigest, data)


def test_trailer_out_and_in(benchmark: Benchmark) -> None:
    trailer = Trailer(keys(1)[0], MIB, 7, b"i" * 16, 1, "")
    assert benchmark(lambda: Trailer.unpack(trailer.pack())) == trailer


@pytest.fixture(params=[64 * KIB, MIB], ids=["64KiB", "1MiB"])
def io(request: pytest.FixtureRequest, tmp_path: Path) -> BlockIO:
    io = BlockIO(FsTierConfig(root_dir=str(tmp_path), block_bytes=request.param), str(tmp_path / "quarantine"))
    io.probe(str(tmp_path))
    return io


def test_one_block_out(benchmark: Benchmark, io: BlockIO, tmp_path: Path) -> None:
    view, numbers = memoryview(mmap.mmap(-1, io.block_bytes)), count()

    def new() -> tuple[tuple[Any, ...], dict[str, Any]]:
        number = next(numbers)
        return (str(tmp_path / f"{number % 16:x}" / f"{number}.bin"), keys(1)[0], view), {}

    outcome = benchmark.pedantic(io.write_block, setup=new, rounds=200)
    assert outcome.ok
    assert not outcome.skipped


def test_one_block_in(benchmark: Benchmark, io: BlockIO, tmp_path: Path) -> None:
    view, (key,), path = memoryview(mmap.mmap(-1, io.block_bytes)), keys(1), str(tmp_path / "a" / "block.bin")
    view[:4] = b"data"
    assert io.write_block(path, key, view).ok
    target = memoryview(mmap.mmap(-1, io.block_bytes))
    assert benchmark(io.read_block, path, key, target).ok
    assert target == view


FACT = TaskFact("load", "load", 0, MIB, 0, 1.0, 1.1, 1.2)
FINISHED = JobFinished("fs", "load", 1, "r", 16, 0, 0, (), 16 * MIB, 1.0, 1.2, (FACT,), None, ())


def metrics() -> Callable[[Event], None]:
    pytest.importorskip("prometheus_client", reason="prometheus_client is not installed")
    from prometheus_client import CollectorRegistry

    from kvtier.telemetry.prometheus import MetricsObserver

    return MetricsObserver(CollectorRegistry(), {"fs": dict}).on_event


def fan_out_to_nobody() -> Callable[[Event], None]:
    return FanOut(NullObserver()).on_event


@pytest.mark.parametrize("observer", [fan_out_to_nobody, metrics])
def test_one_event(benchmark: Benchmark, observer: Callable[[], Callable[[Event], None]]) -> None:
    benchmark(observer(), FINISHED)
