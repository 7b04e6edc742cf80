"""Labels through a worker, by name, over HTTP and with the command."""

import uuid

from tests.processes import janitor_here, producer, records


def test_a_label_is_kept_and_found_by_every_way(api, env, redis_url, billing):
    # Given a label, when finetunes are deleted with it by name, over HTTP and with the command,
    customer = uuid.uuid4().hex[:12]
    labels = {"customer": customer, "team": "a b"}
    names = [f"{customer}-{way}" for way in ("name", "many", "http", "command")]
    for name in names:
        api.create(name)
    app = producer(redis_url)
    one = app.send_task("finetunes.delete", [names[0]], {"labels": labels}, queue="deletions")
    many = app.send_task("finetunes.delete_many", [[names[1]]], {"labels": labels}, queue="deletions")
    asked = billing.ask(names[2], labels=labels).json()["deletions"][0]["deletion"]
    options = ["--label", f"customer={customer}", "--label", "team=a b"]
    (told,) = records(janitor_here(env, "delete", names[3], *options, "--wait", "--json"))
    # then the result and the records have it,
    results = [one.get(timeout=60), app.AsyncResult(many.get(timeout=60)[0]).get(timeout=60)]
    ended = billing.get(f"/v1/deletions/{asked['id']}?wait=30").json()
    assert [found["labels"] for found in (*results, ended, told)] == [labels] * 4
    # and each list and the export finds all of them.
    filters = {"label": [f"customer={customer}", "team=a b"], "name": f"{customer}-*"}
    listed = billing.get("/v1/deletions", params=filters).json()["deletions"]
    shown = records(janitor_here(env, "list", *options, "--json"))
    exported = records(janitor_here(env, "export", *options))
    for found in (listed, shown, exported):
        assert {one["finetune_id"] for one in found} == set(names)
    by_billing = billing.get("/v1/deletions", params={**filters, "requested_by": "billing"}).json()["deletions"]
    assert [one["finetune_id"] for one in by_billing] == [names[2]]
    assert '"team": "a b"' in janitor_here(env, "show", told["id"]).stdout


def test_a_wrong_label_is_refused_in_one_line_by_every_way(env, redis_url, billing):
    message = {"labels": {"a b": "x"}}
    result = producer(redis_url).send_task("finetunes.delete", ["a"], message, queue="deletions")
    error = result.get(timeout=60, propagate=False)
    answer = billing.ask("a", **message)
    done = janitor_here(env, "delete", "a", "--label", "a b=x")
    assert (answer.status_code, done.returncode) == (422, 2)
    for line in (str(error), answer.json()["detail"], done.stderr.strip()):
        assert "give keys of 1 to 63 letters" in line
        assert "\n" not in line
    assert billing.get("/v1/deletions", params={"label": "customer"}).status_code == 422


def test_the_same_id_with_other_labels_is_a_conflict(billing):
    first = billing.ask("never-there", key="k1", labels={"customer": "1"})
    assert first.status_code == 202
    assert billing.ask("never-there", key="k1", labels={"customer": "1"}).status_code == 200
    assert billing.ask("never-there", key="k1", labels={"customer": "2"}).status_code == 409
