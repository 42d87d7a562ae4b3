"""Which processes share follows from the rules alone, on every Python here; temp names and instance ids are unique.

Cells: PYTHONHASHSEED unset, "", "0", "1", "random"; each hash algorithm; each seed policy; a fresh interpreter, spawn,
forkserver and fork; another working directory, time zone, home, locale, host name and order of imports; the tier's
Python, where the whole tier is opened, and one of each other version found, where only its names are derived. Same
names for same tokens, in all processes that the rules let share, and in no other. Pairs: a process opens a root that a
process of another seed or algorithm has filled. Races: processes of different seeds open a fresh root at one moment,
and again; those of one seed are accepted, each of the others is refused, each time. Last, processes whose application
seeds every generator alike store the same blocks at one moment, and nothing that has to be unique comes twice.

Proves for the cells that could run here (skipped ones are listed): shared or not shared exactly as the rules say,
a process that shares nothing gets an error, no temp name or instance id depends on a seed. It proves neither that names
stay the same in later versions of the tier nor anything about other platforms.
"""

from __future__ import annotations

import glob
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from harness.adapters import adapter_class
from harness.adapters.base import Adapter
from harness.checkers.seed_settings import PRIVATE, REFUSED
from harness.core import notes
from harness.core.installation import module_command, python_path
from harness.faults import FaultUnavailable
from harness.faults.failing_system_calls import Attached
from harness.runtime.supervisor import WorkerFailed
from harness.scenarios.base import CommonOptions, Context, Scenario, UsageError, common_needs, option
from harness.scenarios.surroundings import USUAL, Surroundings, folder, surroundings, together
from harness.scenarios.worker_group import WorkerGroup

SEEDS = (None, "", "0", "1", "random")
START_METHODS = ("spawn", "forkserver", "fork")  # besides a fresh interpreter
PROBE_SECONDS_MAX = 600.0
APPLICATION_SEED = 0
SEEDS_OF_RACES = ("0", "1", "random")
RACES = 16
RACE_SECONDS = 0.03
"""Between two roots of a race: an open takes less, or the next one waits for it."""
ROUNDS_MIN = 3
ROUND_BLOCKS = 8
CREATED_MAX = 1000
_CREATING = "open,openat,openat2,creat"
_CREATED = re.compile(r'(?:open|openat|openat2|creat)\([^"]*"([^"]+)", [^)]*\bO_CREAT\b')
_TELLS = re.compile(r"seed|hash|differ|mismatch", re.IGNORECASE)


def rule(seed: str | None, algorithm: str, policy: str) -> str:
    """The rules of sharing, as a table of their own: the family of processes that share, or `PRIVATE`, or `REFUSED`.

    | PYTHONHASHSEED   | fixed                        | env     | random  |
    |------------------|------------------------------|---------|---------|
    | set, even to ""  | all with the same text       | same    | same    |
    | not set, sha256* | all without it               | refused | nobody  |
    | not set, xxhash* | nobody (a public seed would let collisions be computed) | refused | nobody |
    """
    if seed is not None:
        return f"seed {seed!r}"
    unset = {"fixed": "no seed" if algorithm.startswith("sha256") else PRIVATE, "env": REFUSED, "random": PRIVATE}
    return unset[policy]


@dataclass(frozen=True, kw_only=True)
class DeterminismOptions(CommonOptions):
    """Options of `run determinism`."""

    seconds: float = option(1.0, "how long seeded processes store the same blocks together", low=0)
    processes: int = option(3, "processes whose application seeds its generators alike", low=2)
    block_bytes: int = option(16 << 10, "size of a block", low=4096, multiple_of=4096)
    python: tuple[str, ...] = option((), "another interpreter for names, or none; may be repeated (default: all found)")


class Setting(NamedTuple):
    """What decides with whom a process shares."""

    seed: str | None
    algorithm: str
    policy: str

    def __str__(self) -> str:
        seed = "not set" if self.seed is None else repr(self.seed)
        return f"{self.algorithm}, {self.policy}, PYTHONHASHSEED {seed}"

    @property
    def family(self) -> str:
        return rule(*self)


