"""A run's report: `report.html`, one self-contained page that opens offline, made from what the run folder holds."""

from harness.report.compare import compare, write_comparison
from harness.report.index import write_index
from harness.report.page import write_report

__all__ = ["compare", "write_comparison", "write_index", "write_report"]
