"""What a worker can be told to do: one module per driver, each with `drive(worker, **arguments)`."""
