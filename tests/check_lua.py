"""Check the ledger's Lua scripts as Redis gets them: by luacheck if it is installed, else Redis compiles each."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import redis

from tasks.ledger.scripts import script_names, script_text
from worker.local import embedded

# Each script has the shared parts that it needs, not every function of them.
_LUACHECK = ["luacheck", "--std", "lua51+redis", "--no-max-line-length", "--ignore", "211", "--quiet"]
_REDIS = "stds.redis = {read_globals = {'redis', 'cjson', 'ARGV'}}\n"


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for script in script_names():
            (folder / f"{script}.lua").write_text(script_text(script), encoding="utf-8")
        if shutil.which("luacheck"):
            (folder / "luacheckrc").write_text(_REDIS, encoding="utf-8")
            files = sorted(map(str, folder.glob("*.lua")))
            command = [*_LUACHECK, "--config", str(folder / "luacheckrc"), *files]
            return subprocess.run(command, check=False).returncode
        with embedded.running(folder) as url, redis.Redis.from_url(url) as client:
            for script in script_names():
                client.script_load(script_text(script))
    print("luacheck is not installed: Redis has compiled each script")
    return 0


if __name__ == "__main__":
    sys.exit(main())
