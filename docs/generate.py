"""Write the tables and helps in `docs/reference/` from the code, so that they cannot say anything else.

`make reference` writes them between two comments in each page; the rest of a page is written by hand. `make lint`
only compares (`--check`): it prints one line and exits 1 if a page differs.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin
from unittest.mock import Mock, patch

import click
from pydantic.fields import FieldInfo

from tasks.durations import format_duration
from tasks.ledger.statistics import AccountStatistics, Statistics
from tasks.records import State, from_ms
from worker.cli import cli
from worker.doctor.policies import ScheduledPolicy
from worker.http.app import create_api
from worker.metrics import LedgerCollector
from worker.settings import Settings

REFERENCE = Path(__file__).parent / "reference"
BEGIN = "<!-- From the code, by `make reference`. -->\n"
END = "<!-- The end of what is from the code. -->\n"
WIDTH = 100


def main(arguments: list[str]) -> int:
    """Write the pages, or with `--check` only compare them; the exit code."""
    written = {"commands": commands, "settings": settings, "http": http, "metrics": metrics}
    different = {}
    for name, lines in written.items():
        page = REFERENCE / f"{name}.md"
        old = page.read_text(encoding="utf-8")
        new = _replaced(old, "\n".join(lines()))
        if new != old:
            different[page] = new
    if arguments == ["--check"]:
        if different:
            names = ", ".join(page.name for page in different)
            print(f"docs/reference differs from the code ({names}): run `make reference`", file=sys.stderr)
        return 1 if different else 0
    for page, text in different.items():
        page.write_text(text, encoding="utf-8")
        print(f"written: docs/reference/{page.name}")
    return 0


def _replaced(page: str, generated: str) -> str:
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n{generated}\n{END}{after}"


def commands() -> Iterator[str]:
    """Each command's help, as it prints it."""
    context = click.Context(cli, info_name="janitor", terminal_width=WIDTH, **cli.context_settings)
    yield from _helps(context)


def _helps(context: click.Context) -> Iterator[str]:
    yield f"## {context.command_path}\n" if context.parent is None else f"### {context.command_path}\n"
    yield f"```\n{context.get_help()}\n```\n"
    if isinstance(context.command, click.Group):
        for name in context.command.list_commands(context):
            command = context.command.get_command(context, name)
            if command is not None and not command.hidden:
                yield from _helps(click.Context(command, parent=context, info_name=name, terminal_width=WIDTH))


def settings() -> Iterator[str]:
    """Each setting: what it accepts, its default, its meaning."""
    yield from _table(
        ("variable", "accepted", "default", "meaning"),
        (
            (f"`{field.validation_alias or f'JANITOR_{name.upper()}'}`", _accepted(field), _default(name, field),
             field.description or "")
            for name, field in Settings.model_fields.items()
        ),
    )  # fmt: skip


def _accepted(field: FieldInfo) -> str:
    kind: Any = field.annotation
    if isinstance(kind, UnionType):  # a setting without a default is one of these, or None
        (kind,) = (one for one in get_args(kind) if one is not NoneType)
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    limits = {name: getattr(one, name) for one in field.metadata for name in ("ge", "le") if hasattr(one, name)}
    if limits:
        return f"{limits['ge']} to {limits['le']}"
    return {timedelta: "a duration", bool: "`true`, `false`", Path: "a path"}.get(kind, "a URL")


def _default(name: str, field: FieldInfo) -> str:
    if name == "redis_url":
        return "that of `janitor up`"
    if field.default_factory:
        return "your user state folder"
    if field.default is None:
        return ""
    value = field.default
    if isinstance(value, timedelta):
        return f"`{format_duration(value)}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def http() -> Iterator[str]:
    """What all operations answer, each operation of the service, then each shape of a body."""
    described = create_api(Mock(), Mock(), Mock(), Mock()).openapi()
    answers = [one["responses"] for path, of_it in described["paths"].items() for one in of_it.values()
               if path.startswith("/v1/")]  # fmt: skip
    common = {status: answer for status, answer in answers[0].items() if all(status in one for one in answers[1:])}
    del common["200"]
    yield "Every operation under `/v1` may answer:\n"
    yield from _answers(common)
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            yield f"## `{method.upper()} {path}`\n"
            yield f"{_text(operation['description'])} Operation id: `{operation['operationId']}`.\n"
            yield from _operation(operation, common if path.startswith("/v1/") else {})
    yield "## Bodies\n"
    for name, schema in described["components"]["schemas"].items():
        yield from _body(name, schema)


