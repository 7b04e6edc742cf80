"""Services with a Celery application of their own: the guide's examples, which must not take it over."""

import importlib.util
import json
import os
import re
import subprocess
import sys

import pytest
import redis

from tests.processes import ROOT, records, until
from tests.processes import janitor_here as janitor
from worker.local.embedded import running
from worker.redis_url import celery_url

GUIDE = (ROOT / "docs/how-to/producers.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.usefixtures("running_worker")

# What the examples use of these, if they are not installed. A view is called as the function that it is.
STAND_INS = {
    "django": """
        __init__.py: VERSION = (5, 2)
        conf.py: settings = type("Settings", (), {"USE_TZ": True, "CELERY_BROKER_URL": None})()
        db/__init__.py: from types import SimpleNamespace; transaction = SimpleNamespace()
        http.py: import json; JsonResponse = lambda found, status=200: json.dumps(found)
        views/__init__.py:
        views/decorators/__init__.py:
        views/decorators/http.py: require_GET = require_POST = lambda view: view
    """,
    "flask": """
        __init__.py: route = lambda *_: lambda view: view; methods = {"__init__": lambda *_: None}; \
            Flask = type("Flask", (), methods | {"get": route, "post": route})
    """,
    "fastapi": "",
}  # fmt: skip

# The service's own application, as each guide makes it.
OWN = {
    "script": "own = Celery('theirs', broker=OWN_URL, backend=OWN_URL)",
    "django": "own = Celery('theirs', broker=OWN_URL, backend=OWN_URL)",
    "flask": "own = Celery('theirs', broker=OWN_URL, backend=OWN_URL); own.set_default()",
    "fastapi": "own = Celery('theirs', broker=OWN_URL, backend=OWN_URL)",
}

# How a request reaches the view of each example.
CALL = {
    "django": """
from types import SimpleNamespace
asking = SimpleNamespace(method="POST", user=SimpleNamespace(get_username=lambda: "ann"))
reading = SimpleNamespace(method="GET")
text = lambda answer: getattr(answer, "content", answer)
delete = lambda name: json.loads(text(delete_finetune(asking, name)))["id"]
show = lambda id_: json.loads(text(show_deletion(reading, id_)))["ended"]
""",
    "flask": """
delete = lambda name: delete_finetune(name)[0]["id"]
show = lambda id_: show_deletion(id_)["ended"]
""",
    "fastapi": """
delete = lambda name: delete_finetune(name)["id"]
show = lambda id_: show_deletion(id_)["ended"]
""",
}
BEFORE = """
import json, os, threading
from celery import Celery, current_app, shared_task

OWN_URL = os.environ["OWN_URL"]

@shared_task(name="theirs.work", queue="theirs")
def work():
    pass

@shared_task(name="theirs.deletes")
def deletes():
    return delete("from-a-task")
"""
# The service's work goes to its own application, from the main thread and from others; so do tasks that delete.
AFTER = """
assert current_app._get_current_object() is own, current_app
assert work.app is own, work.app
work.delay()
if THREADS:
    apps = []
    thread = threading.Thread(target=lambda: (apps.append(work.app), work.delay()))
    thread.start()
    thread.join()
    assert apps == [own], apps
ids = [delete("from-a-view"), deletes.apply().get()]
for id_ in ids:
    while show(id_) is None:
        threading.Event().wait(0.1)
print(json.dumps([show(id_) for id_ in ids]))
"""


def example(mark):
    (code,) = re.findall(rf"<!-- tested: {mark} -->\n```python\n(.*?)```", GUIDE, re.DOTALL)
    return code


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory):
    """The broker of the service itself."""
    with running(tmp_path_factory.mktemp("own")) as url:
        yield url


@pytest.fixture
def own(own_redis):
    """What is on the service's own broker."""
    with redis.Redis.from_url(own_redis) as store:
        yield store
        store.flushdb()


@pytest.fixture
def ours(redis_url):
    """What is on the janitor's."""
    with redis.Redis.from_url(redis_url) as store:
        yield store


