"""A system on one machine: the embedded Redis, and the processes that are kept running."""
