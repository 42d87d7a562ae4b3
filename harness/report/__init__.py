"""A run's report, two runs compared, and the list of runs: HTML pages, each one file that opens offline."""

from harness.report.compare import compare, write_comparison
from harness.report.index import write_index
from harness.report.page import write_report

__all__ = ["compare", "write_comparison", "write_index", "write_report"]
