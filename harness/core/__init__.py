"""The base of the harness: records, contents, traffic, seeds, the machine, input checks."""
