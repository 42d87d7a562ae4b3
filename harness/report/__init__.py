"""A run's report, two runs compared, and the list of runs: HTML pages, each one file that opens offline."""

from harness.report.comparison_page import write_comparison
from harness.report.index_page import write_index
from harness.report.run_page import write_report

__all__ = ["write_comparison", "write_index", "write_report"]
