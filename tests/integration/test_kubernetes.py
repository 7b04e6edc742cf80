"""The Kubernetes objects: valid, closed, and of things that exist."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from worker.cli import cli
from worker.settings import Settings

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
SCHEMA = json.loads((Path(__file__).parent / "kubernetes.schema.json").read_text(encoding="utf-8"))
SECRETS = [
    "redis_worker",
    "redis_callbacks",
    "redis_beat",
    "redis_http",
    "redis_exporter",
    "bfl_api_key",
    "http_tokens",
]
SETTINGS = {
    str(field.validation_alias or f"JANITOR_{name.upper()}") for name, field in Settings.model_fields.items()
}
Object = dict[str, Any]


def load(path: Path) -> list[Object]:
    return list(YAML(typ="safe", pure=True).load_all(path))


OBJECTS = [one for file in sorted((FOLDER / "base").glob("[!k]*.yaml")) for one in load(file)]
OVERLAY, BASE = load(FOLDER / "example" / "kustomization.yaml")[0], load(FOLDER / "base" / "kustomization.yaml")[0]
DEPLOYMENTS = {one["metadata"]["name"]: one for one in OBJECTS if one["kind"] == "Deployment"}
PODS = {name: one["spec"]["template"]["spec"] for name, one in DEPLOYMENTS.items()}
CONTAINERS = {name: pod["containers"][0] for name, pod in PODS.items()}


def title(one: Object) -> str:
    return f"{one['kind']} {one['metadata']['name']}"


def wrong(one: Object) -> list[str]:
    return [f"{list(error.path)}: {error.message}" for error in Draft202012Validator(SCHEMA).iter_errors(one)]


def pod_labels(selector: Object) -> set[str]:
    """The Deployments whose pods a selector finds."""
    wanted = selector.get("matchLabels", selector).items()
    labels = {name: one["spec"]["template"]["metadata"]["labels"].items() for name, one in DEPLOYMENTS.items()}
    return {name for name, given in labels.items() if wanted <= given}


@pytest.mark.parametrize("one", OBJECTS, ids=title)
def test_each_object_follows_the_schema_of_kubernetes(one):
    assert wrong(one) == []


def test_the_schema_refuses_a_field_that_does_not_exist():
    worker = json.loads(json.dumps(DEPLOYMENTS["janitor-worker"]))
    worker["spec"]["template"]["spec"]["containers"][0]["readonlyRootFilesystem"] = True
    assert wrong(worker)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("components", ["", "components: [../keda]\n"], ids=["plain", "keda"])
def test_the_example_builds_and_is_valid(tmp_path, components):
    # Given a copy of the example with secrets,
    shutil.copytree(FOLDER, tmp_path / "kubernetes")
    example = tmp_path / "kubernetes" / "example"
    (example / "secrets").mkdir(exist_ok=True)
    for name in SECRETS:
        (example / "secrets" / name).write_text("some text\n", encoding="utf-8")
    with (example / "kustomization.yaml").open("a", encoding="utf-8") as file:
        file.write(components)
    # when it is built,
    done = subprocess.run(["kubectl", "kustomize", str(example)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # then all of it is valid,
    built = list(YAML(typ="safe", pure=True).load_all(done.stdout))
    assert {title(one): wrong(one) for one in built if one["kind"] != "ScaledObject"} == {
        title(one): [] for one in built if one["kind"] != "ScaledObject"
    }
    # and each Deployment names the secrets and config maps that were made.
    made = {one["metadata"]["name"] for one in built if one["kind"] in ("Secret", "ConfigMap")}
    named = {one["spec"]["template"]["spec"]["volumes"][0]["secret"]["secretName"]
             for one in built if one["kind"] == "Deployment"}  # fmt: skip
    assert len(made) == 6
    assert named < made
    replicas = {
        one["metadata"]["name"]: one["spec"].get("replicas") for one in built if one["kind"] == "Deployment"
    }
    assert replicas["janitor-worker"] == (None if components else 2)


@pytest.mark.parametrize("name", DEPLOYMENTS)
class TestDeployment:
    def test_it_is_confined(self, name):
        pod, security = PODS[name], CONTAINERS[name]["securityContext"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert f"USER {pod['securityContext']['runAsUser']}:" in (ROOT / "Dockerfile").read_text(encoding="utf-8")
        assert (security["readOnlyRootFilesystem"], security["allowPrivilegeEscalation"]) == (True, False)
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert CONTAINERS[name]["resources"]["limits"]["memory"]

    def test_its_selector_finds_its_own_pods_alone(self, name):
        assert pod_labels(DEPLOYMENTS[name]["spec"]["selector"]) == {name}

    def test_it_runs_commands_that_exist(self, name):
        probes = [value["exec"]["command"] for key, value in CONTAINERS[name].items()
                  if key.endswith("Probe") and "exec" in value]  # fmt: skip
        assert len(probes) == (0 if name == "janitor-metrics" else 3)
        for command, *options in [CONTAINERS[name]["args"], *(argv[1:] for argv in probes)]:
            shown = CliRunner().invoke(cli, [command, "--help"])
            assert shown.exit_code == 0, shown.output
            for option in options:
                assert option.partition("=")[0] in shown.output

    def test_it_is_given_settings_and_secrets_that_exist(self, name):
        env = {one["name"]: one.get("value", "") for one in CONTAINERS[name]["env"]}
        assert env.keys() - {"REDIS_PLACE", "REDIS_SCHEME", "BFL_API_KEY_FILE"} <= SETTINGS
        assert ("BFL_API_KEY_FILE" in env) == (name == "janitor-worker")
        secret = PODS[name]["volumes"][0]["secret"]["secretName"]
        files = {
            one["name"]: {item.partition("=")[0] for item in one["files"]} for one in OVERLAY["secretGenerator"]
        }
        folder = "/run/secrets/janitor/"
        assert {value.removeprefix(folder) for value in env.values() if value.startswith(folder)} == files[secret]
        maps = {one["name"]: one["literals"] for one in BASE["configMapGenerator"]}
        for one in CONTAINERS[name]["env"]:
            if wanted := one.get("valueFrom"):
                literals = maps[wanted["configMapKeyRef"]["name"]]
                assert wanted["configMapKeyRef"]["key"] in {text.partition("=")[0] for text in literals}
        assert {text.partition("=")[0] for text in maps["janitor-settings"]} <= SETTINGS

    def test_its_redis_user_exists(self, name):
        users = re.findall(r"^user (\w+) on ", (ROOT / "deploy/redis/users.acl").read_text(encoding="utf-8"), re.M)
        urls = [one["value"] for one in CONTAINERS[name]["env"] if one["name"].endswith("_URL")]
        assert {re.findall(r"//(\w+)@", url)[0] for url in urls} <= set(users)


def test_services_budgets_and_policies_find_pods_and_ports():
    for one in OBJECTS:
        spec = one["spec"]
        selector = spec.get("podSelector", spec.get("selector"))
        assert pod_labels(selector), title(one)
        ports = [port for rule in spec.get("ingress", []) for port in rule["ports"]]
        named = [port.get("targetPort", port.get("port")) for port in [*ports, *spec.get("ports", [])]]
        for name in pod_labels(selector) if named else ():
            assert set(named) <= {port["name"] for port in CONTAINERS[name]["ports"]}, title(one)


def test_a_worker_is_given_the_time_to_end_its_calls():
    call_deadline = Settings.model_fields["call_deadline"].default.total_seconds()
    assert PODS["janitor-worker"]["terminationGracePeriodSeconds"] > call_deadline + 5


def test_there_is_one_beat_at_a_time():
    spec = DEPLOYMENTS["janitor-beat"]["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def test_keda_scales_a_deployment_that_exists_by_metrics_that_exist():
    (scaled,) = load(FOLDER / "keda" / "scaledobject.yaml")
    assert scaled["spec"]["scaleTargetRef"]["name"] in DEPLOYMENTS
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    documented = (ROOT / "docs/reference/metrics.md").read_text(encoding="utf-8")
    metrics = set(re.findall(r"janitor_\w+", query))
    assert metrics
    assert {name for name in metrics if f"`{name}`" not in documented} == set()