@pytest.fixture
def service(tmp_path, redis_url, own_redis):
    """Runs a service's code in a process that has Celery, the module of the guide, and nothing of ours."""
    (tmp_path / "janitor_client.py").write_text(example("client"))

    def run(code, framework=None):
        if framework and not importlib.util.find_spec(framework):
            for line in filter(None, map(str.strip, STAND_INS[framework].splitlines())):
                name, _, text = line.partition(":")
                (tmp_path / framework / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / framework / name).write_text(text.strip() + "\n")
        code += "\nimport sys\nassert not {'tasks', 'worker'} & set(sys.modules)\n"
        path = os.pathsep.join([str(tmp_path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": path, "FINETUNES_REDIS_URL": celery_url(redis_url)}
        own_url = celery_url(own_redis)
        # Celery reads these before what the code says.
        env |= {"OWN_URL": own_url, "CELERY_BROKER_URL": own_url, "CELERY_RESULT_BACKEND": own_url}
        if framework == "django":
            env["DJANGO_SETTINGS_MODULE"] = "their_settings"
            (tmp_path / "their_settings.py").write_text("USE_TZ = True\n")
        argv = [sys.executable, "-c", code]
        done = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize("framework", ["django", "flask", "fastapi"])
def test_an_example_deletes_and_leaves_the_services_own_tasks_where_they_were(
    api, env, own, ours, service, framework
):
    # Given a service with an application, a broker and shared tasks of its own, and our client made at the worst
    # moment: with Django the first application becomes the default one, else the last one the current one,
    for name in ("from-a-view", "from-a-task"):
        api.create(name)
    has_default = framework in ("django", "flask")
    made = [OWN[framework], "import janitor_client"]
    made = made[::-1] if framework == "django" else made
    parts = [f"THREADS = {has_default}", BEFORE, *made, example(framework)]
    # when a view and a task of it delete a finetune each,
    out = service("\n".join([*parts, CALL[framework], AFTER]), framework)
    # then both are deleted and their records are read,
    found = json.loads(out.splitlines()[-1])
    assert [(one["finetune_id"], one["state"]) for one in found] == [
        ("from-a-view", "deleted"), ("from-a-task", "deleted"),
    ]  # fmt: skip
    assert {one["source"] for one in found} == {"name"}
    (kept,) = records(janitor(env, "show", found[0]["id"], "--json"))
    assert kept["asked_at"] < kept["created_at"], "requested_at was sent"
    # and the service's own messages are with its own broker, and nowhere else.
    assert own.llen("theirs") == 1 + has_default
    assert own.exists("deletions", "touches") == ours.exists("theirs", "celery") == 0


def test_a_script_leaves_the_tasks_of_what_it_imports_where_they_were(api, own, ours, redis_url, service):
    # Given a module with an application and shared tasks of its own, and the guide's script
    api.create("my-finetune")
    script = example("producer").replace("BROKER_URL", repr(celery_url(redis_url)))
    check = "work.delay()\nassert work.app is own, work.app\n"
    drop = "import os\nfor name in ('CELERY_BROKER_URL', 'CELERY_RESULT_BACKEND'): del os.environ[name]\n"
    # When the script has run, then the tasks still go to their own broker.
    out = service("\n".join([drop, BEFORE, OWN["script"], script, check]))
    assert out.startswith("deleted Success Finetune my-finetune deleted 20")
    assert (own.llen("theirs"), ours.exists("theirs", "celery")) == (1, 0)


def test_what_was_refused_is_told_to_the_service(service):
    check = "id_ = janitor_client.delete('a b')\n"
    check += "while not janitor_client.ended(id_): threading.Event().wait(0.1)\n"
    out = service("import threading\nimport janitor_client\n" + check + "print(janitor_client.ended(id_))")
    assert "'a b' has a space" in out


def test_the_guides_report_of_use_is_noted(ours, redis_url, service):
    url = celery_url(redis_url)
    code = f"from celery import Celery\napp = Celery(broker={url!r}, backend={url!r}, set_as_current=False)\n"
    drop = "import os\nfor name in ('CELERY_BROKER_URL', 'CELERY_RESULT_BACKEND'): del os.environ[name]\n"
    service(drop + code + example("touch"))
    until(lambda: ours.hexists("janitor:2:used:default", "my-finetune"), seconds=60, what="the use")
