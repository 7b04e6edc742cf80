"""The documents say what the code does: settings, states, fields, commands, links."""

import importlib.util
import re
import shutil
from dataclasses import fields
from pathlib import Path

import pytest

from tasks.records import Attempt, Deletion, Evidence, State
from worker.cli import cli
from worker.settings import DEFAULT_API_URL, Settings

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
COMMANDS = set(cli.list_commands(None))
RECORDS = (ROOT / "docs/reference/records.md").read_text(encoding="utf-8")

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def without_code(text):
    return re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(document):
    """The anchors that a code host makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", without_code(document.read_text(encoding="utf-8")), re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", heading.lower()).strip() for heading in headings)
    return {word.replace(" ", "-") for word in words}


@each_document
def test_links_lead_to_a_file_and_to_a_heading_in_it(document):
    text = without_code(document.read_text(encoding="utf-8"))
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", text):
        found = document.parent / target if target else document
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), f"{target}#{anchor}"


@each_document
def test_files_that_are_named_exist(document):
    text = document.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:tasks|worker|tests|bench|docs)/[\w./-]+)`", text)) - {"tests/unit/test_x.py"}
    assert {path for path in named if "NAME" not in path and not (ROOT / path).exists()} == set()


@pytest.mark.parametrize("folder", ["tasks", "worker", "tests", "bench", "docs"])
def test_pages_that_the_code_names_exist(folder):
    sources = [
        path for path in (ROOT / folder).rglob("*.*") if path.suffix in (".py", ".lua", ".toml", ".service")
    ]
    named = {
        page
        for source in sources
        if "node_modules" not in source.parts
        for page in re.findall(r"docs/[\w/-]+\.(?:md|toml|yml)", source.read_text(encoding="utf-8"))
    }
    assert {page for page in named if not (ROOT / page).exists()} == set()


@each_document
def test_commands_that_are_shown_exist(document):
    text = document.read_text(encoding="utf-8")
    lines = re.findall(r"^(?:\$ )?janitor ([a-z][a-z-]*)", text, re.MULTILINE) + re.findall(
        r"`janitor ([a-z][a-z-]*)", text
    )
    assert set(lines) <= COMMANDS


@each_document
def test_settings_that_are_named_exist(document):
    known = {
        str(field.validation_alias or f"JANITOR_{name.upper()}") for name, field in Settings.model_fields.items()
    }
    assert set(re.findall(r"JANITOR_[A-Z_]+\b", document.read_text(encoding="utf-8"))) <= known


def test_every_page_is_in_the_index_and_in_the_site():
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")} - {"index.md"}
    index = (ROOT / "docs/index.md").read_text(encoding="utf-8")
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\(([^)#]+)", index)) == pages
    assert set(re.findall(r"- (\S+/\S+\.md)", site)) == pages


def test_the_records_page_has_each_state_each_evidence_and_each_field():
    named = re.findall(r"^\| (`[^|]+) \|", RECORDS, re.MULTILINE)
    assert [name for name in named if name.strip("`") in list(State)] == [f"`{state.value}`" for state in State]
    assert {f"`{evidence.value}`" for evidence in Evidence} <= set(named)
    of_fields = [name for row in named for name in re.findall(r"`(\w+)`", row)]
    assert {field.name for field in fields(Deletion)} <= set(of_fields)
    assert all(f"`{field.name}`" in RECORDS for field in fields(Attempt))


def test_the_settings_page_has_the_default_url():
    assert f"| `{DEFAULT_API_URL}` |" in (ROOT / "docs/reference/settings.md").read_text(encoding="utf-8")


def test_a_page_that_differs_is_named_in_one_line_and_then_written_again(tmp_path, monkeypatch, capsys):
    # Given a copy of the pages, of which one is changed by hand
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs/generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    shutil.copytree(ROOT / "docs/reference", tmp_path, dirs_exist_ok=True)
    changed = tmp_path / "settings.md"
    changed.write_text(changed.read_text(encoding="utf-8").replace("`30s`", "`31s`"), encoding="utf-8")
    monkeypatch.setattr(generate, "REFERENCE", tmp_path)
    # When it is checked, then one line names the page
    assert generate.main(["--check"]) == 1
    assert capsys.readouterr().err == "docs/reference differs from the code (settings.md): run `make reference`\n"
    # When it is written, then the page is as before
    assert generate.main([]) == 0
    assert changed.read_text(encoding="utf-8") == (ROOT / "docs/reference/settings.md").read_text(encoding="utf-8")


def test_the_version_is_in_the_changelog_and_in_the_example_for_kubernetes():
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)[1]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## {re.escape(version)} - 20\d\d-\d\d-\d\d$", changelog, re.MULTILINE)
    example = (ROOT / "deploy/kubernetes/example/kustomization.yaml").read_text(encoding="utf-8")
    assert re.findall(r'newTag: "(.+)"', example) == [version]


@pytest.mark.parametrize("name", ["run", "flower", "dev", "docs", "bench"])
def test_the_constraints_pin_every_dependency_with_hashes_and_name_no_address(name):
    text = (ROOT / f"constraints-{name}.txt").read_text(encoding="utf-8")
    pinned = re.findall(
        r"^[\w.-]+(?:\[[\w,]+\])?==\S+(?: ; [^\\\n]+)? \\\n(?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+",
        text,
        re.M,
    )
    assert "".join(pinned) == text
    assert "://" not in text
