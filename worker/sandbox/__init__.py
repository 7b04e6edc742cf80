"""The simulated BFL API: `api` says what it does, `wire` how it answers, and how an answer breaks."""
