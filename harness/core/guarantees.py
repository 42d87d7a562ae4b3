"""The table of guarantees: each promise of a tier, the sentence that states it, and the rules that judge it.

Scenarios and mutants of a rule are derived elsewhere (`report.guarantees_page`). A rule is named by its id;
"nonblocking/*" stands for all rules of a checker.
"""

from __future__ import annotations

from typing import NamedTuple

BASE = "kvtier/base.py"
ADAPTER = "harness/adapters/base.py"
README = "README.md"
VLLM = "vllm/v1/kv_offload/tiering/base.py"
SOURCES = {BASE: "the contract of kvtier's tiers", ADAPTER: "the contract of adapters", README: "kvtier's guarantees"}
"""Files of this repository whose sentences the table has; that of vLLM is in its own package."""


class Guarantee(NamedTuple):
    """`promise` is one plain sentence. `sentence` stands in `source` as it is here, line breaks aside."""

    promise: str
    source: str
    sentence: str
    rules: tuple[str, ...]


def _of(source: str, *rows: tuple[str, str, str]) -> tuple[Guarantee, ...]:
    return tuple(Guarantee(promise, source, sentence, tuple(rules.split())) for promise, sentence, rules in rows)


_JOBS = "results/one-result contract/results-come-once-whenever-polled contract/many-jobs-at-once"
_SEPARATE = (
    "contract/models-are-separate contract/data-types-are-separate contract/ranks-are-separate "
    "contract/groups-are-separate contract/salts-are-separate seed_settings/separate"
)
_FOUND = (
    "visibility/stored-is-found sharing/stored-is-found contract/another-instance-finds-them "
    "contract/a-reopened-root-has-everything contract/many-keys-stay-apart"
)
_GROWTH = (
    "contract/hits-leave-nothing contract/misses-leave-nothing contract/stores-leave-nothing "
    "contract/loads-leave-nothing contract/failures-leave-nothing contract/requests-leave-nothing"
)
_BESIDE = "contract/others-come-and-go recovery/own-jobs recovery/restarts"

