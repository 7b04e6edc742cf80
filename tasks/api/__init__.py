"""The BFL API: the client, its errors, retry and back-off, observations and incarnations."""
