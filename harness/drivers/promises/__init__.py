"""The promises of every tier to its engine, one function each; the driver "contract" checks them on real instances.

A function returns when the promise is kept and raises `Broken` otherwise. Scenarios check what needs several processes,
floods or faults.
"""

from __future__ import annotations

from collections.abc import Callable

from harness.adapters.base import Adapter
from harness.drivers.promises import (
    accounts,
    blocks,
    calls,
    growth,
    keys,
    lifecycle,
    lookup_costs,
    strange_files,
    surroundings,
)
from harness.drivers.promises.subject import SLOTS_MIN, Broken, Subject

__all__ = [
    "NEEDS_FILES",
    "OF_ADAPTERS",
    "OF_LIFE",
    "PROMISES",
    "SLOTS_MIN",
    "Broken",
    "Promise",
    "Subject",
    "left_out",
    "promises",
    "title",
]

Promise = Callable[[Subject], None]

PROMISES: tuple[Promise, ...] = (
    blocks.slots_are_memory,
    keys.keys_name_prefixes,
    keys.keys_tell_tokens_apart,
    keys.keys_have_their_full_length,
    keys.keys_are_used_in_full,
    keys.models_are_separate,
    keys.data_types_are_separate,
    keys.ranks_are_separate,
    keys.groups_are_separate,
    keys.salts_are_separate,
    keys.many_keys_stay_apart,
    blocks.absent_blocks_are_misses,
    blocks.stored_blocks_load,
    blocks.hits_in_flight_load,
    blocks.another_instance_finds_them,
    blocks.jobs_touch_only_their_slots,
    blocks.slots_are_free_after_the_result,
    blocks.large_jobs_lose_nothing,
    blocks.many_jobs_at_once,
    blocks.storing_twice_is_harmless,
    calls.nothing_comes_without_a_job,
    calls.absent_blocks_fail_to_load,
    calls.empty_calls_are_harmless,
    calls.job_numbers_may_come_again,
    calls.results_come_once_whenever_polled,
    calls.a_job_may_name_a_block_twice,
    calls.lookups_answer_each_key,
    lookup_costs.lookups_cost_the_same_per_key,
    calls.requests_may_end_before_their_jobs,
    calls.requests_do_not_disturb_each_other,
    calls.pending_work_is_reported,
    calls.slots_of_failed_loads_are_given_back,
    lifecycle.drain_waits_for_all,
    lifecycle.close_answers_for_all,
    lifecycle.calls_after_close_are_harmless,
    lifecycle.others_come_and_go,
    lifecycle.a_reopened_root_has_everything,
    blocks.a_vanished_block_is_no_data,
    blocks.a_failed_load_becomes_a_miss,
    strange_files.objects_are_no_blocks,
    strange_files.a_store_changes_no_other_block,
    strange_files.links_are_not_followed_by_stores,
    strange_files.others_cannot_write,
    accounts.accounts_are_in_order,
    accounts.counts_are_of_what_happened,
    accounts.metrics_are_true,
    accounts.events_are_reported_once,
    accounts.instances_have_their_own_ids,
    lifecycle.close_gives_everything_back,
    surroundings.surroundings_stay,
    growth.hits_leave_nothing,
    growth.misses_leave_nothing,
    growth.stores_leave_nothing,
    growth.loads_leave_nothing,
    growth.failures_leave_nothing,
    growth.requests_leave_nothing,
)
OF_LIFE: tuple[Promise, ...] = (
    lifecycle.others_come_and_go,
    lifecycle.drain_waits_for_all,
    lifecycle.close_answers_for_all,
    lifecycle.a_reopened_root_has_everything,
    lifecycle.calls_after_close_are_harmless,
)
"""Promises about opening, draining and closing, which also hold on a root that other processes use."""
NEEDS_FILES = (
    blocks.a_vanished_block_is_no_data,
    blocks.a_failed_load_becomes_a_miss,
    strange_files.objects_are_no_blocks,
    strange_files.a_store_changes_no_other_block,
    strange_files.links_are_not_followed_by_stores,
)
OF_ADAPTERS = (
    blocks.slots_are_memory,
    keys.keys_name_prefixes,
    keys.keys_tell_tokens_apart,
    keys.keys_have_their_full_length,
    keys.models_are_separate,
    keys.data_types_are_separate,
    keys.ranks_are_separate,
    keys.groups_are_separate,
    keys.salts_are_separate,
    accounts.counts_are_of_what_happened,
    accounts.metrics_are_true,
    accounts.events_are_reported_once,
    accounts.instances_have_their_own_ids,
)
"""Promises about slots, keys, and what an adapter says of its tier. A tier that is given all of it, as kvtier's
managers are, has no part in them."""
_SEPARATED: dict[str, tuple[str, ...]] = {
    "models_are_separate": ("model_name",),
    "data_types_are_separate": ("dtype",),
    "ranks_are_separate": ("ranks", "rank"),
}
"""Promises that apply where the adapter passes these fields of its setup on to the tier (`Adapter.separates`)."""


def promises(adapter: type[Adapter]) -> list[Promise]:
    """Those that apply to this tier: without a file for each block, none can vanish."""
    return [promise for promise in PROMISES if not left_out(promise, adapter)]


def left_out(promise: Promise, adapter: type[Adapter]) -> str:
    """Why a promise does not apply to this tier; "": it applies."""
    if promise in NEEDS_FILES and not adapter.exposes_files:
        return "the tier keeps no file per block"
    fields = _SEPARATED.get(promise.__name__, ())
    if missing := [name for name in fields if name not in adapter.separates]:
        return f"the adapter does not pass {', '.join(missing)} on to the tier"
    return ""


def title(promise: Promise) -> str:
    """The promise in words."""
    return " ".join((promise.__doc__ or promise.__name__).split()).rstrip(".")