GUARANTEES: tuple[Guarantee, ...] = (
    *_of(
        BASE,
        (
            "A block that a lookup calls a hit can be loaded; if it is evicted or removed first, its load fails.",
            "HIT: readable now.",
            "results/no-failure contract/stored-blocks-load contract/hits-in-flight-load faults/no-block",
        ),
        (
            "A lookup whose answer is not known yet returns RETRY; a later step has the answer.",
            "RETRY: repeat in the next step.",
            "visibility/answered contract/lookups-answer-each-key",
        ),
        (
            "A block that was never stored is a miss.",
            "MISS: compute.",
            "contract/absent-blocks-are-misses",
        ),
        (
            "The i-th block of a job is read from or written to the job's i-th slot, and no other slot is touched.",
            "`keys[i]` lives in (store) or goes to (load) slot `chunk_ids[i]` of the CPU tier.",
            "integrity/bytes contract/jobs-touch-only-their-slots contract/a-job-may-name-a-block-twice "
            "contract/large-jobs-lose-nothing",
        ),
        (
            "A result names the blocks that succeeded, also when others of the job failed.",
            "`successful_keys` holds the blocks that made it, also when others of the job failed.",
            "results/accounts contract/a-vanished-block-is-no-data contract/absent-blocks-fail-to-load",
        ),
        (
            "Each submitted job has exactly one result, also on errors and at shutdown. Where an I/O call hangs, the "
            "result comes when the call returns.",
            "For every submitted job exactly one `JobResult` comes out of `get_finished_jobs`, also after an error and "
            "after `shutdown`.",
            f"{_JOBS} faults/one-result contract/close-answers-for-all contract/job-numbers-may-come-again",
        ),
        (
            "After a job's result the tier neither reads nor writes its slots.",
            "Between submission and result the tier may touch the job's slots; never after the result.",
            "contract/slots-are-free-after-the-result contract/slots-of-failed-loads-are-given-back",
        ),
        ("A lookup never blocks.", "Never blocks.", "nonblocking/*"),
        (
            "A block whose load failed is a miss for its request until that ends. Later requests look for the file "
            "again: a damaged or vanished one stays a miss until the block is stored.",
            "A failed load turns a HIT into a MISS.",
            "contract/a-failed-load-becomes-a-miss faults/no-block",
        ),
        (
            "A submit enqueues and returns.",
            "Enqueue; slots are pinned by the caller until the result.",
            "nonblocking/* faults/not-blocked",
        ),
        (
            "A store of a block that is already present succeeds, in any process; admission may still refuse it.",
            "Blocks already present count as successful.",
            "contract/storing-twice-is-harmless results/no-failure",
        ),
        (
            "A block that failed to load is never reported as loaded.",
            "The slot of a block that fails holds undefined bytes, and its key is not among `successful_keys`.",
            "integrity/bytes contract/absent-blocks-fail-to-load faults/no-wrong-byte",
        ),
        (
            "A poll returns each result once, and nothing else.",
            "Results since the last call; empty when there are none.",
            "contract/nothing-comes-without-a-job contract/results-come-once-whenever-polled "
            "contract/empty-calls-are-harmless",
        ),
        (
            "After a drain no job is in flight.",
            "Block until no job is in flight.",
            "contract/drain-waits-for-all leftovers/slots",
        ),
        (
            "Results of drained jobs come from the next poll.",
            "Results stay available from `get_finished_jobs`.",
            "contract/drain-waits-for-all",
        ),
        (
            "Jobs of a finished request still have their result, and its end disturbs no other request.",
            "No call for this request follows; jobs already submitted still report.",
            "contract/requests-may-end-before-their-jobs contract/requests-do-not-disturb-each-other",
        ),
        (
            "The end of a step sends the lookups that were batched; a step without work changes nothing.",
            "The step is over: send what was batched.",
            "visibility/answered contract/empty-calls-are-harmless",
        ),
        (
            "Eviction removes the least recently used blocks first, within what the rule tolerates.",
            "Blocks were used (for tiers that evict).",
            "capacity/recency",
        ),
        (
            "Pending work is reported to the engine, until all results were taken.",
            "Whether the engine should keep stepping although no request is scheduled.",
            "contract/pending-work-is-reported",
        ),
        (
            "Each process reports each block that it stored or removed, and reports it once.",
            "Events since the last call.",
            "contract/events-are-reported-once capacity/evictions-reported-once",
        ),
        (
            "Gauges show current values. They fall again, and do not grow while the traffic stays the same.",
            "Plain numbers of the present state, for scrapes and progress lines; any thread may call it.",
            "contract/accounts-are-in-order soak/growth",
        ),
        (
            "At shutdown each job gets its result: running tasks end, queued ones are cancelled.",
            "Running tasks end, queued ones are cancelled; each job still gets its result.",
            "contract/close-answers-for-all contract/calls-after-close-are-harmless",
        ),
        (
            "No thread of the tier runs after its shutdown.",
            "Blocks until threads ended.",
            "contract/close-gives-everything-back leftovers/ends",
        ),
    ),
    *_of(
        ADAPTER,
        (
            "Files are made under the root alone, through no symbolic link, and nobody else may write to them.",
            "The tier makes files under `root_dir` alone, through no symbolic link, and with no permission that the "
            "umask takes away.",
            "contract/links-are-not-followed-by-stores contract/others-cannot-write",
        ),
        (
            "The process around a tier, and the arguments of its calls, stay as they are.",
            "It changes nothing of its process that others rely on, and no list that it is given.",
            "contract/surroundings-stay",
        ),
        (
            "A result names the keys of its job as they were submitted, each once.",
            "A job's result: the keys that succeeded and those that failed, as `submit_*` received them.",
            "results/accounts",
        ),
        (
            "A store may be refused at a stated bound, and is then counted as refused.",
            "`refused` counts the failed keys that admission refused: a tier may refuse what exceeds its stated "
            "bounds, if it reports so.",
            "results/no-failure capacity/refused-only capacity/limit capacity/goes-on",
        ),
        (
            "A failure has a reason that names what the machine lacked.",
            '`reasons` names the errors of the others ("ENOSPC EIO"), where the tier knows them; they separate a '
            "shortage of the machine from a defect.",
            "faults/counted faults/others-unharmed",
        ),
        (
            "A block reported stored is in its file, unless the tier says that it already held it in memory.",
            "`in_memory` lists the keys of a store for which nothing was written, because the tier already held their "
            "blocks in memory.",
            "determinism/on-disk faults/reported",
        ),
        (
            "Only one process evicts at a time.",
            "No other process may evict between start and finish.",
            "capacity/one-evictor",
        ),
        (
            "Slots are plain memory of the stated shape.",
            'The slots: writable, C-contiguous, format "B", shape (slots, block_bytes).',
            "contract/slots-are-memory",
        ),
        (
            "A key depends on every token of its prefix and is used in all its bytes; models, data types, ranks, "
            "groups and salts have keys or folders of their own.",
            "The tier's keys of the full blocks of `tokens`, chained after the block whose key is `parent`.",
            "contract/keys-name-prefixes contract/keys-tell-tokens-apart contract/keys-have-their-full-length "
            f"contract/keys-are-used-in-full {_SEPARATE} seed_settings/own-names",
        ),
        (
            "Two processes report the same digest of their hash seed if they share blocks, and only then.",
            "A digest of the chain's seed, equal in two processes exactly when they share blocks.",
            "determinism/one-seed seed_settings/shares seed_settings/separate",
        ),
        (
            "Each block has one file, whose name no other block has.",
            "The block's file, relative to root_dir; None if this tier keeps no file per block.",
            "determinism/one-name determinism/own-name determinism/no-other-files",
        ),
        (
            "Groups of layers are stored apart.",
            "The key of the same block in another group of layers, which is stored apart; None if the tier has none.",
            "contract/groups-are-separate determinism/own-name",
        ),
        (
            "Requests share blocks only with requests of the same cache salt, or also without one.",
            "`keys` of a request with this cache salt, which shares no block with others;",
            "contract/salts-are-separate",
        ),
        (
            "A lookup has one verdict for each key, without blocking.",
            'One verdict for each key, without blocking; "retry": look it up again after `step`.',
            "contract/lookups-answer-each-key contract/lookups-cost-the-same-per-key nonblocking/*",
        ),
        (
            "A store takes the i-th block of its job from the job's i-th slot.",
            "Enqueue: slot i holds block i and stays untouched until the job is in `poll`.",
            "integrity/bytes contract/slots-are-free-after-the-result",
        ),
        (
            "A load brings the i-th block of its job to the job's i-th slot.",
            "Enqueue: block i goes to slot i.",
            "integrity/bytes contract/stored-blocks-load",
        ),
        ("A poll returns the jobs that ended since the last one.", "Jobs that ended since the last call.", _JOBS),
        (
            "A drain blocks until nothing is in flight, stores as well as loads.",
            "Block until nothing is in flight; results come out of the next `poll`.",
            "contract/drain-waits-for-all",
        ),
        (
            "A close releases threads, descriptors, memory and files of its own.",
            "Release everything.",
            "contract/close-gives-everything-back leftovers/descriptors leftovers/files leftovers/own-checks "
            f"leftovers/ends {_BESIDE}",
        ),
        (
            "After close `poll` still works, and other calls do no harm.",
            "`poll` still works once after it.",
            "contract/close-answers-for-all contract/calls-after-close-are-harmless contract/ends",
        ),
        (
            "A tier that reports its schedule reports each task once, with true times.",
            "Scheduled tasks since the last call, where `exposes_schedule`.",
            "starvation/* contract/accounts-are-in-order",
        ),
        (
            "Evictions are reported, each once.",
            "Evictions since the last call, where `keeps_limit`.",
            "capacity/evictions-reported-once",
        ),
        (
            "A round of maintenance evicts down to the number of blocks it is given, and garbage collection removes "
            "nothing that a running process needs.",
            'One round of maintenance of the root, done in this call, as one of `operations`: "evict" the oldest '
            'blocks until `blocks` are left, or "collect" what killed writers left.',
            "interleavings/evicted-too-much interleavings/lost-store interleavings/failed-store "
            "interleavings/next-process",
        ),
        (
            "The tier's counters equal the sums over the jobs' results.",
            'Blocks that the tier itself has counted: "stored", "loaded", "failed EIO" (any reason), "quarantined".',
            "contract/counts-are-of-what-happened soak/counts",
        ),
        (
            "Metrics that a tier serves are those of its instance's results.",
            "What the samples of this instance's endpoint count; each is compared with the results of its jobs.",
            "contract/metrics-are-true results/metrics",
        ),
        (
            "Each instance has an id of its own, a new one after each restart.",
            "The id of this instance in the blocks that it writes, unique to it; None if blocks carry no id.",
            "contract/instances-have-their-own-ids seed_settings/unique-ids",
        ),
        (
            "The tier's own checks find nothing.",
            "Contradictions in the tier's own state (`check_integrity`), a sentence each; empty if there are none.",
            "leftovers/own-checks contract/accounts-are-in-order",
        ),
    ),
    *_of(
        README,
        (
            "A load succeeds only with the bytes that were stored under that key.",
            "A load succeeds only with the bytes that were stored under that key.",
            "integrity/bytes faults/no-wrong-byte faults/repaired interleavings/wrong-bytes "
            "contract/objects-are-no-blocks contract/a-store-changes-no-other-block",
        ),
        (
            "A block is visible whole or not at all, also when processes die while they store.",
            "A block is visible whole or not at all.",
            "integrity/bytes faults/no-block faults/no-leftovers interleavings/wrong-bytes interleavings/failed-store "
            f"interleavings/failed-load interleavings/left-over interleavings/next-process {_BESIDE}",
        ),
        (
            "Neither direction waits for the other without bound.",
            "Neither direction (loads, stores) waits for the other without bound.",
            "starvation/* floods/*",
        ),
        (
            "Each job has exactly one result, also on errors and at shutdown; where an I/O call hangs, once the call "
            "returns.",
            "Each submitted job returns exactly one result, also on errors and at shutdown.",
            f"{_JOBS} results/no-error faults/one-result interleavings/results interleavings/stuck "
            "interleavings/raised",
        ),
        (
            "Processes that share derive equal names, also under another Python version, start method, working "
            "directory, locale, time zone, host name and order of imports.",
            "Processes that share derive the same name for the same block.",
            "determinism/one-name determinism/one-seed seed_settings/shares seed_settings/unique-temp-names",
        ),
        (
            "A process of the same run configuration with another hash seed, hash algorithm or number of bytes per "
            "block is refused each time it opens the root (the bytes: by a unit test, not by a rule). Other models use "
            "the root, in folders of their own.",
            "A process of the same run configuration with another hash seed, hash algorithm or number of bytes per "
            "block is refused when it opens the root.",
            "seed_settings/refused seed_settings/one-owner seed_settings/refusal seed_settings/admitted "
            "interleavings/refused-opening interleavings/two-seeds",
        ),
        (
            "A block that one process stored is a hit in every process, until it is removed or found damaged. A store "
            "of a block whose file has the right size leaves that file unread: if it is damaged, the next load is a "
            "miss, and a store after that repairs it.",
            "A block that one process stored is a hit in every process, until it is removed or found damaged.",
            f"{_FOUND} soak/files soak/loads interleavings/lost-store interleavings/failed-load interleavings/lookup "
            "outage/stored-is-found outage/soon",
        ),
        (
            "After a power loss blocks may be missing, never wrong: on ext4 and XFS, and with `integrity: require` on "
            "other file systems. With `durability: durable` no stored block is missing.",
            "After a power loss blocks may be missing, never wrong: on ext4 and XFS, and with `integrity: require` "
            "elsewhere.",
            "crash_states/* power_loss/*",
        ),
        (
            "No call of the scheduler's thread waits for I/O, except opening, `drain_jobs` and `shutdown`.",
            "No call of the scheduler's thread waits for I/O,",
            "nonblocking/* faults/not-blocked",
        ),
        (
            "After shutdown no temp file, pinned slot, descriptor or thread of the process remains. Garbage collection "
            "removes temp files of killed processes.",
            "After shutdown no temp file, pinned slot, descriptor or thread of the process remains.",
            "leftovers/files leftovers/slots leftovers/descriptors leftovers/ends interleavings/left-over "
            f"outage/threads {_GROWTH}",
        ),
        (
            "A fault makes only those blocks and jobs fail that it meets; afterwards the tier works again.",
            "A fault makes only those blocks and jobs fail that it meets.",
            "faults/others-unharmed faults/lives faults/works-again faults/explained faults/reported outage/unharmed "
            "outage/lives outage/recovers outage/shown",
        ),
    ),
    *_of(
        VLLM,
        (
            "All methods return at once.",
            "All methods run in the Scheduler process and must be lightweight and non-blocking.",
            "nonblocking/*",
        ),
        (
            "A lookup says hit only for a block that is present and ready.",
            "HIT if the chunk is present and ready",
            "contract/stored-blocks-load contract/absent-blocks-are-misses",
        ),
        (
            "A store skips blocks that are present.",
            "Filtering out chunks already present in this tier",
            "contract/storing-twice-is-harmless",
        ),
        (
            "A load copies into the slots of its job.",
            "The implementation must copy data from this tier into the primary-tier slots identified by ``chunk_ids``.",
            "integrity/bytes contract/jobs-touch-only-their-slots",
        ),
        (
            "Each completed job is returned once.",
            "Return all jobs (loads and stores) that completed since the last call.",
            _JOBS,
        ),
        (
            "Keys of a partial failure are a subset of the job's.",
            "Must be a subset of the job's original keys.",
            "results/accounts",
        ),
        (
            "A finished request's jobs still report.",
            "jobs already submitted may still be in flight and will report via get_finished_jobs().",
            "contract/requests-may-end-before-their-jobs",
        ),
        (
            "After a drain no I/O touches the slots, and each job has its result.",
            "After this returns, no tier I/O is touching the primary memoryview, and every submitted job's result is "
            "available from `get_finished_jobs()`",
            "contract/drain-waits-for-all contract/slots-are-free-after-the-result",
        ),
        (
            "A drain leaves no partial copy in a slot or in the store.",
            "Implementations must not abort a mid-flight transfer: a partial copy would corrupt either the primary "
            "memoryview or the secondary backing store.",
            "contract/drain-waits-for-all integrity/bytes",
        ),
        (
            "The tier releases its resources at the end.",
            "Release resources held by this tier (threads, connections, etc.).",
            "contract/close-gives-everything-back leftovers/descriptors",
        ),
    ),
)

