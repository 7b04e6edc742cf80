"""`python -m worker.cli`: the janitor command, where the script is not on PATH."""

from worker.cli import main

main()