class Plan(NamedTuple):
    """The settings that the tier says it has, and where they are tried; in words for the head of the run."""

    settings: list[Setting]
    pythons: dict[str, str]  # version -> path, the tier's own not among them
    source: str


def prepare(options: DeterminismOptions) -> Plan:
    for name in ("hash_algorithm", "seed_policy"):
        if name in options.tier_options():
            raise UsageError(f"--tier-option {name} contradicts determinism, which tries them all; leave it out")
    tier: type[Adapter] = adapter_class(options.tier)
    settings = [Setting(s, a, p) for s in SEEDS for a in tier.hash_algorithms for p in tier.seed_policies]
    pythons = find_pythons(options.python, tier.python())
    return Plan(
        settings, pythons, f"{len(settings)} settings; Pythons besides the tier's: {', '.join(pythons) or 'none'}"
    )


def find_pythons(wanted: Sequence[str], own: str) -> dict[str, str]:
    """Version -> path: the `wanted` ones, or one of each minor version on PATH, in pyenv and in uv, but not `own`'s."""
    found: dict[str, str] = {}
    if list(wanted) == ["none"]:
        return found
    for path in wanted or [*_candidates(), sys.executable]:
        try:
            command = [path, "-c", "import sys; print(*sys.version_info[:3], sep='.')"]
            version = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
        except (OSError, subprocess.SubprocessError) as error:
            if wanted:
                raise UsageError(f"--python is {path!r}, which does not run: {error}") from error
            continue
        if not re.fullmatch(r"\d+\.\d+\.\d+", version):
            if wanted:
                raise UsageError(f"--python is {path!r}, which is no Python: it says {version!r} of its version")
            continue
        minor = version.rpartition(".")[0]
        if wanted or (minor not in {v.rpartition(".")[0] for v in found} and int(minor.split(".")[1]) >= 11):
            found[version] = path
    mine = subprocess.run([own, "-c", "import sys; print(sys.version_info[1])"], capture_output=True, text=True).stdout
    return found if wanted else {v: p for v, p in found.items() if v.split(".")[1] != mine.strip()}


def _candidates() -> Iterator[str]:
    places = os.environ.get("PATH", "").split(os.pathsep)
    pyenv = os.environ.get("PYENV_ROOT", os.path.expanduser("~/.pyenv"))
    for minor in range(11, 20):
        yield from (os.path.join(place, f"python3.{minor}") for place in places)
        yield from sorted(glob.glob(f"{pyenv}/versions/*/bin/python3.{minor}"))
        yield from sorted(glob.glob(os.path.expanduser(f"~/.local/share/uv/python/*/bin/python3.{minor}")))


def run(context: Context, plan: Plan) -> None:
    """Cells, then pairs, then the seeded processes."""
    _surroundings(context, plan, _cells(context, plan))
    _pairs(context, plan)
    _races(context, plan)
    _unique(context)


# --- cells: one process for each interpreter and seed derives all algorithms and policies ---


def _cells(context: Context, plan: Plan) -> dict[Setting, dict[str, Any]]:
    """What a fresh interpreter of the tier's own Python derived, by setting."""
    usual: dict[Setting, dict[str, Any]] = {}
    places = [(context.python, True), *((path, False) for path in plan.pythons.values())]
    jobs = [(path, whole, seed) for path, whole in places for seed in SEEDS]
    with _pool() as pool:
        answers = pool.map(lambda job: _probe_cells(context, plan, *job), jobs)
        for (path, _, seed), answer in zip(jobs, answers, strict=True):
            settings = [s for s in plan.settings if s.seed == seed]
            for start, results in answer["answers"].items():
                for setting, result in zip(settings, results, strict=True):
                    where = {"python": answer["python"], "start": start, "expected": setting.family}
                    context.note(time.monotonic(), notes.Cell(**setting._asdict(), **where, **result), path)
                    if start == "fresh" and path == context.python:
                        usual[setting] = result
    return usual


