"""Benchmarks: tiers measured side by side in one run and judged by ratios; the group `bench` of the command line."""
