"""Alert rules and dashboard: they name what exists, and an alert fires in a real Prometheus on a real exporter."""

import json
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
import requests
from prometheus_client import generate_latest
from ruamel.yaml import YAML

from tasks.api.client import BflClient
from tasks.cleanup.plans import empty_plan, store
from tasks.cleanup.policies import Policy
from tasks.cleanup.schedule import noted
from tasks.deletion import Rules, carry_out
from tasks.errors import InvalidRequest
from tasks.intake import Intake
from tasks.ledger import Finish, Ledger
from tasks.ledger.dead_letters import keep
from tasks.ledger.types import Act
from tasks.records import from_ms
from tests.conftest import asking, carry_out_one, claim, progress, register
from tests.processes import environment, free_ports
from tests.unit.test_docs import anchors
from worker.metrics import registry

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy/prometheus"
YAML_READER = YAML(typ="safe", pure=True)
RULES = [rule for group in YAML_READER.load(PROMETHEUS / "alerts.yml")["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((ROOT / "deploy/grafana/janitor.json").read_text(encoding="utf-8"))
POLICY = Policy(name="tests", schedule="0 3 * * *")
PATIENCE = 60  # seconds; on a machine that is not busy the slowest test takes about eight


def program(name):
    """The path of a program of Debian's package `prometheus`."""
    found = shutil.which(name)
    if not found:
        pytest.skip(f"needs {name}: it is in Debian's package prometheus")
    return found


def queries():
    """Every query of a rule, a panel or a variable."""
    yield from (rule["expr"] for rule in RULES)
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (one["query"]["query"] for one in DASHBOARD["templating"]["list"] if one["type"] == "query")


def test_rules_and_dashboard_name_only_metrics_and_labels_that_are_there(ledger):
    # Given a ledger with a deletion and a scheduled policy, so that each metric has a sample,
    ledger.accept([asking("a")])
    claimed = claim(ledger)
    counts = {"call:200:0.05": 1, "ms:200": 50}
    ledger.finish(claimed, Finish(result="deleted"), progress(claimed, 1, counts=counts))
    ledger.redis.hset(ledger.keys.policy_runs, "tests", f"{ledger.now_ms()} 0 3 * * *")
    # when it is scraped, then every metric in a query is there, with every label by which it is selected.
    labels = {}
    for line in generate_latest(registry(ledger)).decode().splitlines():
        name, of_it = re.match(r"(\w+)(?:{(.*)})? ", line).groups() if line[0] != "#" else ("", "")
        labels.setdefault(name, set()).update(re.findall(r'(\w+)="', of_it or ""))
    for query in queries():
        for name, selector in re.findall(r"\b(janitor_\w+)(?:{([^}]*)})?", query):
            assert name in labels, query
            assert set(re.findall(r"(\w+)=", selector)) <= labels[name], query


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_each_rule_says_what_to_do_and_names_a_section_that_exists(rule):
    assert rule["labels"]["severity"] in ("page", "warn")
    assert rule["annotations"].keys() == {"summary", "do", "runbook"}
    page, _, section = rule["annotations"]["runbook"].partition("#")
    assert section == rule["alert"].lower()
    assert section in anchors(ROOT / page)


def test_each_rule_has_a_unit_test_and_passes_it():
    # Given the cases in alerts_test.yml, of which each rule has one that fires,
    tested = (PROMETHEUS / "alerts_test.yml").read_text(encoding="utf-8")
    assert {rule["alert"] for rule in RULES} <= set(re.findall(r'alertname="(\w+)"', tested))
    # when promtool runs them, then all pass.
    argv = [program("promtool"), "test", "rules", "alerts_test.yml"]
    done = subprocess.run(argv, cwd=PROMETHEUS, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_panels_do_not_overlap_and_say_what_they_show():
    taken = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        assert panel["title"]
        assert panel["description"].endswith(".")
        taken |= cells


def test_prometheus_can_read_every_query_of_the_dashboard(tmp_path):
    rules = [
        {"record": f"q{n}", "expr": query} for n, query in enumerate(queries()) if "label_values" not in query
    ]
    text = json.dumps({"groups": [{"name": "dashboard", "rules": rules}]})
    for variable, value in {"$__rate_interval": "1m", "$account": ".*"}.items():
        text = text.replace(variable, value)
    (tmp_path / "queries.yml").write_text(text, encoding="utf-8")
    argv = [program("promtool"), "check", "rules", str(tmp_path / "queries.yml")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def process(argv, log, **more):
    """A process, ended with the block."""
    with log.open("wb") as out, subprocess.Popen(argv, stdout=out, stderr=out, **more) as started:
        try:
            yield started
        finally:
            started.kill()


@contextmanager
def prometheus(folder, target):
    """A Prometheus on loopback that scrapes `target` often, without any `for`; the address of its API."""
    folder.mkdir()
    rules = YAML_READER.load(PROMETHEUS / "alerts.yml")
    for rule in rules["groups"][0]["rules"]:
        rule.pop("for", None)
    (folder / "rules.yml").write_text(json.dumps(rules), encoding="utf-8")
    job = {"job_name": "janitor", "static_configs": [{"targets": [target]}]}
    every = {"scrape_interval": "500ms", "scrape_timeout": "500ms", "evaluation_interval": "500ms"}
    config = {"global": every, "rule_files": ["rules.yml"], "scrape_configs": [job]}
    (folder / "prometheus.yml").write_text(json.dumps(config), encoding="utf-8")
    address = f"127.0.0.1:{free_ports(1)[0]}"
    argv = [program("prometheus"), f"--config.file={folder}/prometheus.yml", f"--web.listen-address={address}",
            f"--storage.tsdb.path={folder}/data"]  # fmt: skip
    with process(argv, folder / "log"):
        yield f"http://{address}/api/v1"


def asked(api, path, **params):
    """The data of an answer of Prometheus; none while it starts."""
    try:
        answer = requests.get(f"{api}/{path}", params=params, timeout=5)
        return answer.json()["data"] if answer.ok else {}
    except requests.RequestException:
        return {}


def firing(api):
    """The alerts that fire, each with its account or policy."""
    found = [one["labels"] for one in asked(api, "alerts").get("alerts", []) if one["state"] == "firing"]
    return {(one["alertname"], one.get("account") or one.get("policy") or "") for one in found}


def wait_until(happens):
    until = time.monotonic() + PATIENCE
    while not happens():
        assert time.monotonic() < until
        time.sleep(0.1)


def value(api, query):
    """The values that a query has now, in one sum; 0 if there is none."""
    found = asked(api, "query", query=query).get("result", [])
    return sum(float(one["value"][1]) for one in found)


def fail_one(ledger, api):
    """One deletion meets a host that does not answer."""
    ledger.accept([asking()])
    claimed = claim(ledger)
    rules = Rules(observe_within=timedelta(hours=1), retry_budget=timedelta(0))
    ledger.finish(claimed, *carry_out(claimed, api=api, ledger=ledger, rules=rules, sleep=lambda _: None))


def test_alerts_fire_in_a_real_prometheus_that_scrapes_a_real_exporter(redis_client, redis_url, tmp_path):
    ledger, dead_host = register(Ledger(redis_client)), BflClient(f"http://127.0.0.1:{free_ports(1)[0]}", "key")
    port = free_ports(1)[0]
    argv = [sys.executable, "-m", "worker.cli", "metrics", "--port", str(port)]
    with (
        process(argv, tmp_path / "exporter.log", env=environment(redis_url)) as exporter,
        prometheus(tmp_path / "prometheus", f"127.0.0.1:{port}") as api,
    ):
        wait_until(lambda: value(api, "janitor_ledger_up") == 1)
        wait_until(lambda: not firing(api))
        # When a key is refused, a message cannot be read, a deletion goes into review and a cleanup is blocked,
        register(ledger, "other").account("other", "park", reason="403", probe_ms=30_000)
        keep(ledger.redis, "deletions", "not JSON", "{")
        ledger.accept([asking()])
        carry_out_one(ledger, "review")
        store(ledger, empty_plan(POLICY, from_ms(ledger.now_ms()), "plan-1", blocked="too many"))
        ledger.redis.hset(ledger.keys.policy_runs, POLICY.name, noted(POLICY, from_ms(ledger.now_ms())))
        # an account is paused, a producer mistypes one, and nobody waits for that answer,
        register(ledger, "third").account("third", "pause", Act("ann@laptop", "command"), reason="a complaint")
        mistyped = InvalidRequest("the account 'defalt' is not known")
        Intake(ledger, lambda _: None).note_refused("r-1", "defalt", mistyped)
        # and the host of the API is dead,
        for count in (1, 2):
            fail_one(ledger, dead_host)
            wait_until(lambda count=count: value(api, "janitor_observations_total") == count)
        # then an alert fires for each, and no other.
        wanted = {
            ("JanitorParked", "other"), ("JanitorDeadLetters", ""), ("JanitorReview", "default"),
            ("JanitorPolicyBlocked", "tests"), ("JanitorApiUnreachable", "default"), ("JanitorPaused", "third"),
            ("JanitorRefused", "default"),
        }  # fmt: skip
        wait_until(lambda: firing(api) == wanted)
        # When the last worker is no longer seen, then that has one, too.
        ledger.redis.delete(ledger.keys.workers)
        wait_until(lambda: firing(api) == wanted | {("JanitorNoWorker", "")})
        # And when the exporter dies, that has its alerts, too.
        exporter.kill()
        wait_until(lambda: {("JanitorMetricsAway", ""), ("JanitorExporterDown", "")} <= firing(api))
