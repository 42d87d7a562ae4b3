"""`python -m kvtier` is `kvtier`."""

from kvtier.exit_codes import KVTIER

main = KVTIER.start

if __name__ == "__main__":
    main()
