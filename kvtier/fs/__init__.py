"""The file tier: blocks in files below one root directory that any number of processes share."""
