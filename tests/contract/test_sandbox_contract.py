"""The simulated API answers in the shapes of the contract we were given; so the other tests mean something."""

from pathlib import Path

import pytest
import requests
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from worker.sandbox.api import Sandbox

CONTRACT = YAML(typ="safe").load(Path(__file__).with_name("bfl-delete-finetune.openapi.yaml"))
DELETE = CONTRACT["paths"]["/v1/delete_finetune"]["post"]


def shape(operation, status):
    schema = operation["responses"][str(status)]["content"]["application/json"]["schema"]
    return Draft202012Validator({**schema, "components": CONTRACT["components"]})


@pytest.fixture(scope="module")
def api():
    with Sandbox(latency_seconds=0) as sandbox:
        sandbox.create("mine")
        yield sandbox


def post(api, body, key="sandbox-key"):
    return requests.post(f"{api.url}/v1/delete_finetune", json=body, headers={"x-key": key}, timeout=5)


def test_a_delete_is_confirmed_in_the_contracts_shape(api):
    answer = post(api, {"finetune_id": "mine"})
    assert answer.status_code == 200
    shape(DELETE, 200).validate(answer.json())
    assert answer.json()["deleted_finetune_id"] == "mine"


@pytest.mark.parametrize("body", [{}, {"finetune_id": 7}, {"finetune_id": None}, [], None, "mine"])
def test_a_wrong_body_is_refused_in_the_contracts_shape(api, body):
    answer = post(api, body)
    assert answer.status_code == 422
    shape(DELETE, 422).validate(answer.json())
    assert answer.json()["detail"], "an empty list would pass the schema and tell nothing"


def test_our_request_is_one_the_contract_knows(api):
    schema = CONTRACT["components"]["schemas"]["DeleteFinetuneInputs"]
    Draft202012Validator(schema).validate({"finetune_id": "mine"})
    assert DELETE["security"] == [{"APIKeyHeader": []}]
    assert CONTRACT["components"]["securitySchemes"]["APIKeyHeader"]["name"] == "x-key"