NO_PROMISE: dict[str, tuple[str, ...]] = {
    BASE: (
        "HIT_PENDING: being written to the CPU tier.",
        "Blocks appeared in (`removed=False`) or left a medium; for routers that keep an index of blocks.",
        "A job for a secondary tier:",
        "How a job ended.",
        "A tier behind the CPU tier.",
        "It sees the CPU tier's memory as `primary_kv_view`, shape (slots, block_bytes).",
        "While an I/O call hangs, its job has none.",
        "A call that depends on a background thread of the tier raises `KvtierError` once that thread has died of a "
        "bug; a job that such a thread had taken has no result.",
        "HIT, MISS, or RETRY while a probe is under way.",
        "Enqueue; slots are reserved by the caller.",
        "A request was first seen.",
    ),
    ADAPTER: (
        "This process removed blocks from the root, to keep its limit.",
        "Clock: `time.monotonic()`, seconds.",
        "One tier under test, in one process.",
        "Constructed in the process that uses it; closed by it.",
        "The interpreter whose packages this tier needs.",
        "Raises `PeerMissing` where there is none.",
        "Raises `ValueError`, one sentence, for options of the tier that it refuses (`setup.options` above all).",
        "Called before any process starts, in an interpreter that may lack the tier's packages: it touches no file.",
        "By default every option passes, and the tier's constructor refuses instead.",
        "The end of a scheduler step: batched lookups go out.",
        "A request was first seen.",
        "The request needs nothing more.",
        "Whether the engine should keep stepping although no request is left; None if the tier does not say.",
        "Blocks that this process has added to the root (False) or removed (True) since the last call, by key, with "
        "`setup.report_events`; None if the tier does not say.",
        "Whether a block of the unfinished request was found and no slot was free to load it into.",
        "None if the tier has no salt.",
        "Queued jobs may be cancelled;",
        'The present state: "load_queue", "store_queue" (tasks), "load_oldest_seconds", "store_oldest_seconds", ...',
        'A tier with compiled code adds "none_references_lost" (`references.NoneReferences`), which `soak` judges too.',
        "Empty if it counts nothing.",
        "Another process may be in its own round.",
        "host:port of this process's /metrics, if it serves one.",
        "host:port of this process's /metrics, if it serves one.",
    ),
}
"""Sentences of the contracts that demand nothing of a tier, repeat another, or state kvtier's own way to fail: the
death of one of its threads by a bug, which its own tests cause."""
