"""Network namespaces: hosts of their own on this machine, so that only the test has its network cut."""

import ctypes
import os
import shutil
import socket
import subprocess
import threading
from contextlib import contextmanager

import pytest


def ip(*arguments):
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@contextmanager
def or_skip():
    """Skips the test if this machine cannot have what is made inside."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("network namespaces cannot be made: that takes root and the command ip")
    try:
        yield
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces cannot be made: {getattr(error, 'stderr', None) or error}")


@contextmanager
def namespace(role):
    """The name of a new namespace, which is gone at the end."""
    name = f"janitor-{os.getpid()}-{role}"
    ip("netns", "add", name)
    try:
        yield name
    finally:
        ip("netns", "del", name)


def listener_in(namespace, address):
    """A socket that listens in a namespace. Made in a thread of its own, which alone enters the namespace."""
    made = []

    def listen():
        with open(f"/run/netns/{namespace}") as file:
            if not ctypes.CDLL(None).setns(file.fileno(), 0):
                made.append(socket.create_server((address, 0)))

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    if not made:
        raise OSError(f"the namespace {namespace} cannot be entered")
    return made[0]
