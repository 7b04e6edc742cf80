"""The HTTP service against its own description: whatever is sent, it answers as described, never with a 500."""

import subprocess
import sys
from pathlib import Path

from tests.acceptance.http import secret_of, served, token_file
from tests.processes import environment
from worker.local.embedded import running

# What the rules refuse beyond the shapes is no failure: see `NewRequest.checked`. `Allow` names the methods of one
# of the routes of a path, as Starlette does.
EXCLUDED = "positive_data_acceptance,allow_header_conformance"


def test_no_input_finds_a_500_or_an_answer_that_is_not_described(tmp_path):
    with running(tmp_path / "redis") as url:
        env = environment(url, JANITOR_STATE_DIR=tmp_path, JANITOR_TOKENS_FILE=token_file(tmp_path))
        with served(env, tmp_path / "log") as (base, _):
            (tmp_path / "schemathesis.toml").write_text('[parameters]\n"query.wait" = 0\n')
            argv = [
                str(Path(sys.executable).with_name("schemathesis")), "run", f"{base}/openapi.json",
                "--header", f"Authorization: Bearer {secret_of('boss')}", "--exclude-checks", EXCLUDED,
                "--max-examples", "15", "--generation-deterministic", "--no-color",
            ]  # fmt: skip
            done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    assert "19 selected / 19 total" in done.stdout
    assert "http.bug" not in (tmp_path / "log").read_text()
