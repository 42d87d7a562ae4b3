"""Reduction and brute force reach the same final states; with a broken dependence relation they do not."""

from __future__ import annotations

import dataclasses
import random

import pytest

from harness.explore.dependence import Effect, dependent, dependent_unless_listed
from harness.explore.execution import Dependence, _Run
from harness.explore.model import Exploration
from harness.explore.search import explore, unavailable
from tests.tiering.harness.explore.small import SOUND, random_program

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


LONG = ("three processes", "two threads and a reader")
TOO_FINE = ("links of a folder", "times of a folder", "order of a listing", "modes", "two that try a lock")
"""Compared below, beside a relation that is too fine for them."""


def missed(reduced: Exploration, brute: Exploration) -> list[object]:
    assert brute.complete, brute.incomplete
    return sorted(set(brute.final_states) - set(reduced.final_states), key=repr)


@pytest.mark.parametrize(
    ("name", "kills"),
    [
        pytest.param(name, kills, marks=[pytest.mark.slow] if kills or name in (*LONG, *TOO_FINE) else [])
        for name in SOUND
        for kills in (0, 1)
        if not (kills and name == "three processes")  # some thousands by brute force
    ],
)
def test_reduction_and_brute_force_reach_the_same_final_states(name: str, kills: int) -> None:
    reduced = explore(SOUND[name], kills=kills)
    brute = explore(SOUND[name], kills=kills, reduction=False)
    assert reduced.complete, reduced.incomplete
    assert set(reduced.final_states) == set(brute.final_states), missed(reduced, brute)
    assert len(reduced.final_states) > 1, "the order of calls matters in this program"
    assert reduced.schedules < brute.schedules


def by_path_only(a: Effect, b: Effect) -> bool:
    """A relation that does not know that two names or descriptors may be one inode."""
    return a.actor == b.actor or any(
        one[0] == "entry" for one in (a.writes & (b.reads | b.writes)) | (a.reads & b.writes)
    )


@pytest.mark.parametrize("name", ["two names of one inode", "rename over an open file", "flock that does not wait"])
def test_a_broken_dependence_relation_misses_final_states(name: str) -> None:
    assert missed(explore(SOUND[name], depends=by_path_only), explore(SOUND[name], reduction=False))


def test_a_relation_in_which_only_the_same_process_depends_misses_a_vanished_folder() -> None:
    name = "a folder appears and vanishes"
    alone = explore(SOUND[name], depends=lambda a, b: a.actor == b.actor)
    assert missed(alone, explore(SOUND[name], reduction=False))
    assert not missed(explore(SOUND[name], depends=dependent), explore(SOUND[name], reduction=False))


def blind_to_folders(a: Effect, b: Effect) -> bool:
    """A relation in which a name that comes or goes leaves its folder as it was."""
    return dependent(dataclasses.replace(a, updates=frozenset()), dataclasses.replace(b, updates=frozenset()))


def without_modes(a: Effect, b: Effect) -> bool:
    """A relation in which a chmod that changes nothing depends on nothing."""
    blind = [dataclasses.replace(one, reads=frozenset(o for o in one.reads if o[0] != "meta")) for one in (a, b)]
    return dependent(*blind)


@pytest.mark.parametrize(
    ("name", "depends"),
    [
        ("links of a folder", blind_to_folders),
        ("times of a folder", blind_to_folders),
        ("order of a listing", dependent_unless_listed),
        ("modes", without_modes),
    ],
)
def test_a_relation_that_is_too_fine_misses_final_states(name: str, depends: Dependence) -> None:
    brute = explore(SOUND[name], reduction=False)
    assert not missed(explore(SOUND[name]), brute)
    assert missed(explore(SOUND[name], depends=depends), brute)


@pytest.mark.slow
def test_a_kill_after_a_write_into_an_unnamed_file_counts_if_the_file_has_had_a_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = SOUND["an unnamed file that had a name"]
    brute = explore(one, kills=1, reduction=False)
    assert not missed(explore(one, kills=1), brute)
    monkeypatch.setattr(_Run, "_fades", lambda self, call: bool(call.places) and call.places[0].unnamed)
    assert missed(explore(one, kills=1), brute)


@pytest.mark.slow
def test_a_kill_after_a_lock_counts_and_one_after_its_release_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    one = SOUND["two that try a lock"]
    brute = explore(one, kills=1, reduction=False)
    assert not missed(explore(one, kills=1), brute)
    monkeypatch.setattr(_Run, "_fades", lambda self, call: call.lock is not None)
    assert missed(explore(one, kills=1), brute)


@pytest.mark.slow
@pytest.mark.parametrize(("kills", "programs"), [(0, 15), (1, 5)])
def test_random_programs_reach_the_same_final_states_by_reduction_and_brute_force(kills: int, programs: int) -> None:
    states = 0
    for seed in range(100 * kills, 100 * kills + programs):
        one = random_program(random.Random(seed))
        reduced, brute = explore(one, kills=kills), explore(one, kills=kills, reduction=False)
        assert set(reduced.final_states) == set(brute.final_states), (f"seed {seed}", missed(reduced, brute))
        states += len(brute.final_states)
    assert states > programs, "their order matters"
