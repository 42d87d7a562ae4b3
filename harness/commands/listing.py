"""The command `list`: scenarios, tiers and mutants, for a person or as JSON."""

from __future__ import annotations

import json

import click
from rich.console import Console
from rich.markup import escape

from harness.adapters import mutants as known_mutants
from harness.runner import known_tiers
from harness.scenarios import scenarios


@click.command(name="list")
@click.option("--json", "as_json", is_flag=True, help="print the same as JSON")
def list_all(as_json: bool) -> None:
    """List scenarios, tiers, and what each scenario proves."""
    tiers, defects = known_tiers(), {name: mutant.defect for name, mutant in known_mutants().items()}
    if as_json:
        listed = [
            {"name": s.name, "title": s.title, "checkers": s.checkers, "proves": " ".join(s.proves.split())}
            for s in scenarios()
        ]
        print(json.dumps({"scenarios": listed, "tiers": tiers, "mutants": defects}, indent=1))
        return
    console = Console(highlight=False)
    console.print("[bold]scenarios[/]")
    for item in scenarios():
        console.print(f"  [bold]{item.name}[/]: {escape(item.title)}", soft_wrap=True)
        console.print(escape("\n".join(f"    {line}".rstrip() for line in item.proves.splitlines())), soft_wrap=True)
        console.print(f"    Verdicts: {', '.join(item.checkers)}.\n", soft_wrap=True)
    console.print("[bold]tiers[/]")
    width = max(map(len, [*tiers, "module:Class"]))
    for name, what in {**tiers, "module:Class": "any Adapter of your own"}.items():
        console.print(f"  [bold]{name:<{width}}[/]  {escape(what)}", soft_wrap=True)
    console.print("\n[bold]mutants[/], tiers with a known defect, for --tier (docs/mutants.md)")
    width = max(map(len, defects))
    for name, what in defects.items():
        console.print(f"  [bold]{name:<{width}}[/]  {escape(what)}", soft_wrap=True)
