"""What `janitor doctor` checks: the API, the ledger, the Redis server."""
