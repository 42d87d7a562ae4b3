"""What every part of the harness knows: records, contents, traffic, seeds, the machine, input checks."""
