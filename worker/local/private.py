"""Folders and files that belong to this user alone, whatever the umask."""

import os
from pathlib import Path


class NotPrivate(OSError):
    """Others may enter the folder, or change what is in it; `strerror` says why."""


def make_private(folder: Path, *, ours: str) -> None:
    """Make the folder if it is not there, and close it to others if it is ours.

    ours: the name of a file that shows that we made the folder. One with other things in it is not changed: it may
    be a home. Raises `OSError`.
    """
    before = os.umask(0o077)  # for its parents, too
    try:
        folder.mkdir(parents=True, exist_ok=True)
    finally:
        os.umask(before)
    check_owned(folder)
    if folder.stat().st_mode & 0o077:
        # Processes other than `janitor up` keep their heartbeats there.
        if {one.name for one in folder.iterdir()} - {"health"} and not (folder / ours).exists():
            raise NotPrivate(None, "others may look into it, and it was not made by the janitor")
        folder.chmod(0o700)


def check_owned(folder: Path) -> None:
    """Raise `OSError` if it is not a folder of this user's that only this user can write to."""
    link, found = folder.lstat(), folder.stat()
    if not folder.is_dir():
        raise NotPrivate(None, "it is not a folder")
    if not {link.st_uid, found.st_uid} == {os.getuid()}:
        raise NotPrivate(None, "it belongs to another user")
    if found.st_mode & 0o022:
        raise NotPrivate(None, "others may write to it")


def opener(path: str, flags: int) -> int:
    """For `open`: a new file is this user's alone, and a symbolic link is not followed."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)
