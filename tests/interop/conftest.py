"""These need node and celery-node (`make interop` fetches it); without they are left out, with a line."""

import shutil
from pathlib import Path

HERE = Path(__file__).parent
CLIENT = HERE / "node_modules" / "celery-node"


def pytest_collection_modifyitems(config, items):
    if shutil.which("node") and CLIENT.exists():
        return
    ours = [item for item in items if HERE in item.path.parents]
    items[:] = [item for item in items if item not in ours]
    config.hook.pytest_deselected(items=ours)


def pytest_report_header():
    if not (shutil.which("node") and CLIENT.exists()):
        return "interop: left out, node or celery-node is not here (`make interop` fetches it)"
    return None
