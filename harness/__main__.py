"""`python -m harness` is `kvtier-harness`."""

from harness.cli import main

main()
