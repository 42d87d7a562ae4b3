"""A run's report: `report.html`, one self-contained page that opens offline, made from what the run folder holds."""

from harness.report.page import write_report

__all__ = ["write_report"]
