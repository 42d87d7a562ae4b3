"""The table of guarantees: each sentence stands in its source, each sentence of a contract in the table, each row has
rules, and each rule mutants."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from harness.checkers import CHECKERS, RULES
from harness.core.guarantees import ADAPTER, BASE, GUARANTEES, NO_PROMISE, README, VLLM, Guarantee
from harness.drivers.promises import PROMISES, title
from harness.report import guarantees_page

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
CONTRACTS = {
    BASE: {"LookupResult", "OffloadingEvent", "TransferJob", "JobResult", "SecondaryTierManager"},
    ADAPTER: {"Finished", "Eviction", "Adapter"},
}


def spoken(text: str) -> str:
    """Prose on one line, without comment signs."""
    return " ".join(re.sub(r"^\s*#", "", text, flags=re.MULTILINE).split())


def docstrings(source: str) -> list[str]:
    found = []
    for node in ast.parse((ROOT / source).read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name in CONTRACTS[source]:
            members = [node, *(one for one in node.body if isinstance(one, ast.FunctionDef))]
            found += [spoken(doc) for one in members if (doc := ast.get_docstring(one))]
    return found


@pytest.mark.parametrize("guarantee", [g for g in GUARANTEES if g.source != VLLM], ids=lambda g: g.promise)
def test_a_promise_stands_in_its_source(guarantee: Guarantee) -> None:
    assert guarantee.sentence in spoken((ROOT / guarantee.source).read_text()), guarantee.source


@pytest.mark.parametrize("guarantee", [g for g in GUARANTEES if g.source == VLLM], ids=lambda g: g.promise)
def test_a_promise_of_vllm_stands_in_its_interface(guarantee: Guarantee) -> None:
    found = sorted(ROOT.glob(f".venv-vllm/lib/python3*/site-packages/{VLLM}"))
    if not found:
        pytest.skip("vLLM is not installed here: make install-vllm")
    assert guarantee.sentence in spoken(found[0].read_text())


@pytest.mark.parametrize("source", CONTRACTS)
def test_each_sentence_of_a_contract_has_a_row_or_is_no_promise(source: str) -> None:
    known = [g.sentence for g in GUARANTEES if g.source == source] + list(NO_PROMISE[source])
    for doc in docstrings(source):
        rest = doc
        for sentence in sorted(known, key=len, reverse=True):
            rest = rest.replace(sentence, "")
        left = [part for part in re.split(r"(?<=[.;:])\s", rest.strip()) if re.search(r"\w", part)]
        assert not left, f"{source}: no row in harness/core/guarantees.py for: {left}"


def test_what_is_no_promise_stands_in_its_contract() -> None:
    for source, sentences in NO_PROMISE.items():
        text = " ".join(docstrings(source))
        assert [one for one in sentences if one not in text] == []


def test_each_guarantee_of_readme_has_a_row() -> None:
    table = (ROOT / README).read_text().split("\n## Guarantees\n")[1].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| **")]
    sentences = [g.sentence for g in GUARANTEES if g.source == README]
    assert rows
    assert [row for row in rows if not any(one in row for one in sentences)] == []


@pytest.mark.parametrize("guarantee", GUARANTEES, ids=lambda g: f"{g.source}: {g.promise}")
def test_each_row_has_rules_that_a_scenario_judges(guarantee: Guarantee) -> None:
    rules = guarantees_page.rules_of(guarantee)
    assert rules
    assert all(guarantees_page.judged_in(rule) for rule in rules)


@pytest.mark.parametrize("checker", CHECKERS)
def test_each_rule_has_a_mutant(checker: str) -> None:
    unbroken = [rule for rule in guarantees_page.unbroken() if rule.startswith(f"{checker}/")]
    if unbroken == ["floods/cut-off"] or (unbroken and checker == "interleavings"):
        pytest.xfail(f"no mutant names {', '.join(unbroken)}")
    assert unbroken == [], "no mutant breaks these rules"


def test_each_promise_of_the_contract_is_a_rule_in_the_same_words() -> None:
    stated = {rule.id: rule.text for rule in RULES.values() if rule.checker == "contract"}
    del stated["contract/ends"]
    assert stated == {f"contract/{p.__name__.replace('_', '-')}": f"{title(p)}." for p in PROMISES}