def _probe_cells(context: Context, plan: Plan, path: str, whole: bool, seed: str | None) -> dict[str, Any]:
    settings = [s for s in plan.settings if s.seed == seed]
    answer, said = _probe(context, path, whole, seed, settings, START_METHODS)
    return answer or {
        "python": path,
        "answers": {"fresh": [{"status": "refused", "why": f"the probe died: {said[-300:]}"} for _ in settings]},
    }


def _surroundings(context: Context, plan: Plan, usual: Mapping[Setting, dict[str, Any]]) -> None:
    """A cell of the most usual setting under which processes share, in surroundings that differ in everything; if its
    names differ, too, a cell for each difference."""
    shared = [s for s in plan.settings if s.policy == "fixed" and s.family != PRIVATE and s.seed in (None, "0")]
    for setting in sorted(shared, key=lambda setting: setting.seed is not None)[:1]:
        differences = surroundings()
        result = _cell_in(context, setting, together(differences))
        if all(result.get(name) == usual.get(setting, {}).get(name) for name in ("digest", "names")):
            continue
        for one in differences:
            _cell_in(context, setting, one)


def _cell_in(context: Context, setting: Setting, one: Surroundings) -> dict[str, Any]:
    answer, said = _probe(context, context.python, True, setting.seed, [setting], one=one)
    died: dict[str, Any] = {"status": "refused", "why": f"the probe died: {said[-300:]}"}
    result: dict[str, Any] = answer["answers"]["fresh"][0] if answer else died
    where = {
        "python": answer["python"] if answer else context.python,
        "start": one.text,
        "expected": setting.family,
    }
    context.note(time.monotonic(), notes.Cell(**setting._asdict(), **where, **result), context.python)
    return result


def _probe(
    context: Context,
    path: str,
    whole: bool,
    seed: str | None,
    settings: Sequence[Setting],
    start_methods: Sequence[str] = (),
    root: Path | None = None,
    one: Surroundings = USUAL,
) -> tuple[dict[str, Any] | None, str]:
    """Run `harness.drivers.block_names`: its answer (None: it died), and what it said on stderr. Without `root` each
    setting gets a fresh one."""
    setups = [_setup(context, setting, root or context.root_dir) for setting in settings]
    order = _order(context, whole, root is None, setups) | {"start_methods": start_methods, "preload": one.preload}
    environment = {**_environment(context, path, seed), **one.env}
    command = [*one.prefix, *module_command(path, "harness.drivers.block_names")]
    cwd = folder(one, context.run_dir)
    if cwd is not None:
        order["searched_last"] = [os.getcwd()]  # where the tier's module may be; it hides no other module
    try:
        done = subprocess.run(
            command,
            input=json.dumps(order) + "\n",
            env=environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS_MAX,
        )
    except subprocess.TimeoutExpired as error:
        raise WorkerFailed(f"a process that derives names said nothing for {PROBE_SECONDS_MAX:g} s", True) from error
    lines = done.stdout.strip().splitlines()
    return (json.loads(lines[-1]) if lines and not done.returncode else None), done.stderr


def _order(context: Context, whole: bool, fresh_roots: bool, setups: list[dict[str, Any]]) -> dict[str, Any]:
    order = {"tier": context.options.tier, "whole": whole, "fresh_roots": fresh_roots, "setups": setups}
    return {**order, "start_methods": (), "preload": (), "searched_last": (), "rendezvous": False}


def _setup(context: Context, setting: Setting, root: Path) -> dict[str, Any]:
    small = {"slots": 2, "n_read_threads": 1, "n_write_threads": 1}
    setup = context.setup(0, root_dir=str(root), hash_algorithm=setting.algorithm, seed_policy=setting.policy, **small)
    return setup.to_json()


