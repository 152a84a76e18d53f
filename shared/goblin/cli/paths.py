"""Paths: the checkout or the installed wheel, and the data folder with its lock."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
import stat
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

_PACKAGE = Path(str(resources.files("goblin")))
_CHECKOUT = _PACKAGE.parent.parent


class Held(Exception):
    """Another `goblin up` holds the data folder."""

    def __init__(self, folder: Path, holder: dict[str, Any]) -> None:
        self.holder = holder
        who = f"goblin up (process {holder['pid']}, {holder['url']})" if holder else "another process"
        super().__init__(f"{folder} is in use by {who}. Stop it, or choose another folder with --data DIR.")


def checkout() -> Path | None:
    """Return the root of the checkout that this code runs from; None when installed from a wheel."""
    return _CHECKOUT if (_CHECKOUT / "functions" / "__init__.py").is_file() else None


def functions_folder() -> Path:
    """Return the folder of function files: `functions/` in a checkout, inside the package in a wheel."""
    root = checkout()
    return root / "functions" if root else _PACKAGE / "_bundle" / "functions"


def declaration() -> Path:
    """Return the JSON file that declares topics, schedules and paths."""
    return _PACKAGE / "cloud.json"


def default_model() -> Path:
    """Return the path of the included model, goblin-tiny."""
    return Path(str(resources.files("goblin_llamacpp"))) / "models" / "goblin-tiny.gguf"


def data_folder(named: Path | None) -> Path:
    """Return the folder of all local state: `named`, else `.goblin` in a checkout, else the user's data folder."""
    if named is not None:
        return named.absolute()
    if root := checkout():
        return root / ".goblin"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "goblin"


class NotOurs(Exception):
    """The data folder cannot be one person's own; the message says why and what to do."""


OURS = (
    "api-key", "cloud", "environment.json", "gpus", "holder.json", "instances", "llamacpp-key", "lock", "logs",
    "service-account.json",
)  # fmt: skip
"""What `goblin up` keeps in a data folder. What else lies there, if a person chose a folder in use, is left alone."""
GROUP_AND_OTHERS = 0o077


class DataFolder:
    """The data folder, held by one `goblin up` at a time.

    The lock belongs to the open file, and children inherit it. It is free only when the last of them has ended, so that
    two runs never write to one database.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def hold(self) -> int:
        """Lock the folder, creating it if needed, and return the lock's file descriptor for children to inherit.

        All that earlier runs kept in it is closed to others, whatever the folder was before.

        Raises:
            Held: Another process holds it.
            NotOurs: Others can write to it, or have.
            OSError: It cannot be created or written.
        """
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._check_owner()
        self.path.chmod(self.path.stat().st_mode & 0o7777 & ~GROUP_AND_OTHERS)
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise Held(self.path, self._holder()) from None
        os.set_inheritable(lock, True)
        self._lock = lock
        try:
            for name in OURS:
                _close_to_others(self.path / name)
        except BaseException:
            os.close(lock)
            raise
        return lock

    def _check_owner(self) -> None:
        status = self.path.stat()
        if status.st_uid != os.geteuid():
            raise NotOurs(f"{self.path} belongs to another user. Choose another folder with --data DIR.")
        if status.st_mode & stat.S_ISVTX:
            raise NotOurs(f"{self.path} is shared by all users. Choose a folder inside it with --data DIR.")

    def sign(self, url: str) -> None:
        """Write down who holds the lock, for the error message of the next `goblin up`."""
        self._write("holder.json", json.dumps({"pid": os.getpid(), "url": url}))

    def _holder(self) -> dict[str, Any]:
        with suppress(OSError, json.JSONDecodeError):
            said = json.loads((self.path / "holder.json").read_text())
            if isinstance(said, dict) and {"pid", "url"} <= said.keys():
                return said
        return {}

    def held(self) -> bool:
        """Whether a process holds the folder now."""
        try:
            lock = os.open(self.path / "lock", os.O_RDWR)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        else:
            return False
        finally:
            os.close(lock)

    def api_key(self) -> str:
        """Return the local API key; create and keep it on first use."""
        path = self.path / "api-key"
        with suppress(FileNotFoundError):
            if key := path.read_text().strip():
                return key
        key = f"gob-local-{secrets.token_urlsafe(24)}"
        self._write("api-key", key)
        return key

    def new_llamacpp_key(self) -> tuple[str, Path]:
        """Make the key of this run's model server; return it, and the file that the server reads it from."""
        key = secrets.token_urlsafe(32)
        self._write("llamacpp-key", key)
        return key, self.path / "llamacpp-key"

    def write_credentials(self, account: dict[str, str]) -> Path:
        """Write a service account's key file in the format of Google's clients; return its path."""
        self._write("service-account.json", json.dumps(account, indent=1))
        return self.path / "service-account.json"

    def write_environment(self, variables: dict[str, str]) -> None:
        """Write what `goblin env` prints; the file's presence means that everything is ready."""
        self._write("environment.json", json.dumps(variables, indent=1))

    def forget_environment(self) -> None:
        """Delete what `goblin env` prints, because Goblin is not ready or has stopped."""
        (self.path / "environment.json").unlink(missing_ok=True)

    def environment(self) -> dict[str, str] | None:
        """Return what `goblin env` prints; None unless a `goblin up` is running and ready."""
        if not self.held():
            return None
        try:
            said = json.loads((self.path / "environment.json").read_text())
        except FileNotFoundError:
            return None
        return {str(name): str(value) for name, value in said.items()}

    def _write(self, name: str, text: str) -> None:
        """Replace a file atomically, readable by its owner only."""
        draft = self.path / f".{name}.{os.getpid()}"
        draft.unlink(missing_ok=True)  # Of a killed process with the same id; its mode could be another.
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        draft.replace(self.path / name)


def _close_to_others(top: Path) -> None:
    """Take all rights on a file, or on a folder and what is in it, from group and others. Links are not followed.

    Raises:
        NotOurs: Another user made it, while the folder was open to all.
    """
    left = [top]
    while left:
        path = left.pop()
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                continue  # A job's own work. The folders above it are closed, so it is too.
            raise
        if status.st_uid != os.geteuid():
            raise NotOurs(f"{path} was made by another user. Look at it, then delete it.")
        if stat.S_ISLNK(status.st_mode):
            continue
        if status.st_mode & GROUP_AND_OTHERS:
            path.chmod(status.st_mode & 0o7777 & ~GROUP_AND_OTHERS)
        if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_IRUSR:
            left += path.iterdir()
