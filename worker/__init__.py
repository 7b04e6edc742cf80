"""How it is run: settings, the Celery app, the `janitor` command, the embedded Redis, a simulated API."""
