"""Commands about stale finetunes: check, plan, show, list, apply."""

from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from operator import attrgetter
from pathlib import Path

import click

from tasks.cleanup.about import in_words, short
from tasks.cleanup.inventory import Inventory
from tasks.cleanup.plans import Plan, apply_plan, check_plan, get_plan, is_asked_for, list_plans
from tasks.cleanup.policies import Policy, read_policies
from tasks.cleanup.rules import Item
from tasks.durations import format_duration
from tasks.errors import InvalidRequest, JanitorError
from tasks.ledger.queries import known_accounts
from tasks.ledger.types import Act
from tasks.records import from_ms
from tasks.waiting import key_variable
from worker.cli import WRONG_USAGE, options
from worker.cli.asking import NOT_AGREED, agree_to_plan
from worker.cli.options import as_json
from worker.cli.output import note, print_record, print_rows, print_table, warn_of_confusing
from worker.cli.session import Session, progress
from worker.cli.text import nearest
from worker.cli.times import local

_NOTHING: Mapping[str, str] = {}
_OF_A_PLAN = (
    "plan", "policy", "account", "action", "finetune_id", "reason", "age_days", "last_used", "observed_at",
)  # fmt: skip


@click.group()
def cleanup() -> None:
    """Find the finetunes that nobody needs any more.

    The policies are a TOML file, reviewed like code: docs/how-to/policies.example.toml shows one.

    \b
    janitor cleanup check
    janitor cleanup plan --policy tests
    janitor cleanup apply 6f0f5f0e-0b0a-5d3c-9a55-3f6f7b1d2c11
    """


@cleanup.command()
@options.policy_file
def check(*, file: Path | None) -> None:
    """Check the policies, and nothing else; say what each would do.

    Warns of an account whose key is not set here and that no worker has had, if Redis can be asked.

    \b
    janitor cleanup check
    janitor cleanup check --file policies.toml
    """
    policies = read_policies(file or Session().settings.policy_file)
    for policy in policies:
        click.echo(_in_words(policy))
    with suppress(JanitorError):  # without Redis nobody can tell
        session = Session()
        known = known_accounts(session.ledger) | session.settings.accounts.keys()
        for account in sorted({policy.account for policy in policies} - known):
            fact = f"warning: no worker has had the key of account {account}"
            note(f"{fact}, and {key_variable(account)} is not set here")


@cleanup.command("plan")
@options.policy_file
@click.option("--policy", "name", metavar="NAME", help="Only this policy; all unless given.")
@options.json
def plan_(*, file: Path | None, name: str | None) -> int:
    """List every finetune with keep or delete and the reason; delete nothing.

    The plan is kept with an id, for `janitor cleanup apply`. Exit code 1 if one is blocked: beyond a cap, or made
    from a list that cannot be relied on.

    \b
    janitor cleanup plan
    janitor cleanup plan --policy tests --json
    """
    session = Session()
    plans = []
    for policy in _named(read_policies(file or session.settings.policy_file), name):
        with progress(f"reading account {policy.account}") as advance:
            surveyed: list[Inventory] = []
            plans.append(session.cleaner.plan(policy, advance=advance, tell=surveyed.append))
        told = {id_: short(about) for one in surveyed for id_, about in one.about.items()}
        _print(plans[-1], told if policy.about else _NOTHING)
    return int(any(plan.blocked for plan in plans))


@cleanup.command()
@click.argument("id_", metavar="PLAN_ID")
@click.option("--csv", is_flag=True, help="Print CSV with a header row: what is deleted, what is kept, and why.")
@options.json
def show(*, id_: str, csv: bool) -> None:
    """Show a plan again.

    \b
    janitor cleanup show 6f0f5f0e-0b0a-5d3c-9a55-3f6f7b1d2c11
    janitor cleanup show 6f0f5f0e-0b0a-5d3c-9a55-3f6f7b1d2c11 --csv > plan.csv
    """
    if csv and as_json():
        raise click.UsageError("--csv and --json are both given: give one of them")
    plan = get_plan(Session().ledger, id_)
    if csv:
        whole = {"plan": plan.id, "policy": plan.policy, "account": plan.account}
        print_rows(_OF_A_PLAN, (whole | item.to_json() for item in _sorted(plan)))
    else:
        _print(plan)


@cleanup.command("list")
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, help="At most this many.")
@options.json
def list_(*, limit: int) -> None:
    """List plans, newest first.

    \b
    janitor cleanup list
    """
    headings = ("WHEN", "POLICY", "ACCOUNT", "ID", "DELETES", "STATE")
    plans = list_plans(Session().ledger, limit=limit)
    print_table(plans, Plan.summary, headings, _cells, if_empty="there are no plans")


