"""The moment of each finding: what concerned its block, job, request, slot or threads, in all processes, 200 ms to
either side, with the raw records."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from harness.checkers import RULES
from harness.checkers.base import called
from harness.core import notes
from harness.core.findings import About, Finding
from harness.core.guarantees import GUARANTEES
from harness.core.history import DIRECTIONS, History, Job, Note, Record, Request, Task, encode
from harness.report.figures import (
    BOUND_COLOUR,
    CLASS_COLOURS,
    QUIET_COLOUR,
    Section,
    Table,
    duration,
    line,
    new_figure,
    origin_seconds,
    plain,
    short,
)

REACH_SECONDS = 0.2
"""To either side of the moment."""
MOMENTS_MAX = 20
BARS_MAX = 200
LANES_MAX = 40
GUARANTEES_MAX = 3
QUEUED_MAX = 4
"""Lanes of tasks that wait, for each direction; of more, the first to come are drawn."""
QUEUED_COLOUR = "#e3b341"
LENGTH_MIN = 0.5
"""Of a bar, in milliseconds: a shorter one is hardly visible. Its text has the true duration."""
RECORDS_MAX = 40
RECORD_CHARACTERS_MAX = 500
_WORDS = {"h": "hit", "m": "miss", "r": "retry"}


class Moment(NamedTuple):
    """What the page shows of one finding. `facts` are name and value; `section` has no figure where nothing is known of
    the time; `records` are lines of the histories, in order; `more` of them are left out."""

    number: int
    finding: Finding
    facts: Table
    section: Section | None
    records: list[str]
    more: int


class _Bar(NamedTuple):
    lane: str
    trace: str
    begin: float
    end: float
    text: str


class _Dot(NamedTuple):
    lane: str
    seconds: float
    text: str


class Window(NamedTuple):
    """A stretch of time, both ends included."""

    begin: float
    end: float

    def touches(self, begin: float, end: float) -> bool:
        return begin <= self.end and self.begin <= end


def moments(history: History, results: Mapping[str, Any]) -> list[Moment]:
    """Those of `MOMENTS_MAX` findings at most: the first of each checker that did not pass, then the second of each."""
    shown = _chosen([verdict["findings"] for verdict in results["verdicts"] if verdict["value"] != "true"])
    windows = [_window(f.about) for f in shown]
    near = _near(history, windows)
    start = origin_seconds(history)
    return [
        _Scene(near, finding, window, start).moment(number)
        for number, (finding, window) in enumerate(zip(shown, windows, strict=True), 1)
    ]


def _chosen(lists: Sequence[Sequence[Finding]]) -> list[Finding]:
    """Findings and doubts with a time, in the order of the page; a checker with many does not displace the others."""
    timed = [[f for f in found if f.about.seconds is not None] for found in lists]
    ranked = sorted((rank, place) for place, found in enumerate(timed) for rank in range(len(found)))
    taken = [sum(at == place for _, at in ranked[:MOMENTS_MAX]) for place in range(len(timed))]
    return [finding for found, count in zip(timed, taken, strict=True) for finding in found[:count]]


def mark(section: Section, found: Sequence[Moment], start_seconds: float, end_seconds: float) -> None:
    """Mark the moments on a plot over the seconds of the run, each by its number where there is space."""
    figure = section.figure
    if figure is None or not found:
        return
    axes = [axis for axis in figure.select_xaxes() if axis.title.text == "seconds"]
    if not axes:
        return
    shapes, labels = [], []
    at = sorted((float(m.finding.about.seconds or 0.0) - start_seconds, m.number) for m in found)
    free_from, step = float("-inf"), (end_seconds - start_seconds) / 40
    for seconds, number in at:
        where = {"x0": seconds, "x1": seconds, "y0": 0, "y1": 1, "yref": "paper"}
        shapes.append({"type": "line", "line": {"color": BOUND_COLOUR, "width": 1, "dash": "dot"}} | where)
        if seconds >= free_from:
            free_from = seconds + step
            place = {"x": seconds, "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False}
            labels.append({"text": f"{number}", "font": {"size": 10, "color": BOUND_COLOUR}} | place)
    figure.update_layout(shapes=[*figure.layout.shapes, *shapes], annotations=[*figure.layout.annotations, *labels])


def _guarantees(rule: str) -> Table:
    """The promises that a rule judges, as docs/guarantees.md has them."""
    kept = [one for one in GUARANTEES if rule in one.rules][:GUARANTEES_MAX]
    return [["guarantee", f"{one.promise} ({one.source})"] for one in kept]


def _window(about: About) -> Window:
    at = about.seconds or 0.0
    return Window(at - REACH_SECONDS, at + REACH_SECONDS)


def _span(record: Record) -> tuple[float, float]:
    """From when to when a record tells of its process."""
    if isinstance(record, Job):
        return record.submitted_seconds, record.finished_seconds
    if isinstance(record, Request):
        return record.started_seconds, record.finished_seconds
    if isinstance(record, Task):
        return record.enqueued_seconds, record.finished_seconds
    if isinstance(record, Note):
        asked = record.detail.get("asked_seconds")
        since = float(asked if asked is not None else record.detail.get("from_seconds", record.monotonic_seconds))
        since = min([since, *(late[0] for late in record.detail.get("latest", ()))])  # of a canary
        return min(since, record.monotonic_seconds), record.monotonic_seconds
    at = float(getattr(record, "monotonic_seconds", float("nan")))
    return at, at


def _near(history: History, windows: Sequence[Window]) -> list[Record]:
    """All records that tell of any of the windows."""
    merged: list[Window] = []
    for window in sorted(windows):
        if merged and window.begin <= merged[-1].end:
            merged[-1] = Window(merged[-1].begin, max(window.end, merged[-1].end))
        else:
            merged.append(window)
    ends = [window.end for window in merged]

    def touches(begin: float, end: float) -> bool:
        place = bisect_right(ends, begin)
        return place < len(merged) and merged[place].begin <= end

    kinds: Iterable[Sequence[Record]] = (
        history.starts, history.requests, history.jobs, history.tasks, history.gauges, history.notes, history.stops,
    )  # fmt: skip
    return [record for records in kinds for record in records if touches(*_span(record))]


class _Scene:
    """What happened around one finding."""

    def __init__(self, near: Sequence[Record], finding: Finding, window: Window, start_seconds: float) -> None:
        self.finding, self.window, self.about, self.start_seconds = finding, window, finding.about, start_seconds
        self.at = self.about.seconds or 0.0
        self.records = [record for record in near if window.touches(*_span(record)) and self._concerns(record)]
        self.bars: list[_Bar] = []
        self.dots: list[_Dot] = []

    def _concerns(self, record: Record) -> bool:
        """Whether a record is about the finding's block or slot in any process, or about its process."""
        about = self.about
        if isinstance(record, Job | Request) and about.block is not None and about.block in record.blocks:
            return True
        if isinstance(record, Job) and record.process == about.process and about.slot in record.slots:
            return True
        if isinstance(record, Note) and about.block is not None and about.block in record.detail.get("blocks", ()):
            return True
        if isinstance(record, Note) and (record.process < 0 or record.is_a(notes.Fault, notes.Lifted, notes.Pressure)):
            return True
        return about.process is None or about.process < 0 or getattr(record, "process", None) == about.process

    def moment(self, number: int) -> Moment:
        nearest = sorted(self.records, key=self._distance)[:RECORDS_MAX]
        lines = [short(encode(record), RECORD_CHARACTERS_MAX) for record in sorted(nearest, key=_span)]
        return Moment(number, self.finding, self._facts(), self._section(), lines, len(self.records) - len(nearest))

    def _distance(self, record: Record) -> tuple[bool, float]:
        """Records of the subject first, then the nearest."""
        begin, end = _span(record)
        subject = (self.about.process, self.about.job)
        mine = (getattr(record, "process", None), getattr(record, "job_id", None)) == subject
        return not mine, max(begin - self.at, self.at - end, 0.0)

    def _facts(self) -> Table:
        about, rows = self.about, [["", ""]]
        if (rule := RULES.get(about.rule)) is not None:
            rows += [["rule", rule.id], ["demands", rule.text]]
            rows += [["tolerates", rule.tolerates]] if rule.tolerates else []
            rows += _guarantees(rule.id)
        rows.append(["time", f"{self.at - self.start_seconds:.6f} s after the start of the traffic"])
        rows.append(["monotonic clock", f"{self.at:.6f} s"])
        if about.process is not None:
            who = "the harness" if about.process < 0 else called(about.process, about.incarnation or 0)
            rows.append(["process", who])
        for name in ("request", "job", "block", "slot", "file", "thread", "writer", "trace_id", "expected", "seen"):
            if (value := getattr(about, name)) is not None:
                rows.append([name.replace("_", " "), f"{value}"])
        return rows

    def _section(self) -> Section:
        self._collect()
        lanes = self._lanes()
        figure = new_figure("milliseconds from the moment", "", height=130 + 20 * max(3, len(lanes)))
        bars = sorted((b for b in self.bars if b.lane in lanes), key=self._bar_distance)[:BARS_MAX]
        for trace, colour in (
            ("this one", BOUND_COLOUR),
            *((f"{direction}s", CLASS_COLOURS[direction]) for direction in DIRECTIONS),
            ("queued", QUEUED_COLOUR),
            ("requests", CLASS_COLOURS["request"]),
            ("machine", QUIET_COLOUR),
        ):
            if listed := [bar for bar in bars if bar.trace == trace]:
                self._draw_bars(figure, trace, colour, listed)
        if dots := [dot for dot in self.dots if dot.lane in lanes][:BARS_MAX]:
            figure.add_scatter(
                x=plain(((dot.seconds - self.at) * 1000 for dot in dots), 6),
                y=[dot.lane for dot in dots],
                customdata=[dot.text for dot in dots],
                mode="markers",
                name="lookups, notes",
                marker={"color": QUIET_COLOUR, "size": 8, "symbol": "diamond"},
                hovertemplate="%{customdata} at %{x:,.4g} ms<extra></extra>",
            )
        figure.update_layout(barmode="overlay", bargap=0.25)
        reach = REACH_SECONDS * 1000
        figure.update_xaxes(range=[-reach, reach])
        figure.update_yaxes(categoryorder="array", categoryarray=[*reversed(lanes)], automargin=True, showgrid=False)
        figure.add_vline(0, line=line(BOUND_COLOUR, dash="dot"))
        table: Table = [["lane", "what", "from, ms", "to, ms"]]
        for bar in sorted(bars, key=lambda bar: bar.begin):
            table.append([bar.lane, bar.text, *(f"{(at - self.at) * 1000:,.3f}" for at in (bar.begin, bar.end))])
        for dot in dots:
            table.append([dot.lane, dot.text, f"{(dot.seconds - self.at) * 1000:,.3f}", ""])
        return Section("", f"{len(bars)} pieces of work in {len(lanes)} lanes.", figure, table)

    def _draw_bars(self, figure: Any, trace: str, colour: str, bars: Sequence[_Bar]) -> None:
        clipped = [(max(bar.begin, self.window.begin), min(bar.end, self.window.end)) for bar in bars]
        figure.add_bar(
            orientation="h",
            base=plain(((begin - self.at) * 1000 for begin, _ in clipped), 6),
            x=plain(max((end - begin) * 1000, LENGTH_MIN) for begin, end in clipped),
            y=[bar.lane for bar in bars],
            customdata=[f"{bar.text}, {duration(bar.end - bar.begin)}" for bar in bars],
            marker={"color": colour, "line": {"width": 0.5, "color": "rgba(128,128,128,0.6)"}},
            name=trace,
            hovertemplate="%{customdata}, shown from %{base:,.4g} ms on<extra></extra>",
        )

    def _bar_distance(self, bar: _Bar) -> tuple[bool, float]:
        return bar.trace != "this one", max(bar.begin - self.at, self.at - bar.end, 0.0)

    def _lanes(self) -> list[str]:
        """The lanes that have anything, the subject's first, then those of its process, others, the machine."""
        used = [*(bar.lane for bar in self.bars), *(dot.lane for dot in self.dots)]
        own = self._who(self.about.process)

        def rank(lane: str) -> tuple[int, str]:
            return (
                0 if lane.startswith("this ") else 3 if lane == "the harness" else 1 if lane.startswith(own) else 2
            ), lane

        return sorted(dict.fromkeys(used), key=rank)[:LANES_MAX]

    @staticmethod
    def _who(process: int | None) -> str:
        return "the harness" if process is None or process < 0 else f"process {process}"

    def _collect(self) -> None:
        about = self.about
        jobs = [record for record in self.records if isinstance(record, Job)]
        tasks = [record for record in self.records if isinstance(record, Task)]
        shown = {(task.process, task.job_id) for task in tasks}  # such a job's tasks say more than the job
        free: dict[str, list[float]] = {}
        for job in sorted(jobs, key=lambda job: job.submitted_seconds):
            mine = (job.process, job.job_id) == (about.process, about.job)
            of_block = about.block is not None and about.block in job.blocks
            of_slot = job.process == about.process and about.slot in job.slots
            text = f"{job.direction} job {job.job_id} of {len(job.blocks)} blocks: {job.outcome}"
            if mine:
                self.bars.append(_Bar("this job", "this one", job.submitted_seconds, job.finished_seconds, text))
            elif of_block or of_slot or (job.process, job.job_id) not in shown:
                kind = "of this block" if of_block else "of this slot" if of_slot else "jobs"
                what = f"{self._who(job.process)} {kind}"
                lane = f"{what} {self._lane(free.setdefault(what, []), job.submitted_seconds, job.finished_seconds)}"
                self.bars.append(_Bar(lane, f"{job.direction}s", job.submitted_seconds, job.finished_seconds, text))
        for task in tasks:
            lane = f"{self._who(task.process)} {task.group} thread {task.thread}"
            mine = (task.process, task.job_id) == (about.process, about.job)
            queued = duration(task.started_seconds - task.enqueued_seconds)
            text = f"{task.direction} task of job {task.job_id}, {queued} queued"
            trace = "this one" if mine else f"{task.direction}s"
            if task.finished_seconds >= self.window.begin and task.started_seconds <= self.window.end:
                self.bars.append(_Bar(lane, trace, task.started_seconds, task.finished_seconds, text))
        for task in sorted(tasks, key=lambda task: task.enqueued_seconds):
            what = f"{self._who(task.process)} queued {task.direction}s"
            number = self._lane(free.setdefault(what, []), task.enqueued_seconds, task.started_seconds)
            if number <= QUEUED_MAX and self.window.touches(task.enqueued_seconds, task.started_seconds):
                text = f"{task.direction} task of job {task.job_id} waits"
                self.bars.append(_Bar(f"{what} {number}", "queued", task.enqueued_seconds, task.started_seconds, text))
        for request in (record for record in self.records if isinstance(record, Request)):
            mine = (request.process, request.request) == (about.process, about.request)
            if not mine and (about.block is None or about.block not in request.blocks):
                continue
            text = f"request {request.request}: {request.hit_blocks} of {len(request.blocks)} blocks hit"
            what = f"{self._who(request.process)} requests"
            lane = "this request" if mine else f"{what} {self._lane(free.setdefault(what, []), *_span(request))}"
            trace = "this one" if mine else "requests"
            self.bars.append(_Bar(lane, trace, request.started_seconds, request.finished_seconds, text))
        for note in (record for record in self.records if isinstance(record, Note)):
            self._collect_note(note)

    def _collect_note(self, note: Note) -> None:
        lane, (begin, end) = self._who(note.process), _span(note)
        if note.is_a(notes.Asked):
            pairs = zip(note.detail["blocks"], note.detail["verdicts"], strict=True)
            said = [f"block {b}: {_WORDS.get(v, v)}" for b, v in pairs if self.about.block in (None, b)]
            if said:
                self.dots.append(_Dot(f"{lane} lookups", begin, f"lookup, {short('; '.join(said), 80)}"))
        elif note.is_a(notes.Canary):
            for at, late, *_ in note.detail.get("latest", ()):
                if self.window.touches(at, at):
                    self.dots.append(_Dot(f"{lane} wake-ups", at, f"a probe thread woke up {duration(late)} late"))
        elif note.is_a(notes.Delayed):
            stopped = ", no thread ran" if note.detail.get("stopped") else ""
            text = f"runnable without a CPU for {duration(note.detail['seconds'])}{stopped}"
            self.bars.append(_Bar(f"{lane} without a CPU", "machine", begin, end, text))
        elif note.is_a(notes.Device):
            text = f"device probe: the longest {note.detail['call']} took {duration(note.detail['longest_seconds'])}"
            self.bars.append(_Bar(f"{lane} device probe", "machine", begin, end, text))
        elif note.is_a(notes.Fault, notes.Lifted, notes.Hang, notes.Phase, notes.Error, notes.Removed, notes.Evicted):
            self.dots.append(_Dot(f"{lane} notes", end, f"{note.kind}: {short(note.text, 80)}"))

    @staticmethod
    def _lane(free: list[float], begin: float, end: float) -> int:
        """The number of the first lane that is free at `begin`, which is then taken until `end`."""
        lane = next((i for i, at in enumerate(free) if at <= begin), len(free))
        free[lane : lane + 1] = [end]
        return lane + 1