def _environment(context: Context, path: str, seed: str | None) -> dict[str, str]:
    environment = {**os.environ, "PYTHONPATH": python_path(path, context.run_dir)}
    environment.pop("PYTHONHASHSEED", None)
    return environment if seed is None else {**environment, "PYTHONHASHSEED": seed}


# --- pairs: a second process opens the root of a first one ---


def _pairs(context: Context, plan: Plan) -> None:
    pairs = list(enumerate(_chosen_pairs(plan.settings)))
    with _pool() as pool:
        for (_, (first, second)), detail in zip(pairs, pool.map(lambda pair: _try(context, *pair), pairs), strict=True):
            context.note(time.monotonic(), notes.Pair(first=str(first), second=str(second), **detail))


def _try(context: Context, number: int, pair: tuple[Setting, Setting]) -> dict[str, Any]:
    """One process after the other on one root: what became of the second, as the checker wants it."""
    root = context.root_dir / f"pair-{number}"
    root.mkdir()
    one, two = (_probe(context, context.python, True, s.seed, [s], root=root) for s in pair)
    shutil.rmtree(root)
    return _detail(pair, one, two)


def _detail(
    pair: tuple[Setting, Setting], one: tuple[dict[str, Any] | None, str], two: tuple[dict[str, Any] | None, str]
) -> dict[str, Any]:
    """What became of the second process of a pair, from the answers of both."""
    (first, second), (_, said_first), (answer, said) = pair, one, two
    results = [one["answers"]["fresh"][0] if one else {"status": "refused", "why": ""} for one, _ in (one, two)]
    return {
        "shares": first.family == second.family != PRIVATE and first.algorithm == second.algorithm,
        "status": results[1]["status"],
        "why": results[1]["why"] or ("" if answer else f"it died: {said[-300:]}"),
        "said": " ".join(line for line in said.splitlines() if _TELLS.search(line) and line not in said_first),
        "same_names": "names" in results[0] and results[0]["names"] == results[1].get("names"),
    }


def _seeded(plan: Plan, seeds: Sequence[str]) -> list[Setting]:
    """Settings that differ in their seed alone; none where the tier refuses seeds."""
    here = set(plan.settings)
    return [found for seed in seeds if (found := Setting(seed, plan.settings[0].algorithm, "fixed")) in here]


def _races(context: Context, plan: Plan) -> None:
    """Processes of different seeds open fresh roots together, one root after the other; then each opens each again."""
    settings = _seeded(plan, SEEDS_OF_RACES)
    roots = [context.root_dir / f"race-{number}" for number in range(RACES)]
    if len(settings) < 2:
        return
    for root in roots:
        root.mkdir()
    with ExitStack() as stack:
        processes = [_racer(context, setting, [*roots, *roots]) for setting in settings]
        for process in processes:
            stack.callback(process.wait)
            stack.callback(process.kill)
        if not all(process.stdout and process.stdout.readline() for process in processes):  # each says when it is ready
            context.note(time.monotonic(), notes.Skipped(), "no race for a root: a process that derives names died")
            return
        began = time.monotonic() + RACE_SECONDS
        moments = json.dumps([began + number * RACE_SECONDS for number in range(2 * RACES)]) + "\n"
        with ThreadPoolExecutor(len(processes)) as pool:  # all hear the moments before the first
            ended = list(pool.map(lambda process: process.communicate(moments, PROBE_SECONDS_MAX), processes))
    said = [[line for line in err.splitlines() if _TELLS.search(line)] for _, err in ended]
    answers = [json.loads(out.strip().splitlines()[-1])["answers"]["fresh"] if out.strip() else [] for out, _ in ended]
    for number in range(2 * RACES):
        them = [
            {"setting": str(setting), "status": mine[number]["status"], "digest": mine[number].get("digest", "")}
            for setting, mine in zip(settings, answers, strict=True)
            if len(mine) > number
        ]
        about = notes.Race(root=number % RACES, again=number >= RACES, answers=them, warned=any(said))
        context.note(time.monotonic(), about)
    for root in roots:
        shutil.rmtree(root)


