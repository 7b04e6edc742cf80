"""Which version this is, as it was installed."""

from functools import cache
from importlib.metadata import version as _installed


@cache
def version() -> str:
    """`0.1.0`, from the metadata of the installed package."""
    return _installed("finetune-janitor")
