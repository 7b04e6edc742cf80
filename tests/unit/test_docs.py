"""The documents say what the code does: settings, states, commands and links."""

import re
from datetime import timedelta
from pathlib import Path

import pytest

from tasks.durations import format_duration
from tasks.records import State
from worker.cli import _COMMANDS
from worker.settings import Settings

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def shown(value):
    if isinstance(value, timedelta):
        return f"`{format_duration(value)}`"
    return f"`{str(value).lower()}`" if isinstance(value, bool) else f"`{value}`"


def settings_row(name, field):
    default = "your user state folder" if field.default_factory else shown(field.default)
    default = " " if field.default is None else f" {default} "
    return f"| `JANITOR_{name.upper()}` |{default}| {field.description} |"


@pytest.mark.parametrize(
    "name", [name for name, field in Settings.model_fields.items() if not field.validation_alias]
)
def test_the_readme_has_each_setting_with_its_default_and_meaning(name):
    assert settings_row(name, Settings.model_fields[name]) in README


def test_the_readme_has_no_setting_that_does_not_exist():
    known = {f"JANITOR_{name.upper()}" for name in Settings.model_fields}
    assert set(re.findall(r"JANITOR_[A-Z_]+", README)) - known == set()


def test_the_readme_has_each_state():
    assert re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)[: len(State)] == [state.value for state in State]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_that_are_shown_exist(document):
    text = document.read_text(encoding="utf-8")
    lines = re.findall(r"^(?:\$ )?janitor ([a-z][a-z-]*)", text, re.MULTILINE) + re.findall(
        r"`janitor ([a-z][a-z-]*)", text
    )
    assert set(lines) <= set(_COMMANDS)
