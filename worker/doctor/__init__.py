"""What `janitor doctor` checks: settings, the Redis server, the ledger, the API."""