def _operation(operation: Mapping[str, Any], known: Mapping[str, Any]) -> Iterator[str]:
    yield from _table(
        ("parameter", "in", "accepted", "default", "meaning"),
        (
            # One that may be left out is described as one that may be null.
            (f"`{one['name']}`", one["in"], _type(one["schema"]).removesuffix(" or null"),
             "required" if one.get("required") else _given(one["schema"]), _text(one.get("description", "")))
            for one in operation.get("parameters", [])
        ),
    )  # fmt: skip
    for content in operation.get("requestBody", {}).get("content", {}).values():
        yield f"Body: {_type(content['schema'])}.\n"
    yield from _answers({status: one for status, one in operation["responses"].items() if status not in known})


def _answers(responses: Mapping[str, Any]) -> Iterator[str]:
    yield from _table(("status", "meaning"), ((status, _answer(one)) for status, one in sorted(responses.items())))


def _answer(response: Mapping[str, Any]) -> str:
    text = _text(response["description"]).replace("Successful Response", "done as asked")
    schemas = [content.get("schema", {}) for content in response.get("content", {}).values()]
    named = [_type(schema) for schema in schemas if "$ref" in schema]
    return f"{text}: {named[0]}" if named else text


def _body(name: str, schema: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {name}\n"
    yield from (f"{_text(part)}\n" for part in schema.get("description", "").split("\n\n") if part)
    if "enum" in schema:
        yield f"One of {_type(schema)}.\n"
    required = schema.get("required", [])
    yield from _table(
        ("field", "type", "default", "meaning"),
        (
            (f"`{field}`", _type(of_it), "required" if field in required else _given(of_it),
             _text(of_it.get("description", "")))
            for field, of_it in schema.get("properties", {}).items()
        ),
    )  # fmt: skip


def _given(schema: Mapping[str, Any]) -> str:
    default = schema.get("default")
    if default in (None, "", []):
        return ""
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def _type(schema: Mapping[str, Any]) -> str:
    """A JSON schema in a few words, with links to the bodies that it names."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        limits = {name: value for name, value in schema.items() if name.startswith(("min", "max"))}
        return " or ".join(_type(limits | one) for one in schema["anyOf"])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}{_limits(schema, 'Items')}"
    if schema.get("format") == "date-time":
        return "time"
    kinds = {"string": "text", "integer": "number", "object": "object", "boolean": "`true` or `false`"}
    type_: str = schema.get("type", "anything")
    kind = kinds.get(type_, type_)
    return kind if kind == "null" else kind + (_limits(schema, "Length") or _limits(schema, "imum"))


def _limits(schema: Mapping[str, Any], what: str) -> str:
    low, high = (schema.get(f"{edge}{what}") for edge in ("min", "max"))
    of_it = {"Items": "", "Length": " characters", "imum": ""}[what]
    if low is not None and high is not None:
        return f", {low:.0f} to {high:,.0f}{of_it}"
    return f", at most {high:,.0f}{of_it}" if high is not None else f", at least {low:.0f}{of_it}" if low else ""


def metrics() -> Iterator[str]:
    """Each metric with its labels, from a scrape of a ledger with one of everything."""
    account = AccountStatistics(
        states={State.DELETED: 1}, requests={"name": 1}, refused={"request": 1},
        finished={"deleted": 1}, observations={"present": 1}, retrying=0, reviews_open=0, unverified=0,
        verification_late_seconds=0,
        calls={"200": Counter({"none": 1})}, call_seconds={"200": 0}, verifications_failed=0,
        oldest_due_seconds=0, permits=0, permits_limit=0, cool_down_seconds=0, parked=False, paused=False,
    )  # fmt: skip
    policy = ScheduledPolicy("tests", "default", "0 3 * * *", from_ms(0), None)
    with (
        patch("worker.metrics.statistics", return_value=Statistics({"default": account}, 0, 0, 0.0, 0.0, 0)),
        patch("worker.metrics.scheduled_policies", return_value=[policy]),
    ):
        families = list(LedgerCollector(Mock(now_ms=lambda: 0)).collect())
    yield from _table(
        ("metric", "type", "labels", "meaning"),
        (
            (f"`{family.name}{'_total' if family.type == 'counter' else ''}`", family.type,
             ", ".join(f"`{label}`" for label in family.samples[0].labels if label != "le"), family.documentation)
            for family in sorted(families, key=lambda family: family.name)
        ),
    )  # fmt: skip


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    """A Markdown table; nothing if it has no row, and no column that is empty in all of them."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    shown = [index for index in range(len(head)) if any(row[index] for row in cells)]
    if not cells:
        return
    lines = [[head[index] for index in shown], ["---"] * len(shown), *([row[i] for i in shown] for row in cells)]
    yield "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _text(text: str) -> str:
    """One line that is Markdown: what looks like a tag stays visible."""
    return " ".join(text.split()).replace("<", "&lt;")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
