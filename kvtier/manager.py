"""Orchestrates the CPU tier and the tiers behind it: lookup, promotion, store, cascade, end of step.

The scheduler calls it, from one thread; it moves no byte and never blocks, but for `reset_cache` and `shutdown`. A step
is: lookups and prepares, then `on_schedule_end`. Loads and stores between GPU and CPU tier are the caller's, between
`prepare_*` and `complete_*`; those between CPU tier and a secondary tier are jobs, started here.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from kvtier.base import (
    JobId,
    JobResult,
    LookupResult,
    OffloadingEvent,
    OffloadPolicy,
    PrepareStoreOutput,
    ReqContext,
    RequestOffloadingContext,
    ScheduleEndContext,
    SecondaryTierManager,
    TransferJob,
)
from kvtier.cpu.manager import CPUOffloadingManager
from kvtier.events import Cascade, Lookup, NullObserver, Observer, Promotion, RequestFinished
from kvtier.hashing import OffloadKey

HIT, HIT_PENDING, MISS, RETRY = LookupResult.HIT, LookupResult.HIT_PENDING, LookupResult.MISS, LookupResult.RETRY


@dataclass(slots=True)
class _PendingPromotion:
    """Blocks of one request that one tier will load; slots are reserved, the job goes out at the end of the step."""

    blocks: list[tuple[OffloadKey, int]] = field(default_factory=list)  # key, slot
    refused: int = 0


@dataclass(slots=True)
class _Request:
    """One request until its end has been passed to the secondary tiers."""

    context: ReqContext
    request_level_tiers: tuple[int, ...]
    started_seconds: float
    writing: set[OffloadKey] = field(default_factory=set)  # prepare_store'd by it, not yet completed
    parked: list[OffloadKey] = field(default_factory=list)  # to cascade once another's write has ended
    promotions: dict[int, _PendingPromotion] = field(default_factory=dict)  # by tier, this step's
    failed_promotions: set[tuple[int, OffloadKey]] = field(default_factory=set)  # a tier's HITs whose load failed
    answers: Counter[LookupResult] = field(default_factory=Counter)  # to this step's lookups
    finished: bool = False

    def may_submit(self) -> bool:
        """Whether a job on its behalf may still go to a secondary tier."""
        return not self.finished or bool(self.writing or self.parked or self.promotions)


class TieringOffloadingManager:
    """The CPU tier in front, `secondary_tiers` behind it in the order of their lookups.

    Every block that the GPU stores goes to all secondary tiers; one found there comes back into the CPU tier before
    the GPU may load it. Each request begins with `on_new_request` and ends with `on_request_finished`.
    """

    def __init__(
        self,
        primary: CPUOffloadingManager,
        secondary_tiers: Sequence[SecondaryTierManager] = (),
        observer: Observer | None = None,
    ) -> None:
        self.primary = primary
        self.secondary_tiers = tuple(secondary_tiers)
        self._observer = observer or NullObserver()
        self._requests: dict[str, _Request] = {}
        self._active: dict[str, _Request] = {}  # those with something to do at the end of the step
        self._jobs: dict[JobId, tuple[int, TransferJob]] = {}
        self._next_job_id = 0
        self._loading: Counter[OffloadKey] = Counter()  # the caller's pins
        # A block answered HIT stays until the end of the step. Else a later promotion could take its slot before the
        # caller's prepare_load; and a request longer than the CPU tier would for ever evict its own head.
        self._step_hits: set[OffloadKey] = set()
        self._polled = False
        self._resetting = False

    def __repr__(self) -> str:
        """A status line."""
        counts = f"{len(self._requests)} requests, {len(self._jobs)} jobs in flight"
        return f"<TieringOffloadingManager: {counts}; {self.primary!r}, {self.secondary_tiers!r}>"

    # ---- requests and steps

    def on_new_request(self, req_context: ReqContext) -> RequestOffloadingContext:
        """A request was first seen. REQUEST_LEVEL if any tier wants all its blocks, not only those new to the CPU."""
        assert req_context.req_id not in self._requests, f"request {req_context.req_id} is already known"
        wishes = [tier.on_new_request(req_context).policy for tier in self.secondary_tiers]
        eager = tuple(index for index, wish in enumerate(wishes) if wish is OffloadPolicy.REQUEST_LEVEL)
        self._requests[req_context.req_id] = _Request(req_context, eager, time.monotonic())
        return RequestOffloadingContext(OffloadPolicy.REQUEST_LEVEL if eager else OffloadPolicy.CHUNK_LEVEL)

    def on_request_finished(self, req_context: ReqContext) -> None:
        """The request needs nothing more. Secondary tiers get it once no job for it can follow: its stores may
        still complete, and promotions queued in this step still go out, since another request may wait for them."""
        request = self._request(req_context)
        assert not request.finished, f"request {req_context.req_id} finished twice"
        request.finished = True
        self._finalise(request)

    def _finalise(self, request: _Request) -> None:
        if not request.may_submit():
            self._emit_lookups(request)
            del self._requests[request.context.req_id]
            self._active.pop(request.context.req_id, None)
            for tier in self.secondary_tiers:
                tier.on_request_finished(request.context)
            context, times = request.context, (request.started_seconds, time.monotonic())
            self._observer.on_event(RequestFinished(context.req_id, *times, context.traceparent))

    def on_schedule_end(self, context: ScheduleEndContext) -> None:
        """The step is over: queued promotions go out, one job per (tier, request); parked cascades are tried again."""
        self._poll_once()
        self._polled = False
        self._release_step_hits()
        active, self._active = self._active, {}
        for request in active.values():
            self._submit_promotions(request)
            if request.parked:
                parked, request.parked = request.parked, []
                self._cascade_present(request, parked)
            self._emit_lookups(request)
        for tier in self.secondary_tiers:
            tier.on_schedule_end(context)
        for request in active.values():
            if request.finished:
                self._finalise(request)

    def has_pending_work(self) -> bool:
        """Whether the engine should keep stepping although no request is scheduled."""
        queued = any(request.promotions or request.parked for request in self._active.values())
        return queued or bool(self._jobs) or any(tier.has_pending_work() for tier in self.secondary_tiers)

    def _request(self, req_context: ReqContext) -> _Request:
        request = self._requests.get(req_context.req_id)
        assert request, f"request {req_context.req_id} is unknown: on_new_request comes first, on_request_finished last"
        return request

    def _emit_lookups(self, request: _Request) -> None:
        if answers := request.answers:
            counts = (answers[HIT], answers[HIT_PENDING], answers[MISS], answers[RETRY])
            self._observer.on_event(Lookup(request.context.req_id, *counts))
            answers.clear()

    # ---- loads

    def lookup(self, key: OffloadKey, req_context: ReqContext) -> LookupResult:
        """HIT: loadable for the rest of this step. HIT_PENDING, RETRY: look it up again next step. MISS: recompute it.

        A block found in a secondary tier gets its slot at once, so it is pending for all requests. It is a MISS without
        a slot, and for a request whose load of it failed.
        """
        self._poll_once()
        request = self._active[req_context.req_id] = self._request(req_context)
        answer = self._lookup(key, request)
        request.answers[answer] += 1
        return answer

    def _lookup(self, key: OffloadKey, request: _Request) -> LookupResult:
        answer = self.primary.lookup(key, request.context)
        if answer is HIT and key not in self._step_hits:
            self.primary.prepare_read((key,), request.context)
            self._step_hits.add(key)
        if answer is not MISS or self._resetting:
            return answer
        for index, tier in enumerate(self.secondary_tiers):
            if (index, key) in request.failed_promotions:
                continue
            match tier.lookup(key, request.context):
                case LookupResult.HIT:
                    return HIT_PENDING if self._reserve(index, key, request) else MISS
                case LookupResult.RETRY:
                    answer = RETRY
        return answer

    def _reserve(self, tier_index: int, key: OffloadKey, request: _Request) -> bool:
        pending = request.promotions.setdefault(tier_index, _PendingPromotion())
        output = self.primary.prepare_store((key,), request.context)
        if output is None:
            pending.refused += 1
            return False
        pending.blocks += zip(output.keys_to_store, output.chunk_ids, strict=True)
        return True

    def _submit_promotions(self, request: _Request) -> None:
        promotions, request.promotions = request.promotions, {}
        for index, pending in promotions.items():
            tier = self.secondary_tiers[index]
            event = Promotion(tier.tier_type, request.context.req_id, len(pending.blocks), pending.refused)
            self._observer.on_event(event)
            if pending.blocks:
                keys, slots = zip(*pending.blocks, strict=True)
                tier.submit_load(self._new_job(index, keys, slots, True, request.context))

    def prepare_load(self, keys: Sequence[OffloadKey], req_context: ReqContext) -> tuple[int, ...]:
        """Pin blocks that `lookup` called a HIT in this step; their slots, in order."""
        slots = self.primary.prepare_load(keys, req_context)
        self._loading.update(keys)
        return slots

    def complete_load(self, keys: Sequence[OffloadKey], req_context: ReqContext) -> None:
        """Unpin them. Also after `on_request_finished`; ignored between `reset_cache` and `on_reset_flushed`."""
        if self._resetting:
            return
        for key in keys:
            assert self._loading[key] > 0, f"{key.hex()}: complete_load without prepare_load"
            self._loading[key] -= 1
            if not self._loading[key]:
                del self._loading[key]
        self.primary.complete_load(keys, req_context)

    def touch(self, keys: Sequence[OffloadKey], req_context: ReqContext) -> None:
        """Blocks were used again, the head of the prefix first: every tier may keep them longer."""
        self.primary.touch(keys, req_context)
        for tier in self.secondary_tiers:
            tier.touch(keys, req_context)

    # ---- stores

    def prepare_store(self, keys: Sequence[OffloadKey], req_context: ReqContext) -> PrepareStoreOutput | None:
        """Reserve slots for those of `keys` that the CPU tier lacks; the caller fills and completes exactly those.

        None: no room, or a reset has not been flushed; nothing changed. Blocks already here go to the tiers that want
        all blocks of this request: now, or, while they are being written, once that has ended.
        """
        request = self._request(req_context)
        if self._resetting:
            return None
        self._poll()  # even twice a step: what has just been unpinned may make room
        output = self.primary.prepare_store(keys, req_context)
        if output is None:
            return None
        request.writing.update(output.keys_to_store)
        if request.request_level_tiers:
            self._cascade_present(request, [key for key in dict.fromkeys(keys) if key not in request.writing])
        return output

    def complete_store(self, keys: Sequence[OffloadKey], req_context: ReqContext, success: bool = True) -> None:
        """Slots were filled, or (`success` false) hold undefined bytes; every secondary tier gets the good ones.

        Also after `on_request_finished`; ignored between `reset_cache` and `on_reset_flushed`.
        """
        if self._resetting:
            return
        request = self._request(req_context)
        for key in keys:
            assert key in request.writing, f"{key.hex()}: complete_store without prepare_store by {req_context.req_id}"
        self.primary.complete_store(keys, req_context, success)
        request.writing.difference_update(keys)
        if success:
            for index in range(len(self.secondary_tiers)):
                self._cascade(index, keys, req_context)
        if request.finished:
            self._finalise(request)

    def _cascade(self, tier_index: int, keys: Sequence[OffloadKey], req_context: ReqContext) -> None:
        if keys:
            tier = self.secondary_tiers[tier_index]
            slots = self.primary.prepare_read(keys, req_context)
            self._observer.on_event(Cascade(tier.tier_type, req_context.req_id, len(keys)))
            tier.submit_store(self._new_job(tier_index, keys, slots, False, req_context))

    def _cascade_present(self, request: _Request, keys: Iterable[OffloadKey]) -> None:
        """Give blocks to this request's request-level tiers; park those being written, drop those that are gone."""
        by_state: dict[LookupResult, list[OffloadKey]] = {HIT: [], HIT_PENDING: [], MISS: []}
        for key in keys:
            by_state[self.primary.lookup(key, request.context)].append(key)
        for index in request.request_level_tiers:
            self._cascade(index, by_state[HIT], request.context)
        if by_state[HIT_PENDING]:
            request.parked += by_state[HIT_PENDING]
            self._active[request.context.req_id] = request

    # ---- jobs

    def _new_job(
        self, tier_index: int, keys: Sequence[OffloadKey], slots: Sequence[int], is_promotion: bool, context: ReqContext
    ) -> TransferJob:
        job = TransferJob(self._next_job_id, tuple(keys), tuple(slots), is_promotion, context)
        self._jobs[job.job_id] = tier_index, job
        self._next_job_id += 1
        return job

    def _poll_once(self) -> None:
        if not self._polled:
            self._poll()

    def _poll(self) -> None:
        self._polled = True
        for index in range(len(self.secondary_tiers)):
            self._consume_results(index)

    def _consume_results(self, tier_index: int) -> None:
        for result in self.secondary_tiers[tier_index].get_finished_jobs():
            owner, job = self._jobs.pop(result.job_id, (None, None))
            assert job, f"tier {tier_index} reports job {result.job_id}, which is not in flight"
            assert owner == tier_index, f"tier {tier_index} reports job {job.job_id} of tier {owner}"
            if job.is_promotion:
                self._complete_promotion(tier_index, job, result)
            else:
                self.primary.complete_read(job.keys, job.req_context)

    def _complete_promotion(self, tier_index: int, job: TransferJob, result: JobResult) -> None:
        good = set(result.successful_keys)
        assert good.issubset(job.keys), f"job {job.job_id}: {len(good.difference(job.keys))} keys are not the job's"
        failed = [key for key in job.keys if key not in good]
        self.primary.complete_store([key for key in job.keys if key in good], job.req_context, True)
        self.primary.complete_store(failed, job.req_context, False)
        if request := self._requests.get(job.req_context.req_id):
            request.failed_promotions.update((tier_index, key) for key in failed)

    def _release_step_hits(self) -> None:
        self.primary.complete_read(tuple(self._step_hits), ReqContext("step"))
        self._step_hits.clear()

    # ---- the whole

    def reset_cache(self) -> None:
        """Empty the CPU tier (after a change of the model's weights, say); secondary tiers keep what they have. Blocks
        until no tier touches a slot.

        Until `on_reset_flushed` nothing is handed out (lookup: MISS, prepare_store: None), because a copy prepared
        before may still write its slot; completions of such copies are ignored.
        """
        for tier in self.secondary_tiers:
            tier.drain_jobs()
        self._poll()
        assert not self._jobs, f"{len(self._jobs)} jobs have no result although all tiers were drained"
        self._resetting = True
        self._step_hits.clear()
        self._loading.clear()
        self.primary.reset_cache()
        for request in tuple(self._requests.values()):
            request.writing.clear()
            request.parked.clear()
            request.promotions.clear()
            if request.finished:
                self._finalise(request)

    def on_reset_flushed(self) -> None:
        """No copy from before the reset is under way any more, and none will be completed."""
        self._resetting = False

    def shutdown(self) -> None:
        """Shut every secondary tier down, whatever the others do, and take all results, so that no job keeps a pin.

        Promotions not yet sent are given up. Raises an `ExceptionGroup` of what the tiers raised.
        """
        self._release_step_hits()
        for request in self._requests.values():
            for pending in request.promotions.values():
                self.primary.complete_store([key for key, _ in pending.blocks], request.context, False)
            request.promotions.clear()
        errors = []
        for index, tier in enumerate(self.secondary_tiers):
            try:
                tier.shutdown()
            except Exception as error:
                errors.append(error)
            try:
                self._consume_results(index)
            except Exception as error:
                errors.append(error)
        if errors:
            raise ExceptionGroup("secondary tiers failed to shut down", errors)

    def take_events(self) -> Iterable[OffloadingEvent]:
        """Events of all tiers since the last call."""
        return tuple(chain(self.primary.take_events(), *(tier.take_events() for tier in self.secondary_tiers)))

    def gauges(self) -> Mapping[str, float]:
        """The CPU tier's, and what is in flight here; secondary tiers answer for themselves."""
        return {**self.primary.gauges(), "jobs_in_flight": len(self._jobs), "requests": len(self._requests)}

    def check_integrity(self) -> list[str]:
        """What the accounts find wrong, with those of the CPU tier: each reference has exactly one owner. O(slots)."""
        findings = self.primary.check_integrity()
        pins: Counter[OffloadKey] = Counter(self._loading)
        pins.update(self._step_hits)
        writers: Counter[OffloadKey] = Counter()
        places: list[tuple[OffloadKey, int]] = []
        for _, job in self._jobs.values():
            (writers if job.is_promotion else pins).update(job.keys)
            places += zip(job.keys, job.chunk_ids, strict=True)
        for request in self._requests.values():
            writers.update(request.writing)
            for pending in request.promotions.values():
                writers.update(key for key, _ in pending.blocks)
                places += pending.blocks
            if request.finished and not request.may_submit():
                findings.append(f"request {request.context.req_id} is over but was not finalised")
        chunks = self.primary.chunks()
        for key in chunks.keys() | pins.keys() | writers.keys():
            refs = chunks[key].ref_count if key in chunks else None
            if refs != pins[key] - writers[key] or (pins[key] and writers[key]):
                findings.append(f"{key.hex()}: {refs} references, {pins[key]} readers and {writers[key]} writers known")
        for key, slot in places:
            if key in chunks and chunks[key].slot != slot:
                findings.append(f"{key.hex()} is in slot {chunks[key].slot}, a job says {slot}")
        if idle := [req_id for req_id in self._active if req_id not in self._requests]:
            findings.append(f"{len(idle)} requests are active but unknown")
        return findings
