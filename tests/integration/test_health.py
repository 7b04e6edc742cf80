"""`janitor health`: what it makes of the files of running, stuck, ended and replaced processes.

That workers, beat and the HTTP service write them is shown with the health checks of Compose.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from worker.health import KINDS, Heart, probe

MINUTE = timedelta(minutes=1)
BEATS = """
import sys, datetime, pathlib
from worker.health import Heart
heart = Heart("worker", pathlib.Path(sys.argv[1]), datetime.timedelta(seconds=float(sys.argv[2])))
heart.beat(sys.argv[3])
print("beaten", flush=True)
sys.stdin.read()
"""


@contextmanager
def process(folder: Path, seconds: float = 60, trouble: str = "") -> Iterator[int]:
    """A process that has beaten once and lives on."""
    argv = [sys.executable, "-c", BEATS, str(folder), str(seconds), trouble]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout
        assert running.stdin
        assert running.stdout.readline() == "beaten\n"
        yield running.pid
        running.stdin.close()


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_which_none_runs_is_unhealthy(tmp_path, kind):
    # Given other kinds only,
    for other in set(KINDS) - {kind}:
        Heart(other, tmp_path, MINUTE).beat()
    # when it is asked for this kind, then it says that there is none.
    is_healthy, line = probe(kind, tmp_path)
    assert not is_healthy
    assert "none has reported" in line


def test_all_processes_of_a_kind_count(tmp_path):
    # Given two healthy processes,
    with process(tmp_path), process(tmp_path):
        assert probe("worker", tmp_path) == (True, "worker: healthy (2 processes)")
        # when a third one has not beaten for longer than it may, then the line names it;
        with process(tmp_path, seconds=0) as stuck:
            is_healthy, line = probe("worker", tmp_path)
            assert not is_healthy
            assert f"process {stuck}: no sign" in line
        # when that one has ended, then it does not count.
        assert probe("worker", tmp_path)[0]


def test_a_process_that_says_what_is_wrong_is_unhealthy(tmp_path):
    with process(tmp_path, trouble="4 slots do not come back") as pid:
        assert probe("worker", tmp_path) == (False, f"worker: process {pid}: 4 slots do not come back")


def test_the_number_of_an_ended_process_may_be_used_again(tmp_path):
    # Given the file of an earlier process that had this process's number,
    Heart("beat", tmp_path, MINUTE).beat()
    (file,) = (tmp_path / "health").iterdir()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"started": "1"}), encoding="utf-8")
    # when it is asked, then that file does not count.
    assert not probe("beat", tmp_path)[0]


def test_files_of_ended_processes_are_removed_by_the_next_one(tmp_path):
    with process(tmp_path):
        pass
    with process(tmp_path) as pid:
        assert [file.name.rpartition(".")[2] for file in (tmp_path / "health").iterdir()] == [str(pid)]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"pid": 1}'])
def test_a_file_that_cannot_be_read_does_not_count(tmp_path, text):
    Heart("beat", tmp_path, MINUTE).beat()
    (file,) = (tmp_path / "health").iterdir()
    file.write_text(text, encoding="utf-8")
    assert not probe("beat", tmp_path)[0]


def test_only_its_user_can_read_it(tmp_path):
    Heart("beat", tmp_path / "state", MINUTE).beat()
    (file,) = (tmp_path / "state" / "health").iterdir()
    made = (tmp_path / "state", file.parent, file)
    assert [oct(one.stat().st_mode)[-3:] for one in made] == ["700", "700", "600"]


def test_a_folder_that_cannot_be_written_stops_no_work(tmp_path):
    (tmp_path / "state").write_text("a file", encoding="utf-8")
    Heart("worker", tmp_path / "state", MINUTE).beat()


def test_the_command_says_it_in_one_line_and_its_exit_code(tmp_path):
    argv = [sys.executable, "-m", "worker.cli", "health", "worker"]
    env = os.environ | {"JANITOR_STATE_DIR": str(tmp_path)}

    def asked() -> tuple[int, str]:
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    code, line = asked()
    assert (code, line.count("\n")) == (1, 1)
    with process(tmp_path):
        assert asked() == (0, "worker: healthy (1 process)\n")


def test_the_command_loads_neither_celery_nor_redis_nor_the_settings():
    unwanted = "{'celery', 'redis', 'pydantic', 'structlog'}"
    text = f"import sys, worker.cli.health; print(sorted({unwanted} & {{*sys.modules}}))"
    assert (
        subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout == "[]\n"
    )
