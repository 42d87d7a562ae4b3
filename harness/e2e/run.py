"""The command `e2e-vllm`: real vLLM engines on one root, pass by pass, with a comparison of every generation.

Starts engines, compares token ids with those of a pass that computes everything, and reads the engines' own /metrics to
see where cached tokens came from. Prints a table; exit code 0: all judged passes pass, 1: some fail, 2: no engine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from harness.core import seeds
from harness.core.installation import ROOT as REPOSITORY
from harness.e2e.process import EngineFailed, EngineProcess

PYTHON_VARIABLE = "HARNESS_ENGINE_PYTHON"
VERSIONS = ("0.32.0", "0.33.0")
TOKENS_PER_BLOCK = 32
PROMPT_BLOCKS = 32
PROMPT_TOKENS = TOKENS_PER_BLOCK * PROMPT_BLOCKS + 1  # the last token is always computed
PROMPTS = 4
LOAD_PROMPTS = 24
NEW_TOKENS = 16
STEP_PROMPT = [[5, 6, 7]]
"""Less than a block, so never cached. It makes an engine step: deferred stores are submitted, finished jobs reaped."""
IDLE_STEPS = 8
"""Steps after which an idle engine has stored a few blocks."""
STORED_SECONDS_MAX = 60.0
DAMAGED_BLOCK = 10
KVTIER = {"type": "KvtierFileSystemTier", "module_path": "kvtier.vllm_plugin"}
BUILT_IN = {"type": "fs"}

Prompts = list[list[int]]


@dataclass
class Pass:
    """One row: expected and measured figures of an engine. Tokens are summed over the prompts."""

    what: str
    engine: str
    cached: int
    cached_expected: int | None  # None: not judged
    from_files: int
    from_files_expected: int | None
    seconds: float
    equal: bool
    judged: bool = True
    note: str = ""

    @property
    def ok(self) -> bool:
        counts = self.cached_expected in (None, self.cached), self.from_files_expected in (None, self.from_files)
        return not self.judged or (self.equal and all(counts))


@dataclass
class Trial:
    """Results of one version of vLLM."""

    vllm: str
    passes: list[Pass] = field(default_factory=list)
    checks: dict[str, bool] = field(default_factory=dict)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)  # engine -> its kvtier_* and cache counters
    error: str = ""

    @property
    def ok(self) -> bool:
        return not self.error and all(p.ok for p in self.passes) and all(self.checks.values())


class Engines:
    """The engines of one trial, all on one root, with their reference generations."""

    def __init__(self, python: Path, overlay: Path | None, folder: Path, seed: int, trial: Trial) -> None:
        self._python, self._overlay, self._folder, self._seed, self.trial = python, overlay, folder, seed, trial
        self.root = folder / "root"
        self.root.mkdir()
        self.right: dict[str, list[list[int]]] = {}  # name of a set of prompts -> the generations
        self._running: list[EngineProcess] = []

    def start(self, name: str, tier: dict[str, Any], **environment: str) -> EngineProcess:
        engine_id = f"{os.path.basename(self._folder)}-{name}".replace(" ", "-")
        options = {
            "model": str(self._folder / "model"),
            "tokens_per_block": TOKENS_PER_BLOCK,
            "max_model_len": PROMPT_TOKENS + TOKENS_PER_BLOCK,
            "gpu_blocks": 2 * PROMPTS * PROMPT_BLOCKS + 64,
            "cpu_bytes": 64 << 20,
            "engine_id": engine_id,
            "tier": {**tier, "root_dir": str(self.root.absolute())},
        }
        log = self._folder / f"{name}.log"
        engine = EngineProcess(name, self._python, self._overlay, options, log, environment)
        self._running.append(engine)
        return engine

    def stop(self) -> None:
        for engine in self._running:
            engine.stop()

    def prompts(self, name: str, count: int = PROMPTS) -> Prompts:
        draw = seeds.stream(self._seed, "prompts", name)
        return [[draw.randrange(3, 1000) for _ in range(PROMPT_TOKENS)] for _ in range(count)]

    def reference(self, engine: EngineProcess, name: str, prompts: Prompts) -> None:
        """The reference generations: computed in full, under a separate salt."""
        answer = engine.request("generate", prompts=prompts, max_tokens=NEW_TOKENS, salt="reference " + name)
        assert not any(answer["cached"]), f"the reference of {name} was not computed: {answer['cached']}"
        self.right[name] = answer["tokens"]

    def run_pass(self, what: str, engine: EngineProcess, name: str, prompts: Prompts, **expected: Any) -> Pass:
        engine.send("generate", prompts=prompts, max_tokens=NEW_TOKENS)
        return self.record(what, engine, name, engine.answer(), **expected)

    def record(
        self,
        what: str,
        engine: EngineProcess,
        name: str,
        answer: dict[str, Any],
        *,
        cached: int | None = None,
        from_files: int | None = None,
        judged: bool = True,
        note: str = "",
    ) -> Pass:
        row = Pass(
            what,
            engine.name,
            sum(answer["cached"]),
            cached,
            self._newly_from_files(engine),
            from_files,
            answer["seconds"],
            answer["tokens"] == self.right[name],
            judged,
            note,
        )
        self.trial.passes.append(row)
        return row

    def _newly_from_files(self, engine: EngineProcess) -> int:
        """Tokens that came from disk by the engine's metrics since the last call."""
        self.run_step(engine)  # the process that serves /metrics receives a step's figures when the next one ends
        metrics: dict[str, float] = engine.request("metrics")
        disk = sum(v for k, v in metrics.items() if k.startswith(_BY_SOURCE) and "source=disk" in k)
        seen = self.trial.metrics.setdefault(engine.name, {})
        before = seen.get("tokens_from_files", 0.0)
        seen.update({name: value for name, value in metrics.items() if name.startswith(("kvtier_", *_SHOWN))})
        seen["tokens_from_files"] = disk
        return round(disk - before)

    def run_step(self, engine: EngineProcess) -> None:
        engine.request("generate", prompts=STEP_PROMPT, max_tokens=2)

    def await_stored(self, engines: Sequence[EngineProcess], blocks: int) -> None:
        """Run steps until `blocks` files exist."""
        deadline = time.monotonic() + STORED_SECONDS_MAX
        while (there := len(self.files())) < blocks:
            if time.monotonic() > deadline:
                raise EngineFailed(f"{there} of {blocks} blocks are stored after {STORED_SECONDS_MAX:.0f} s")
            for engine in engines:
                self.run_step(engine)

    def reset_caches(self, engine: EngineProcess, files_only: bool = True) -> None:
        """Empty the engine's caches, except the files; without `files_only` also except the CPU tier."""
        self.run_step(engine)
        if not engine.request("reset", cpu_tier=files_only):
            raise EngineFailed(f"engine {engine.name} does not reset its caches")
        self.run_step(engine)

    def files(self) -> dict[str, Path]:
        """Block hash -> file."""
        return {path.stem: path for path in self.root.glob("*_r*/*/*/*.bin")}


