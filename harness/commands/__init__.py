"""What the commands of `kvtier-harness` do and print."""
