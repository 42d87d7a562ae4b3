"""Rules of the layout in docs/structures.md: imports between modules, imports of other packages, sizes of files."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from functools import cache
from pathlib import Path

import pytest

import kvtier

ROOT = Path(__file__).parents[2]
LINES_MAX = 500
CODE_LINES_MAX = {"kvtier": 5_800, "core": 3_260}
"""Lines of code without blank ones, comments and docstrings: of all Python modules, and of those that are no edge."""

# Packages that kvtier may import besides the standard library -> the modules that may import them.
THIRD_PARTY = {
    "cbor2": {"hashing"},
    "xxhash": {"hashing", "fs/block_io", "fs/trailer", "fs/native"},
    "torch": {"cpu/gpu_worker"},
    "prometheus_client": {"telemetry/prometheus"},
    "rich": {"ops/cli"},
    "opentelemetry": {"telemetry/otel"},
    "google": {"telemetry/otel"},  # protobuf, which opentelemetry's OTLP exporter requires
    "vllm": {"vllm_plugin"},
    "click": {"ops/cli"},
}
KVTIER_IMPORTERS_IN_HARNESS = {"adapters/kvtier", "adapters/kvtier_names", "adapters/kvtier_watch", "monitoring/audit"}
KVTIER_IMPORTERS_IN_HARNESS |= {"entry_point"}  # both commands share exit codes and the handler of exceptions; no tier
KVTIER_IMPORTERS_IN_HARNESS |= {"explore/pool_queue"}  # the schedule of the pool's threads, which has no adapter
KVTIER_IMPORTERS_IN_HARNESS |= {"core/inputs"}  # both commands parse sizes alike


@cache
def modules(package: str) -> dict[str, ast.Module]:
    """Module name ("adapters/base") -> its syntax tree. `__init__.py` has the name of its folder."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        name = path.relative_to(ROOT / package).with_suffix("").as_posix()
        name = name.removesuffix("/__init__")
        found[name] = ast.parse(path.read_text(), str(path))
    return found