_BY_SOURCE = "vllm:prompt_tokens_cached_by_source_total"
_SHOWN = (_BY_SOURCE, "vllm:external_prefix_cache", "vllm:kv_offload_tiering")


def run_passes(engines: Engines) -> None:
    """The passes, in order. Three engines: `a` and `b` with kvtier, `v` with vLLM's own tier."""
    full = PROMPTS * PROMPT_BLOCKS * TOKENS_PER_BLOCK
    blocks = PROMPTS * PROMPT_BLOCKS
    a = engines.start("a (kvtier)", KVTIER)
    engines.trial.vllm = a.up()
    b = engines.start("b (kvtier)", KVTIER)
    p, q = engines.prompts("p"), engines.prompts("q")

    # One engine: compute, then from its caches, then from files alone.
    engines.reference(a, "p", p)
    engines.run_pass("1 cold", a, "p", p, cached=0, from_files=0)
    engines.await_stored([a], 2 * blocks)  # with those of the reference
    engines.run_pass("2 from the GPU cache", a, "p", p, cached=full, from_files=0)
    engines.reset_caches(a, files_only=False)
    engines.run_pass("2 from the CPU tier", a, "p", p, cached=full, from_files=0)
    engines.reset_caches(a)
    engines.run_pass("3 from files, caches reset", a, "p", p, cached=full, from_files=full)

    # Other engines, started later.
    b.up()
    engines.run_pass("4 from files, a second engine", b, "p", p, cached=full, from_files=full)
    v = engines.start("v (vLLM's fs)", BUILT_IN)
    stranger = engines.start("stranger", KVTIER, PYTHONHASHSEED="1")
    v.up()
    engines.run_pass("5 kvtier wrote, vLLM's tier reads", v, "p", p, cached=full, from_files=full)
    engines.reference(v, "q", q)
    engines.run_pass("6 cold, vLLM's tier writes", v, "q", q, cached=0, from_files=0)
    engines.await_stored([v], 4 * blocks)
    engines.run_pass("7 vLLM's tier wrote, kvtier reads", b, "q", q, cached=full, from_files=full)

    at_once(engines, a, b)
    damage(engines, b, "p", p, judged=True)
    damage(engines, v, "q", q, judged=False)
    killed(engines, a, b, v)
    check_metrics(engines)
    refused(engines, stranger, p)