def _racer(context: Context, setting: Setting, roots: Sequence[Path]) -> subprocess.Popen[str]:
    """A process that will open these roots, each at its moment, once it is given the moments."""
    setups = [_setup(context, setting, root) for root in roots]
    process = subprocess.Popen(
        module_command(context.python, "harness.drivers.block_names"),
        env=_environment(context, context.python, setting.seed),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps({**_order(context, True, False, setups), "rendezvous": True}) + "\n")
    process.stdin.flush()
    return process


@contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    """As many probes at a time as there are processors; what has not begun is dropped on the way out."""
    pool = ThreadPoolExecutor(os.cpu_count() or 1)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _chosen_pairs(settings: Sequence[Setting]) -> Iterator[tuple[Setting, Setting]]:
    """Two seeds, a seed and none, none twice, two policies, two algorithms, and twice what never shares."""
    here = set(settings)
    a = settings[0].algorithm
    other = next((s.algorithm for s in settings if s.algorithm != a), a)
    xx = next((s.algorithm for s in settings if s.algorithm.startswith("xxhash")), a)
    wanted = [
        (Setting("0", a, "fixed"), Setting("1", a, "fixed")),
        (Setting(None, a, "fixed"), Setting("0", a, "fixed")),
        (Setting(None, a, "fixed"), Setting(None, a, "fixed")),
        (Setting("0", a, "env"), Setting("0", a, "random")),
        (Setting("0", a, "fixed"), Setting("0", other, "fixed")),
        (Setting(None, xx, "fixed"), Setting(None, xx, "fixed")),
        (Setting(None, a, "random"), Setting(None, a, "random")),
    ]
    yield from dict.fromkeys(pair for pair in wanted if here.issuperset(pair))


# --- the opposite: what must not follow from a seed ---


def _unique(context: Context) -> None:
    """Processes that seed alike, again before each round, store the same blocks at one moment."""
    options: DeterminismOptions = context.options
    group = WorkerGroup(context, application_seed=APPLICATION_SEED)
    group.start(range(options.processes))
    logs = {p: context.run_dir / f"created-{p}.strace" for p in group.members}
    began, number = time.monotonic(), 0
    with ExitStack() as stack:
        try:
            for process, child in group.members.items():
                stack.enter_context(Attached(child.pid, calls=_CREATING, log=logs[process]))
        except (FaultUnavailable, ProcessLookupError) as reason:  # the latter: a process ended by itself
            context.note(time.monotonic(), notes.Skipped(), f"temp names are not looked at: {reason}")
        while number < ROUNDS_MIN or time.monotonic() - began < options.seconds:
            chain = group.chain(ROUND_BLOCKS)
            store = {"store": [chain], "application_seed": APPLICATION_SEED}
            for what, together in ((store, True), ({"find": [chain]}, False)):
                group.do(dict.fromkeys(group.alive(), what), together)
            number += 1
    for process, log in logs.items():
        names = _created(log, context.root_dir) if log.exists() else []
        context.note(time.monotonic(), notes.Created(process=process, names=names[:CREATED_MAX]))
    group.end(group.alive())


def _created(log: Path, root: Path) -> list[str]:
    """Files under the root that strace saw a process make, or try to."""
    paths = _CREATED.findall(log.read_text(errors="replace"))
    return list(dict.fromkeys(os.path.relpath(path, root) for path in paths if path.startswith(f"{root}/")))


SCENARIO = Scenario(
    name="determinism",
    text=__doc__ or "",
    options=DeterminismOptions,
    checkers=("seed_settings", "determinism", "integrity", "results", "leftovers"),
    prepare=prepare,
    run=run,
    needs=lambda options, plan: common_needs(options, root_blocks=ROUNDS_MIN * ROUND_BLOCKS),
    short={"seconds": 0.5, "python": (sys.executable,)},
)
