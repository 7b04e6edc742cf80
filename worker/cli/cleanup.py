"""Commands about stale finetunes: check, plan, show, list, apply."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import click

from tasks.cleanup.plans import Plan, apply_plan, get_plan, list_plans
from tasks.cleanup.policies import Policy, read_policies
from tasks.durations import format_duration
from tasks.errors import InvalidRequest
from worker.cli.common import json_option, open_desk, policy_file_option, progress
from worker.cli.enqueue import login
from worker.cli.output import local, note, print_json, print_rows
from worker.settings import load_settings

_WRONG_USAGE = 2  # an id that belongs to another request


@click.group()
def cleanup() -> None:
    """Find the finetunes that nobody needs any more.

    The policies are a TOML file, reviewed like code: docs/policies.example.toml shows one.

    \b
    janitor cleanup check
    janitor cleanup plan --policy tests
    janitor cleanup apply 6f0f5f0e-0b0a-5d3c-9a55-3f6f7b1d2c11
    """


@cleanup.command()
@policy_file_option
def check(*, file: Path | None) -> int:
    """Check the policies, and nothing else; say what each would do.

    \b
    janitor cleanup check
    janitor cleanup check --file policies.toml
    """
    for policy in read_policies(file or load_settings().policy_file):
        click.echo(_in_words(policy))
    return 0


@cleanup.command("plan")
@policy_file_option
@click.option("--policy", "name", metavar="NAME", help="Only this policy; all unless given.")
@json_option
def plan_(*, file: Path | None, name: str | None, as_json: bool) -> int:
    """List every finetune with keep or delete and the reason; delete nothing.

    The plan is kept with an id, for `janitor cleanup apply`. Exit code 1 if one is blocked: beyond a cap, or made
    from a list that cannot be relied on.

    \b
    janitor cleanup plan
    janitor cleanup plan --policy tests --json
    """
    desk = open_desk()
    policies = _named(read_policies(file or desk.settings.policy_file), name)
    blocked = False
    for policy in policies:
        with progress(f"reading account {policy.account}") as advance:
            plan = desk.cleaner.plan(policy, advance=advance)
        blocked = blocked or plan.blocked is not None
        _print(plan, as_json=as_json)
    return 1 if blocked else 0


@cleanup.command()
@click.argument("id_", metavar="PLAN_ID")
@json_option
def show(*, id_: str, as_json: bool) -> int:
    """Show a plan again.

    \b
    janitor cleanup show 6f0f5f0e-0b0a-5d3c-9a55-3f6f7b1d2c11
    """
    _print(get_plan(open_desk().ledger, id_), as_json=as_json)
    return 0


@cleanup.command("list")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True, help="At most this many.")
@json_option
def list_(*, limit: int, as_json: bool) -> int:
    """List plans, newest first.

    \b
    janitor cleanup list
    """
    plans = list_plans(open_desk().ledger, limit=limit)
    if as_json:
        print_json(plan.summary() for plan in plans)
        return 0
    print_rows(("WHEN", "POLICY", "ACCOUNT", "ID", "DELETES", "STATE"), [_cells(plan) for plan in plans])
    return 0


@cleanup.command()
@click.argument("id_", metavar="PLAN_ID")
@json_option
def apply(*, id_: str, as_json: bool) -> int:
    """Ask for exactly the deletions of a plan, after the policy's time of grace.

    Each is bound to the incarnation that the plan saw. What was used, protected, replaced or asked for since is
    kept. A plan that is blocked, or older than 24 hours, is refused with exit code 1. The same plan applied again
    asks for nothing again.

    \b
    janitor cleanup apply 6f0f5f0e-0b0a-5d3c-9a55-3f6f7b1d2c11
    """
    desk = open_desk()
    applied = apply_plan(desk.ledger, desk.intake, get_plan(desk.ledger, id_), requested_by=login())
    if as_json:
        asked = [(one, one.deletion) for one in applied if one.deletion]
        print_json(deletion.to_json() | {"created": one.created, "kept": one.kept} for one, deletion in asked)
    for one in applied:
        if one.error or one.deletion is None:
            note(f"{one.finetune_id} was not asked for: {one.error}")
        elif one.kept:
            note(f"{one.finetune_id} is kept: {one.kept.removeprefix('kept: ')}")
        elif not as_json:
            due = local(one.deletion.due_at)
            click.echo(f"{one.finetune_id}  {one.deletion.id}  {one.deletion.state}, due {due}")
    new = sum(one.created and one.kept is None for one in applied)
    note(f"{new} of {len(applied)} accepted; `janitor list --state scheduled` shows what waits")
    return _WRONG_USAGE if any(one.error for one in applied) else 0


def _named(policies: tuple[Policy, ...], name: str | None) -> tuple[Policy, ...]:
    found = tuple(policy for policy in policies if name in (None, policy.name))
    if name is not None and not found:
        known = ", ".join(policy.name for policy in policies) or "none"
        raise InvalidRequest(f"no policy is called {name!r}: there are {known}")
    if not found:
        note("no policy: nothing to plan")
    return found


def _print(plan: Plan, *, as_json: bool) -> None:
    if as_json:
        print_json([plan.to_json()])
        return
    items = sorted(plan.items, key=lambda item: item.action)
    print_rows(("ACTION", "FINETUNE", "REASON"), [(item.action, item.finetune_id, item.reason) for item in items])
    totals = f"{plan.deletions} of {plan.total} finetunes of account {plan.account} to delete"
    grace = format_duration(timedelta(seconds=plan.grace_seconds))
    note(f"plan {plan.id} of {plan.policy}, {local(plan.created_at)}: {totals}, after {grace}")
    for warning in plan.warnings:
        note(f"warning: {warning}")
    if plan.blocked:
        note(f"blocked, it cannot be applied: {plan.blocked}")
    elif not plan.applied_at:
        note(f"nothing was deleted; `janitor cleanup apply {plan.id}` asks for it")


def _cells(plan: Plan) -> tuple[str, ...]:
    count = f"{plan.deletions} of {plan.total}"
    return local(plan.created_at), plan.policy, plan.account, plan.id, count, _state(plan)


def _state(plan: Plan) -> str:
    if plan.blocked:
        return f"blocked: {plan.blocked}"
    return f"applied {local(plan.applied_at)}" if plan.applied_at else "not applied"


def _in_words(policy: Policy) -> str:
    ages = [("older than", policy.older_than), ("unused for", policy.unused_for)]
    rules = [f"match {', '.join(policy.match)}"]
    rules += [f"{what} {format_duration(age)}" for what, age in ages if age]
    rules += [f"keep the newest {policy.keep_newest}"] if policy.keep_newest else []
    rules += [f"never {', '.join(policy.protect)}"] if policy.protect else []
    caps = (
        f"at most {policy.max_deletions} and {policy.max_percent} % at once, after {format_duration(policy.grace)}"
    )
    when = f"{policy.mode} at {policy.schedule} UTC" if policy.schedule else "when asked"
    return f"{policy.name} ({policy.account}): {'; '.join(rules)}; {caps}; {when}"
