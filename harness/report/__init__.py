"""A run's report, two runs compared, and the list of runs: HTML pages, each one file that opens offline."""
