"""`python -m kvtier` is `kvtier`."""

from kvtier.entry import KVTIER

main = KVTIER.start

if __name__ == "__main__":
    main()