def refused(engines: Engines, stranger: EngineProcess, prompts: Prompts) -> None:
    """An engine that derives other names fails at its first request with a reason."""
    stranger.up()
    try:
        stranger.request("generate", prompts=prompts[:1], max_tokens=1)
        reported = False
    except EngineFailed:
        reported = (
            "nothing would be shared, since equal tokens get other file names here" in stranger.log_path.read_text()
        )
    engines.trial.checks["an engine with another seed is refused at its first request, with a reason"] = reported


def at_once(engines: Engines, a: EngineProcess, b: EngineProcess) -> None:
    """Two engines compute and store the same prompts at the same time; then both find all of them."""
    both, full = engines.prompts("both"), PROMPTS * PROMPT_BLOCKS * TOKENS_PER_BLOCK
    engines.reference(b, "both", both)
    before = len(engines.files())
    for engine in (a, b):
        engine.send("generate", prompts=both, max_tokens=NEW_TOKENS)
    for engine in (a, b):
        engines.record("8 two at once, same prompts", engine, "both", engine.answer())
    engines.await_stored([a, b], before + PROMPTS * PROMPT_BLOCKS)
    for engine in (a, b):
        engines.reset_caches(engine)
    for engine in (a, b):
        engine.send("generate", prompts=both, max_tokens=NEW_TOKENS)
    for engine in (a, b):
        answer = engine.answer()
        engines.record("9 both again, from files", engine, "both", answer, cached=full, from_files=full)


def damage(engines: Engines, engine: EngineProcess, name: str, prompts: Prompts, judged: bool) -> None:
    """Damage one block of three prompts, each by another kind, while the engine runs."""
    whole = PROMPT_BLOCKS * TOKENS_PER_BLOCK
    hashes = engine.request("block_hashes", prompts=prompts)
    files = engines.files()
    for index, kind in enumerate(("corrupt", "truncated", "deleted")):
        path = files[hashes[index][DAMAGED_BLOCK]]
        _damage(path, kind)
        engines.reset_caches(engine)
        one, ask = f"{name} {index}", [prompts[index]]
        engines.right[one] = [engines.right[name][index]]
        # Blocks before the damaged one are found, the rest computed; a tier that does not detect it serves all of it.
        before = DAMAGED_BLOCK * TOKENS_PER_BLOCK if judged else None
        what = f"10 {kind} block {DAMAGED_BLOCK} of {PROMPT_BLOCKS}"
        row = engines.run_pass(what, engine, one, ask, cached=before, from_files=before, judged=judged)
        row.note = "" if row.equal else "tokens differ"
        # What was recomputed is stored again, and then found.
        if judged:
            engines.await_stored([engine], len(files))
        else:
            for _ in range(IDLE_STEPS):
                engines.run_step(engine)
        engines.reset_caches(engine)
        after = whole if judged else None
        row = engines.run_pass(f"11 {kind}: once more", engine, one, ask, cached=after, from_files=after, judged=judged)
        row.note = "" if row.equal else "tokens differ"


