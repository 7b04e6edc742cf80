"""The wheel: both packages with all they need, and nothing else."""

import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    # Not isolated: an isolated build would fetch what is installed here already.
    argv = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_has_both_packages_the_scripts_and_the_types(wheel):
    names = set(ZipFile(wheel).namelist())
    source = {
        str(path.relative_to(ROOT))
        for package in ("tasks", "worker")
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".lua") or path.name == "py.typed"
    }
    assert {"tasks/ledger/lua/claim.lua", "tasks/py.typed", "worker/py.typed", "worker/cli/__init__.py"} <= source
    assert {name for name in names if ".dist-info/" not in name} == source


def test_the_wheel_says_that_it_is_not_to_be_uploaded(wheel):
    with ZipFile(wheel) as opened:
        texts = {Path(name).name: opened.read(name).decode() for name in opened.namelist() if "dist-info" in name}
    assert "Classifier: Private :: Do Not Upload" in texts["METADATA"]
    assert "janitor = worker.cli:main" in texts["entry_points.txt"]
    assert "LICENSE" in texts


def test_what_is_installed_from_the_wheel_works(wheel, tmp_path):
    with ZipFile(wheel) as opened:
        opened.extractall(tmp_path)
    code = (
        "import tasks, worker.cli; from tasks.ledger.scripts import script_names; "
        "print(tasks.__file__, len(script_names()))"
    )
    env = os.environ | {"PYTHONPATH": str(tmp_path)}
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, env=env, cwd="/", capture_output=True, text=True, timeout=30, check=False)
    scripts = [path for path in (ROOT / "tasks/ledger/lua").glob("*.lua") if not path.name.startswith("lib_")]
    assert done.stdout.split() == [str(tmp_path / "tasks/__init__.py"), str(len(scripts))], done.stderr
