"""`python -m harness` is `kvtier-harness`."""

from harness.entry_point import HARNESS

main = HARNESS.start

if __name__ == "__main__":
    main()