def imports(package: str, name: str) -> set[str]:
    """Dotted names of the imports of a module, also of those inside functions."""
    found: set[str] = set()
    for node in ast.walk(modules(package)[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{package}/{name}.py, line {node.lineno}: a relative import"
            base = node.module or ""
            # `from package import module` names a module, `from package.module import Name` does not.
            below = {f"{base}.{alias.name}" for alias in node.names}
            found |= {one for one in below if _module_name(package, one) in modules(package)} or {base}
    return found


def _module_name(package: str, dotted: str) -> str:
    return dotted.removeprefix(package + ".").replace(".", "/") if dotted.startswith(package + ".") else ""


def inner_imports(package: str, name: str) -> set[str]:
    return {_module_name(package, dotted) for dotted in imports(package, name)} - {""}


@cache
def rows(package: str) -> list[tuple[int, set[str]]]:
    """The floors table: (floor, modules of one row) from top to bottom. A folder means all modules in it."""
    text = (ROOT / "docs/structures.md").read_text()
    section = text.split(f"## {package}/")[1].split("\n## ")[0]
    floor, found = -1, []
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|") or cells[0] in ("floor", "---"):
            continue
        if cells[0]:
            floor = int(cells[0].split()[0])
        found.append(
            (
                floor,
                {n.removesuffix(".py").removesuffix(".c").rstrip("/") for n in re.findall(r"`([\w/.]+)`", cells[1])},
            )
        )
    assert found, f"no floors table for {package}/ in docs/structures.md"
    return found


def row_of(package: str, name: str) -> int | None:
    for index, (_, names) in enumerate(rows(package)):
        if name in names or name.split("/")[0] in names:
            return index
    return None


FOLDERS = {"cpu", "fs", "ops", "telemetry"}
"""Folders of kvtier whose `__init__.py` has a docstring and no code."""


CASES = [
    pytest.param(package, name, id=f"{package}/{name}")
    for package in ("kvtier", "harness")
    for name in modules(package)
]


@pytest.mark.parametrize(("package", "name"), CASES)
def test_a_module_has_a_floor_and_imports_only_from_rows_above_it(package: str, name: str) -> None:
    if name in ("__init__", "__main__") or (package == "kvtier" and name in FOLDERS):
        return
    row = row_of(package, name)
    assert row is not None, f"{package}/{name}.py has no row in the floors table of docs/structures.md"
    for target in sorted(inner_imports(package, name) - {name, "__init__"}):
        target_row = row_of(package, target)
        assert target_row is not None, f"{package}/{name}.py imports {target}, which has no row in docs/structures.md"
        assert target_row <= row, f"{package}/{name}.py imports {target}, which is below it in docs/structures.md"


EDGES = {"ops", "telemetry", "factory", "vllm_plugin", "vllm_interface"}
CORE = {name for name in modules("kvtier") if name.split("/")[0] not in EDGES | {"__init__", "__main__"}}
"""Of kvtier: what works without operations, telemetry and vLLM."""


@pytest.mark.parametrize("name", sorted(CORE))
def test_the_core_imports_no_edge(name: str) -> None:
    edges = sorted(target for target in inner_imports("kvtier", name) if target.split("/")[0] in EDGES)
    assert not edges, f"kvtier/{name}.py imports {', '.join(edges)}: inject it from kvtier/factory.py"


@pytest.mark.parametrize("package", ["kvtier", "harness"])
def test_there_is_no_import_cycle(package: str) -> None:
    graph = {name: inner_imports(package, name) & set(modules(package)) for name in modules(package)}
    finished: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"{package}: " + " -> ".join([*path[path.index(name) :], name])
        if name not in finished:
            for target in sorted(graph[name]):
                visit(target, (*path, name))
            finished.add(name)

    graph["__init__"] = set()  # its public names are loaded on demand
    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("name", modules("kvtier"))
def test_a_module_of_kvtier_imports_only_the_packages_listed_for_it(name: str) -> None:
    tops = {dotted.split(".")[0] for dotted in imports("kvtier", name)}
    for top in sorted(tops - sys.stdlib_module_names - {"kvtier"}):
        assert name in THIRD_PARTY.get(top, set()), f"kvtier/{name}.py imports {top}"


@pytest.mark.parametrize("name", modules("harness"))
def test_only_listed_modules_of_the_harness_import_kvtier_and_only_public_names(name: str) -> None:
    tops = {dotted.split(".")[0] for dotted in imports("harness", name)}
    # A mutant is kvtier with one defect, which may be anywhere in it.
    allowed = name in KVTIER_IMPORTERS_IN_HARNESS or name.startswith("mutants/")
    assert "kvtier" not in tops or allowed, f"harness/{name}.py imports kvtier"
    inside = {dotted for dotted in imports("harness", name) if dotted.startswith("kvtier.")}
    exempt = name == "entry_point" or name.startswith(
        "mutants/"
    )  # the exception handler of both commands; defects in kvtier
    public = {f"kvtier.{public}" for public in kvtier.__all__}
    assert exempt or inside <= public, f"harness/{name}.py imports {sorted(inside - public)}: use kvtier's own names"


@pytest.mark.parametrize(("package", "name"), CASES)
def test_a_file_is_short_and_begins_with_a_docstring(package: str, name: str) -> None:
    tree = modules(package)[name]
    lines = source(package, name).count("\n")
    assert lines <= LINES_MAX, f"{package}/{name}.py has {lines} lines; {LINES_MAX} is the limit"
    assert not tree.body or ast.get_docstring(tree), f"{package}/{name}.py has no docstring"


def source(package: str, name: str) -> str:
    path = ROOT / package / f"{name}.py"
    return (path if path.exists() else ROOT / package / name / "__init__.py").read_text()


def code_lines(text: str) -> int:
    """Lines without blank ones, comments and docstrings."""
    documented: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            documented.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    layout = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    used: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in layout:
            used.update(range(token.start[0], token.end[0] + 1))
    return len(used - documented)


@pytest.mark.parametrize("part", CODE_LINES_MAX)
def test_kvtier_stays_compact(part: str) -> None:
    names = CORE if part == "core" else set(modules("kvtier"))
    lines, most = sum(code_lines(source("kvtier", name)) for name in names), CODE_LINES_MAX[part]
    assert lines <= most, f"{part}: {lines} lines of code; {most} is the limit: remove some, or raise it with a reason"


def test_code_lines_are_counted_without_comments_and_docstrings() -> None:
    text = '"""Doc.\n\nstring."""\n\n# comment\nx = """a\nb"""  # two\n\n\ndef f():\n    """Doc."""\n    return x\n'
    assert code_lines(text) == 4


def test_importing_kvtier_and_its_tier_imports_no_optional_package() -> None:
    code = (
        "import sys, kvtier; kvtier.FileSystemTierManager, kvtier.TieringOffloadingManager\n"
        "print(*({name.split('.')[0] for name in sys.modules}))"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not {"torch", "numpy", "prometheus_client", "opentelemetry", "click", "harness"} & set(out.split())


def test_every_public_name_resolves() -> None:
    import kvtier

    for name in kvtier.__all__:
        assert getattr(kvtier, name) is not None
    assert set(kvtier.__all__) == {*kvtier._MODULE_OF, "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'; it has BlockFile"):
        _ = kvtier.Nonsense