@cleanup.command()
@click.argument("id_", metavar="PLAN_ID")
@options.policy_file
@options.as_person
@options.yes
@options.json
def apply(*, id_: str, file: Path | None, act: Act, yes: bool) -> int:
    """Schedule exactly the deletions of a plan; each waits for the policy's grace period.

    Each is bound to the incarnation that the plan saw. What was used, protected, replaced or asked for since is
    kept. A plan is refused with exit code 1 if it is blocked, if it is older than 24 hours, or if its policy was
    changed or removed since. The same plan applied again asks for nothing again. On a terminal it shows what it
    will do, and asks.

    \b
    janitor cleanup apply 6f0f5f0e-0b0a-5d3c-9a55-3f6f7b1d2c11
    """
    session = Session()
    plan = get_plan(session.ledger, id_)
    file = file or session.settings.policy_file
    now = from_ms(session.ledger.now_ms())
    check_plan(plan, now, read_policies(file), file)
    # What asks for nothing again needs no answer.
    asks = not is_asked_for(session.ledger, plan)
    if asks and not agree_to_plan(plan, now + timedelta(seconds=plan.grace_seconds), yes=yes):
        return NOT_AGREED
    # Read again: the question may have been open for hours.
    applied = apply_plan(session.ledger, session.intake, plan, act, read_policies(file))
    for one in applied:
        if one.deletion is None:
            note(f"{one.finetune_id} was not asked for: {one.error}")
            continue
        if one.kept:
            note(f"{one.finetune_id} is kept: {one.kept.removeprefix('kept: ')}")
        if as_json() or not one.kept:
            record = one.deletion.to_json() | {"created": one.created, "kept": one.kept}
            due = f"{one.deletion.state}, due {local(one.deletion.due_at)}"
            print_record(record, f"{one.finetune_id}  {one.deletion.id}  {due}")
    new = sum(one.created and one.kept is None for one in applied)
    note(f"{new} of {len(applied)} accepted; `janitor list` shows them")
    # An id that belongs to another request is an error of the caller.
    return WRONG_USAGE if any(one.error for one in applied) else 0


def _named(policies: tuple[Policy, ...], name: str | None) -> tuple[Policy, ...]:
    found = tuple(policy for policy in policies if name in (None, policy.name))
    if name is not None and not found:
        known = ", ".join(policy.name for policy in policies) or "none"
        like = nearest(name, [policy.name for policy in policies])
        raise InvalidRequest(f"no policy is called {name!r}: there are {known}{like}")
    if not found:
        note("no policy: nothing to plan")
    return found


def _print(plan: Plan, about: Mapping[str, str] = _NOTHING) -> None:
    """about: what details say of some of them; a plan does not keep it."""
    if as_json():
        print_record(plan.to_json(), "")
        return
    items = _sorted(plan)
    headings = ("ACTION", "FINETUNE", *(["ABOUT"] if about else []), "REASON")

    def cells(item: Item) -> tuple[str, ...]:
        return item.action, item.finetune_id, *([about.get(item.finetune_id, "")] if about else []), item.reason

    print_table(items, Item.to_json, headings, cells)
    warn_of_confusing(item.finetune_id for item in items)
    totals = f"{plan.deletions} of {plan.total} finetunes of account {plan.account} to delete"
    grace = format_duration(timedelta(seconds=plan.grace_seconds))
    note(f"plan {plan.id} of {plan.policy}, {local(plan.created_at)}: {totals}, after {grace}")
    for warning in plan.warnings:
        note(f"warning: {warning}")
    if plan.applied_at:
        note(f"apply began {local(plan.applied_at)}")
    if plan.blocked:
        note(f"blocked, it cannot be applied: {plan.blocked}")
    elif not plan.applied_at:
        note(f"nothing was deleted; `janitor cleanup apply {plan.id}` asks for it")


def _sorted(plan: Plan) -> list[Item]:
    """What is deleted comes first."""
    return sorted(plan.items, key=attrgetter("action"))


def _cells(plan: Plan) -> tuple[str, ...]:
    count = f"{plan.deletions} of {plan.total}"
    states = [f"apply began {local(plan.applied_at)}"] if plan.applied_at else []
    states += [f"blocked: {plan.blocked}"] if plan.blocked else []
    return local(plan.created_at), plan.policy, plan.account, plan.id, count, "; ".join(states) or "not applied"


def _in_words(policy: Policy) -> str:
    ages = [("older than", policy.older_than), ("unused for", policy.unused_for)]
    rules = [f"match {', '.join(policy.match)}"]
    rules += [f"{in_words([key])} {', '.join(patterns)}" for key, patterns in policy.about.items()]
    rules += [f"{what} {format_duration(age)}" for what, age in ages if age]
    rules += [f"keep the newest {policy.keep_newest}"] if policy.keep_newest else []
    rules += [f"never {', '.join(policy.protect)}"] if policy.protect else []
    caps = (
        f"at most {policy.max_deletions} and {policy.max_percent} % at once, after {format_duration(policy.grace)}"
    )
    when = f"{policy.mode} at {policy.schedule} UTC" if policy.schedule else "when asked"
    return f"{policy.name} ({policy.account}): {'; '.join(rules)}; {caps}; {when}"