def _damage(path: Path, kind: str) -> None:
    if kind == "deleted":
        path.unlink()
        return
    data = path.read_bytes()
    with open(path, "r+b") as file:  # in place, as by a failing disk
        if kind == "truncated":
            file.truncate(len(data) // 2)
        else:
            file.write(bytes(byte ^ 0x40 for byte in data[: len(data) // 2]))


def killed(engines: Engines, a: EngineProcess, b: EngineProcess, v: EngineProcess) -> None:
    """One engine dies by SIGKILL while it computes and stores; the other continues with the stored blocks."""
    load = engines.prompts("load", LOAD_PROMPTS)
    engines.reference(v, "load", load)
    before = set(engines.files())
    hashes = {block_hash for chain in b.request("block_hashes", prompts=load) for block_hash in chain}
    a.send("generate", prompts=load, max_tokens=NEW_TOKENS)
    deadline = time.monotonic() + STORED_SECONDS_MAX
    while not (stored := hashes & (set(engines.files()) - before)):  # it dies in the middle of storing
        if time.monotonic() > deadline:
            raise EngineFailed("engine a stores nothing under load")
        time.sleep(0.002)
    a.kill()
    stored = hashes & set(engines.files())
    engines.trial.checks["the kill came in the middle: some blocks stored, some not"] = 0 < len(stored) < len(hashes)
    note = f"{len(stored)} of {len(hashes)} blocks were stored"
    engines.run_pass("12 the other engine, after SIGKILL", b, "load", load, note=note)
    engines.await_stored([b], len(before | hashes))
    engines.reset_caches(b)
    full = LOAD_PROMPTS * PROMPT_BLOCKS * TOKENS_PER_BLOCK
    engines.run_pass("13 and all of it from files", b, "load", load, cached=full, from_files=full)


def check_metrics(engines: Engines) -> None:
    """kvtier's metrics are in the engines' own /metrics and match the passes."""
    of_b = engines.trial.metrics["b (kvtier)"]

    def total(name: str, *labels: str) -> float:
        return sum(v for k, v in of_b.items() if k.startswith(name + "{") and all(label in k for label in labels))

    checks = engines.trial.checks
    checks["/metrics of b: blocks that another engine wrote"] = total("kvtier_cross_process_hit_blocks_total") > 0
    checks["/metrics of b: blocks of vLLM's tier, unverified"] = total("kvtier_unverified_blocks_total") > 0
    for reason in ("checksum", "size"):
        corrupt = total("kvtier_corrupt_blocks_total", f"reason={reason},")
        aside = total("kvtier_quarantined_blocks_total", "outcome=moved", f"reason={reason},")
        checks[f"/metrics of b: one block of a wrong {reason}, quarantined"] = corrupt == aside == 1
    checks["/metrics of b: gauges of the queues"] = any(k.startswith("kvtier_queue_tasks{") for k in of_b)
    checks["no temporary file is left, also by the killed engine"] = not list(engines.root.rglob("*.tmp"))


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """A folder for roots, model and logs: `keep`, or a temporary one."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
        return
    path = Path(tempfile.mkdtemp(prefix="kvtier-e2e-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def make_model(python: Path, folder: Path, seed: int) -> None:
    """Tiny, and the same for the same seed; made by the engines' Python, which has torch."""
    code = "import sys; from harness.e2e.vllm_engine import make_model; make_model(sys.argv[1], int(sys.argv[2]))"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run([str(python), "-c", code, str(folder), str(seed)], env=environment, check=True)


def _run_version(version: str, python: Path, folder: Path, seed: int) -> Trial:
    trial = Trial(version)
    overlay = None if version == VERSIONS[0] else python.parent.parent / f"vllm-{version}"
    with ExitStack() as stack:
        engines = Engines(python, overlay, folder, seed, trial)
        stack.callback(engines.stop)
        try:
            run_passes(engines)
        except EngineFailed as error:
            trial.error = str(error)
    if not trial.error and trial.vllm != version:
        trial.error = f"the engine is vLLM {trial.vllm}, not {version}"
    return trial


def _table(trial: Trial) -> Table:
    table = Table(title=f"vLLM {trial.vllm}", title_justify="left")
    for name in ("pass", "engine", "tokens cached", "from files", "seconds", "generations equal", ""):
        table.add_column(name, justify="right" if name in ("tokens cached", "from files", "seconds") else "left")
    for row in trial.passes:
        verdict = "[green]pass[/]" if row.ok else "[red]FAIL[/]"
        table.add_row(
            row.what,
            row.engine,
            _count(row.cached, row.cached_expected),
            _count(row.from_files, row.from_files_expected),
            f"{row.seconds:.2f}",
            "yes" if row.equal else "[red]no[/]",
            " ".join(filter(None, (verdict if row.judged else "reported, not judged", row.note))),
        )
    return table


def _count(seen: int, expected: int | None) -> str:
    return f"{seen:,}" if expected in (None, seen) else f"[red]{seen:,}, not {expected:,}[/]"


@click.command()
@click.option("--python", "python_path", help="Python of the engines' venv (install.sh).")
@click.option("--version", "versions", multiple=True, type=click.Choice(VERSIONS), help="default: all")
@click.option("--seed", type=int, help="reproduces weights and prompts; default: a fresh one")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="also write all that was seen to this file")
@click.option("--folder", type=click.Path(path_type=Path), help="keep roots and logs here; default: removed at the end")
def main(
    python_path: str | None, versions: tuple[str, ...], seed: int | None, json_path: Path | None, folder: Path | None
) -> None:
    """Passes of real vLLM engines over one root; exit code 0 pass, 1 fail, 2 no engine to run."""
    console = Console(width=None if sys.stdout.isatty() else 150)
    python = Path(python_path or os.environ.get(PYTHON_VARIABLE) or REPOSITORY / ".venv-engine/bin/python").absolute()
    if not os.access(python, os.X_OK):
        console.print(f"inconclusive: no engine at {python}; make its venv with `make e2e-vllm`", style="bold yellow")
        sys.exit(2)
    seed = seeds.fresh_seed() if seed is None else seed
    console.print(f"seed {seed}")
    trials = []
    with _folder(folder) as base:
        for version in versions or VERSIONS:
            place = base / version
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            make_model(python, place / "model", seed)
            trial = _run_version(version, python, place, seed)
            trials.append(trial)
            console.print(_table(trial))
            for what, passed in trial.checks.items():
                console.print(f"  {'[green]pass[/]' if passed else '[red]FAIL[/]'} {what}")
            if trial.error:
                console.print(f"[red]{trial.error}", markup=True)
    if json_path is not None:
        result = {"seed": seed, "ok": all(trial.ok for trial in trials), "trials": [asdict(trial) for trial in trials]}
        json_path.write_text(json.dumps(result, indent=2))
    console.print("[green]pass[/]" if all(trial.ok for trial in trials) else "[red]FAIL[/]")
    sys.exit(0 if all(trial.ok for trial in trials) else 1)
