"""`janitor serve` as a process, and clients with tokens of their own."""

import hashlib
import os
import sys
from contextlib import contextmanager
from pathlib import Path

import requests

from tests.processes import started
from worker.local.supervise import Spec, without_keys

SECRETS = {
    "billing": ('["enqueue", "read"]', '["default"]'),
    "reader": ('["read"]', '["*"]'),
    "writer": ('["enqueue"]', '["*"]'),
    "keeper": ('["admin"]', '["default"]'),
    "boss": ('["enqueue", "read", "admin"]', '["*"]'),
    "elsewhere": ('["enqueue", "read"]', '["other"]'),
}  # fmt: skip


def token_file(folder):
    """A token for each of `SECRETS`; the secret of `billing` is `secret-of-billing`."""
    tables = [
        f'[{name}]\nsha256 = "{hashlib.sha256(secret_of(name).encode()).hexdigest()}"\n'
        f"scopes = {scopes}\naccounts = {accounts}\n"
        for name, (scopes, accounts) in SECRETS.items()
    ]
    file = folder / "tokens.toml"
    file.write_text("\n".join(tables))
    return file


def secret_of(name):
    return f"secret-of-{name}"


class Client(requests.Session):
    """A client that knows the base URL and has a token."""

    def __init__(self, base, name=None):
        super().__init__()
        self.trust_env = False
        self.base = base
        if name:
            self.headers["Authorization"] = f"Bearer {secret_of(name)}"

    def request(self, method, url, *given, **more):
        return super().request(method, self.base + str(url), *given, **{"timeout": 20, **more})

    def ask(self, *finetune_ids, key=None, **more):
        body = {"deletions": [{"finetune_id": id_, **more} for id_ in finetune_ids]}
        return self.post("/v1/deletions", json=body, headers={"Idempotency-Key": key} if key else {})


@contextmanager
def served(env, log, *options):
    """`janitor serve` on a free port, without API keys: its base URL, and its process."""
    log = Path(log)

    def listens():
        return log.exists() and b"listening on" in log.read_bytes() and b"Started server" in log.read_bytes()

    argv = [sys.executable, "-m", "worker.cli", "serve", "--port", "0", *options]
    # A quota that no test meets by its number of calls, unless it is about that.
    quota = {"JANITOR_HTTP_REQUESTS_PER_MINUTE": "1000000", "PYTHONUNBUFFERED": "1"}
    here = without_keys({**os.environ, **quota, **env})
    with started(Spec("serve", argv, here, listens, log=log)) as child:
        yield log.read_text().split("listening on ")[1].split()[0], child
