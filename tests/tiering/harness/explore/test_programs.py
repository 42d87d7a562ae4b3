"""Programs as text, and what is checked after each of their schedules."""

from __future__ import annotations

import itertools
import logging
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from harness.adapters import adapter_class
from harness.adapters.base import TierSetup
from harness.checkers.interleavings import KINDS
from harness.core.inputs import UsageError
from harness.explore import checks, search
from harness.explore.checks import EXCUSED, Check
from harness.explore.diagram import diagram, rows
from harness.explore.model import Actor, CannotExplore, Outcome, Program
from harness.explore.programs import Kit, Step, Subject, in_child, parse
from harness.scenarios.interleavings import LONG, QUICK, SHORT

pytestmark = pytest.mark.skipif(search.unavailable() is not None, reason=f"{search.unavailable()}")
SOUND = "harness.mutants.protocols:SoundProtocol"


def kit(tmp_path: Path, tier: str = SOUND, **options: Any) -> Kit:
    root = tmp_path / "names"
    root.mkdir()
    setup = TierSetup(str(root), block_bytes=4096, slots=6, n_read_threads=1, n_write_threads=1, options=options)
    adapter = adapter_class(tier)(setup)
    made = Kit.of(adapter)
    adapter.close()
    return made


@pytest.mark.parametrize("text", [*SHORT, *LONG, *QUICK])
def test_a_listed_program_is_a_text_that_says_the_same_again(text: str) -> None:
    spec = parse(text)
    actors = [("then " if late else "") + ", ".join(map(str, steps)) for steps, late in zip(*spec[2:], strict=True)]
    given = ", ".join(f"{block} {damage}".strip() for block, damage in spec.given)
    assert f"{given}: {' | '.join(actors)}".removeprefix(": ") == text == spec.text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("store D", "operation 'store D'"),
        ("lod A", "did you mean 'load'"),
        ("store", "a block A, B or C"),
        ("A rotten: load A", "'A rotten' before its colon; valid: .*corrupt, short, long, foreign"),
        ("then store A", "begins with 'then'"),
        ("", "operation ''"),
    ],
)
def test_a_wrong_program_is_one_sentence_with_the_valid_choices(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse(text)


def test_two_blocks_of_a_kit_share_a_folder_and_the_third_does_not(tmp_path: Path) -> None:
    a, b, c = (str(Path(path).parent) for path in kit(tmp_path, "kvtier").files.values())
    assert a == b != c


@pytest.fixture
def judged(tmp_path: Path) -> Any:
    """Judges an outcome that was made by hand: what a program's text, its results and files give."""
    tier, numbers = kit(tmp_path), itertools.count()

    def judge(text: str, results: Any, change: Any = lambda root: None, **more: Any) -> Any:
        root = tmp_path / f"root-{next(numbers)}"
        root.mkdir()
        spec = parse(text)
        tier.fill(root, spec)
        change(root)
        values = {"errors": (None,) * len(results), "killed": (), "trace": (), **more}
        check = Check(tier, spec)
        outcome = Outcome(root, tuple(results), **values)
        texts = check(outcome)
        assert all(text.partition(":")[0] in KINDS for text in texts), texts
        return texts, check.state(outcome)[0]

    judge.kit = tier  # type: ignore[attr-defined]
    return judge


def folder(root: Path) -> Path:
    """The folder of the tier."""
    (found,) = root.iterdir()
    return found


OK = {"ok": True, "results": 1, "outcomes": 1, "refused_blocks": 0, "reasons": ""}
FAILED = {**OK, "ok": False, "reasons": "EIO"}


def test_a_good_outcome_has_no_violation(judged: Any) -> None:
    assert judged("A: load A", [[{**OK, "wrong": None}]]) == ([], ())


@pytest.mark.parametrize(
    ("text", "results", "kind"),
    [
        ("A: load A", [[{**OK, "wrong": "short: bytes from 0 on are zero (4096 of 4096)"}]], "wrong bytes"),
        ("A: load A", [[{**OK, "results": 2, "wrong": None}]], "results"),
        ("A: load A", [[FAILED]], "failed load"),
        ("A: store A", [[FAILED]], "failed store"),
        ("store A", [[OK]], "lost store"),
        ("open | open", [[{"ok": True, "digest": "1"}], [{"ok": True, "digest": "2"}]], "two seeds"),
        ("open | open", [[{"ok": True, "digest": "1"}], [{"ok": False, "refused": "no"}]], "refused opening"),
        ("A, B: evict", [[{"ok": True}]], None),
        ("lookup A", [[{"ok": True, "seen": "hit"}]], "lookup"),
        ("lookup A | store A", [[{"ok": True, "seen": "hit"}], None], None),
        ("A: lookup A", [[{"ok": True, "seen": "miss"}]], "lookup"),
        ("A: lookup A | evict", [[{"ok": True, "seen": "miss"}], [{"ok": True}]], None),
        ("A short: lookup A", [[{"ok": True, "seen": "miss"}]], None),
        ("store A, lookup A", [[OK, {"ok": True, "seen": "miss"}]], "lookup"),
        ("lookup A, load A | store A", [[{"ok": True, "seen": "hit"}, FAILED], None], "failed load"),
        ("lookup A, load A | store A", [[{"ok": True, "seen": "miss"}, FAILED], None], None),
    ],
)
def test_each_kind_of_bad_result_is_a_violation(judged: Any, text: str, results: Any, kind: str | None) -> None:
    texts, _ = judged(text, results)
    assert [text.partition(":")[0] for text in texts if "lost store" not in text or kind == "lost store"] == (
        [kind] if kind else []
    )


def test_a_process_that_raised_or_hangs_and_a_file_that_stays_are_violations(judged: Any, tmp_path: Path) -> None:
    texts, _ = judged("A: load A", [None], errors=("ValueError: no",), stuck="deadlock: all wait")
    assert texts == ["stuck: deadlock: all wait", "raised: process 0: ValueError: no"]


def test_a_file_that_nobody_owns_is_left_over(judged: Any) -> None:
    texts, _ = judged("A: load A", [[{**OK, "wrong": None}]], lambda root: (folder(root) / ".1.tmp").touch())
    assert texts == ["left over: memory-#/.#.tmp is left, and no process was killed"]


def test_what_a_killed_process_left_is_collected(judged: Any) -> None:
    texts, _ = judged("A: load A", [None], lambda root: (folder(root) / ".1.tmp").touch(), killed=(0,))
    assert texts == []


def test_a_failure_that_the_machine_explains_is_no_violation(judged: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CannotExplore, match=r"process 0: store A failed: this machine has reached a limit \(EMFILE\)"):
        judged("A: store A", [[{**FAILED, "reasons": "EMFILE"}]])
    full = {**FAILED, "reasons": "ENOSPC"}
    assert [text.partition(":")[0] for text in judged("A: store A", [[full]])[0]] == ["failed store"]
    monkeypatch.setattr(checks, "FREE_BYTES_MIN", 1 << 60)
    with pytest.raises(CannotExplore, match="bytes are free at"):
        judged("A: store A", [[full]])


def test_a_block_that_is_evicted_below_the_limit_is_a_violation(judged: Any) -> None:
    def remove(root: Path) -> None:
        for block in folder(root).glob("*.bin"):
            block.unlink()

    assert judged("A, B: evict", [[{"ok": True}]], remove)[0] == [
        "evicted too much: 0 blocks are left, and the limit allows 1"
    ]


def test_what_a_killed_process_reported_and_evicted_is_judged(judged: Any) -> None:
    texts, _ = judged("store A, store B", [[OK]], killed=(0,))
    assert texts == ["lost store: A was reported stored, and the next process does not find it"]

    def remove(root: Path) -> None:
        for block in folder(root).glob("*.bin"):
            block.unlink()

    texts, _ = judged("A, B: evict | evict", [None, [{"ok": True}]], remove, killed=(0,))
    assert texts == ["evicted too much: 0 blocks are left, and the limit allows 1"]


def test_a_store_that_left_a_damaged_file_is_excused_and_counted(judged: Any) -> None:
    def quarantine(root: Path) -> None:
        (block,) = folder(root).glob("*.bin")
        (folder(root) / "quarantine").mkdir()
        block.rename(folder(root) / "quarantine/bad")

    assert judged("A corrupt: load A | store A", [[FAILED], [OK]], quarantine) == ([], (EXCUSED,))


def test_a_good_file_that_was_moved_away_is_not_excused(judged: Any) -> None:
    def publish_and_quarantine(root: Path) -> None:
        (block,) = folder(root).glob("*.bin")
        block.unlink()
        (stored,) = in_child(lambda: Subject(judged.kit, root).run([Step("open"), Step("store", "A")])[1:])
        assert stored["ok"]
        (folder(root) / "quarantine").mkdir()
        block.rename(folder(root) / "quarantine/good")

    texts, excused = judged("A corrupt: load A | store A", [[FAILED], [OK]], publish_and_quarantine)
    assert [text.partition(":")[0] for text in texts] == ["lost store"]
    assert excused == ()


def test_a_diagram_has_a_column_for_each_process_and_marks_the_step(tmp_path: Path) -> None:
    tier = kit(tmp_path)
    spec = parse("store A | load A")
    trace = search.replay(tier.program(spec, Check(tier, spec)), ("0.0", "1.0"), lambda outcome: outcome.trace)
    text = diagram(["0: store A", "1: load A"], rows(trace, tier.files), 1)
    assert text.splitlines()[0].split() == ["process", "0:", "store", "A", "process", "1:", "load", "A"]
    (marked,) = (line for line in text.splitlines() if line.startswith(">>"))
    assert "openat(A.bin, O_RDONLY)" in marked
    assert marked.index("openat") > 40, "the second column"


def test_kvtier_passes_a_short_program_and_its_subject_reports_one_result(tmp_path: Path) -> None:
    tier = kit(tmp_path, "kvtier")
    root = tmp_path / "root"
    root.mkdir()
    steps = [Step("open"), Step("store", "A"), Step("lookup", "A"), Step("load", "A")]
    done = in_child(lambda: Subject(tier, root).run(steps))  # the tier's threads end with the child
    assert [(r["ok"], r.get("results"), r.get("seen"), r.get("wrong")) for r in done] == [
        (True, None, None, None), (True, 1, None, None), (True, None, "hit", None), (True, 1, None, None)
    ]  # fmt: skip


def disguise_folders(seen: list[int]) -> None:
    """From now on this process sees another size, link count and other times of every folder."""
    real = os.stat

    def stat_of(*arguments: Any, **keywords: Any) -> os.stat_result:
        found = real(*arguments, **keywords)
        if not stat.S_ISDIR(found.st_mode):
            return found
        seen.append(found.st_ino)
        times = {f"st_{which}time_ns": len(seen) for which in "amc"}
        return os.stat_result((*found[:3], 77, *found[4:6], 99999, *[len(seen)] * 3), times)

    os.stat = os.lstat = os.fstat = stat_of  # type: ignore[assignment]


def test_kvtier_makes_the_same_calls_whatever_size_links_and_times_its_folders_have(tmp_path: Path) -> None:
    tier, seen = kit(tmp_path, "kvtier"), list[int]()
    spec = parse("A short: open, lookup A, load A, store A, load A, store B, lookup B | open, load A")
    program = tier.program(spec, lambda outcome: [])
    disguised = [
        one._replace(
            open=lambda root, one=one: (disguise_folders(seen), one.open(root))[1],  # in the actor's own process
            steps=lambda subject, one=one: [list(one.steps(subject))[-1], len(seen)],
        )
        for one in program.actors
    ]
    plain = search.replay(program, (), lambda outcome: outcome)
    other = search.replay(program._replace(actors=tuple(disguised)), (), lambda outcome: outcome)
    assert [call.name for call in other.trace] == [call.name for call in plain.trace]
    assert [result[0] for result in other.results] == list(plain.results)
    assert all(result[1] >= 4 for result in other.results), "folders were looked at"


def test_an_eviction_of_two_folders_makes_the_same_calls_each_time(tmp_path: Path) -> None:
    tier = kit(tmp_path, "kvtier")
    program = tier.program(parse("A, C: evict"), lambda outcome: [])
    program = program._replace(actors=tuple(one._replace(again=None) for one in program.actors))
    traces = {search.replay(program, (), lambda outcome: tuple(call.text for call in outcome.trace)) for _ in range(4)}
    assert len(traces) == 1


def test_processes_that_explore_log_no_warnings_and_the_one_that_starts_them_does(tmp_path: Path) -> None:
    tier, before = kit(tmp_path), logging.root.manager.disable
    Subject(tier, tmp_path)
    assert in_child(lambda: logging.root.manager.disable) == logging.ERROR
    start, name = Actor("0", lambda root: None, lambda subject: logging.root.manager.disable), "logging"
    program = Program(name, lambda root: None, (start,), lambda outcome: [], None)
    assert search.replay(program, (), lambda outcome: outcome.results) == (logging.ERROR,)
    assert logging.root.manager.disable == before
