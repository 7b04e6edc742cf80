"""Confines a process as a systemd unit does, without systemd; what stops no command from working is left out.

`unshare --mount --ipc --uts python confined.py PLAN`, where PLAN is a `Plan` as JSON.
"""

import ctypes
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict

INSTALLED = "/opt/finetune-janitor"  # where the units expect it
USER = 61_234  # nobody's, as systemd takes one for DynamicUser=yes
_HIDDEN = ("/dev", "/home", "/opt", "/root", "/run", "/tmp", "/var/lib", "/var/tmp")
_DEVICES = ("/dev/full", "/dev/null", "/dev/random", "/dev/urandom", "/dev/zero")
# From errno.h, sched.h, seccomp.h, socket.h and mman.h.
_ALLOW, _KILL, _EPERM, _EAFNOSUPPORT, _ENOSYS = 0x7FFF0000, 0x80000000, 0x50001, 0x50061, 0x50026
_EQUAL, _MASKED_EQUAL = 4, 7
_NAMESPACES = (0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
_FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10}
_EXEC, _WRITE_AND_EXEC, _SHM_EXEC = 4, 6, 0o100000


class Plan(TypedDict):
    command: list[str]
    environment: dict[str, str]
    mounts: dict[str, str]  # the places of what the command sees of `_HIDDEN`, and what is mounted there
    read_only: list[str]
    tasks: int
    families: list[str]
    system_calls: list[str]


def system_calls(filters: Iterable[str]) -> list[str]:
    """The names that SystemCallFilter= lines allow, as this machine's systemd resolves them."""
    text = subprocess.run(["systemd-analyze", "syscall-filter"], capture_output=True, text=True, check=True).stdout
    groups = {name: re.findall(r"^ +([@\w-]+)$", body, re.M) for name, body in _GROUP.findall(text)}

    def within(name: str) -> set[str]:
        return {name} if name[0] != "@" else set().union(*map(within, groups[name]))

    allowed = within("@default")
    for line in filters:
        named = set().union(*map(within, line.lstrip("~").split()))
        allowed = allowed - named if line[0] == "~" else allowed | named
    return sorted(allowed)


_GROUP = re.compile(r"^(@\S+)\n((?: .*\n)*)", re.M)


def _mount(*argv: str) -> None:
    subprocess.run(["mount", *argv], check=True)


def _mount_all(mounts: dict[str, str], read_only: Iterable[str]) -> None:
    mounts = mounts | {sys.base_prefix: sys.base_prefix} | {name: name for name in _DEVICES}
    # Opened first: much of it is about to be hidden.
    opened = {place: f"/proc/{os.getpid()}/fd/{os.open(source, os.O_PATH)}" for place, source in mounts.items()}
    for folder in _HIDDEN:
        _mount("-t", "tmpfs", "-o", f"mode={1777 if folder.endswith('tmp') else 755}", "tmpfs", folder)
    for place, source in opened.items():
        Path(place).touch() if place in _DEVICES else Path(place).mkdir(parents=True, exist_ok=True)
        _mount("--no-canonicalize", "--bind", source, place)
    for place in ("/", *read_only):
        _mount("-o", "remount,bind,ro", place)


class _Argument(ctypes.Structure):
    _fields_ = [("number", ctypes.c_uint), ("how", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def _filter(default: int, rules: Iterable[tuple[Any, ...]]) -> None:
    """Confine this process for good. rules: what happens, at which system call, with which argument."""
    seccomp = ctypes.CDLL("libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    context = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(default)))
    for action, name, *argument in rules:
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # else not of this processor
            fits = ctypes.byref(_Argument(*argument)) if argument else None
            count = int(bool(argument))
            assert not seccomp.seccomp_rule_add_array(context, ctypes.c_uint32(action), number, count, fits), name
    assert not seccomp.seccomp_load(context)


def main(plan: Plan) -> None:
    _mount_all(plan["mounts"], plan["read_only"])
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_NPROC, (plan["tasks"], plan["tasks"]))
    os.setgroups([])
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    known = [_FAMILIES[name] for name in plan["families"]]
    # A filter for each setting, as systemd has it; the strictest counts. clone3: its flags are in memory.
    _filter(_ALLOW, [(_EAFNOSUPPORT, "socket", 0, _EQUAL, n) for n in range(64) if n not in known])
    _filter(_ALLOW, [(_ENOSYS, "clone3"), (_EPERM, "unshare"), (_EPERM, "setns")])
    _filter(_ALLOW, [(_EPERM, "clone", 0, _MASKED_EQUAL, flag, flag) for flag in _NAMESPACES])
    no_new_code = {"mmap": _WRITE_AND_EXEC, "mprotect": _EXEC, "pkey_mprotect": _EXEC, "shmat": _SHM_EXEC}
    _filter(_ALLOW, [(_EPERM, name, 2, _MASKED_EQUAL, flag, flag) for name, flag in no_new_code.items()])
    _filter(_KILL, [(_ALLOW, name) for name in plan["system_calls"]])
    os.execve(plan["command"][0], plan["command"], plan["environment"])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
