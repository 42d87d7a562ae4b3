"""Findings: one suite of cases on tiers of other projects, their recorded results, and the pages made from them."""
