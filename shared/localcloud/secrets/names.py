"""Resource names: `projects/P`, `projects/P/secrets/S`, `projects/P/secrets/S/versions/V`."""

import re

from localcloud.secrets.errors import invalid, unkept

_SECRET_ID = re.compile(r"[A-Za-z0-9_-]{1,255}")
_PROJECT = re.compile(r"projects/[^/]{1,128}")
_SECRET = re.compile(r"(projects/[^/]{1,128}/secrets/[A-Za-z0-9_-]{1,255})")
_VERSION = re.compile(_SECRET.pattern + r"/versions/([A-Za-z0-9_-]{1,64})")


def project(name: str) -> str:
    """Return the project's name; any other shape is refused."""
    _refuse_regions(name)
    if not _PROJECT.fullmatch(name):
        raise invalid(f"The parent must look like projects/P, not {name!r}.")
    return name


def secret(name: str) -> str:
    """Return the secret's name; any other shape is refused."""
    _refuse_regions(name)
    if not _SECRET.fullmatch(name):
        raise invalid(f"A secret's name must look like projects/P/secrets/S, not {name!r}.")
    return name


def version(name: str) -> tuple[str, str]:
    """Return the secret's name and the version: a number, `latest` or an alias."""
    _refuse_regions(name)
    match = _VERSION.fullmatch(name)
    if match is None:
        raise invalid(f"A version's name must look like projects/P/secrets/S/versions/V, not {name!r}.")
    return match[1], match[2]


def child(parent: str, secret_id: str) -> str:
    """Return the name of a new secret."""
    if not _SECRET_ID.fullmatch(secret_id):
        raise invalid("A secret id has 1 to 255 letters, digits, hyphens and underscores.")
    return f"{project(parent)}/secrets/{secret_id}"


def _refuse_regions(name: str) -> None:
    if "/locations/" in name:
        raise unkept("A regional secret")
