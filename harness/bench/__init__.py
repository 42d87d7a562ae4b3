"""How fast tiers are: measured side by side in one run, and judged by ratios; `python -m harness.bench` is its door."""
