"""The `janitor` command; each subcommand is imported only when it is called."""


def main() -> None:
    raise SystemExit("not built yet")
