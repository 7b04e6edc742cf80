"""The HTTP service: for other teams' services, in whatever language they are written."""
