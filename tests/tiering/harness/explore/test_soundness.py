"""Reduction and brute force reach the same final states; with a broken dependence relation they do not."""

from __future__ import annotations

import pytest

from harness.explore.dependence import Effect, dependent
from harness.explore.engine import explore, unavailable
from harness.explore.model import Exploration
from tests.tiering.harness.explore.small import SOUND

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


def missed(reduced: Exploration, brute: Exploration) -> list[object]:
    assert brute.complete, brute.incomplete
    return sorted(set(brute.final_states) - set(reduced.final_states), key=repr)


@pytest.mark.parametrize(
    ("name", "kills"),
    [
        pytest.param(name, kills, marks=[pytest.mark.slow] if kills or name == "three processes" else [])
        for name in SOUND
        for kills in (0, 1)
        if (name, kills) != ("three processes", 1)  # some thousands by brute force
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
