"""Where `/models/load` may load from: folders and addresses that the operator named.

A caller that could name any path or address would learn which files this machine has, what their digests are, and what
answers inside its network.
"""

from dataclasses import dataclass
from pathlib import Path, PurePath
from urllib.parse import unquote, urlsplit

import httpx

from .errors import invalid

GOOGLE = "https://storage.googleapis.com/"
"""The address of Cloud Storage's signed URLs."""


@dataclass(frozen=True, slots=True)
class Places:
    """Folder and addresses that a caller's `path` and `url` must lie in."""

    folder: Path | None = None
    """None allows no path."""
    addresses: tuple[str, ...] = (GOOGLE,)
    """Beginnings of URLs, each up to the end of a path segment: `https://host/bucket/`, `gs://bucket`."""

    def check_path(self, given: str) -> str:
        """Return the file's path, with links resolved.

        Raises:
            ApiError: 400; the path lies elsewhere, or a link in the folder leads elsewhere. A path elsewhere is not
                looked at, and both answers are the same, so that neither says whether a file exists.
        """
        if self.folder is None:
            raise invalid("Paths are refused. Start the server with --models-dir.", param="path")
        outside = invalid("`path` is outside the folder of --models-dir.", param="path")
        folder = Path(self.folder).absolute()
        named = folder / given
        if ".." in PurePath(given).parts or not any(named.is_relative_to(top) for top in (folder, folder.resolve())):
            raise outside
        try:
            path = named.resolve()
        except (OSError, RuntimeError, ValueError):  # A loop of links, or a byte that no path has.
            raise outside from None
        if not path.is_relative_to(folder.resolve()):
            raise outside
        return str(path)

    def check_url(self, given: str) -> str:
        """Return the URL as it will be asked for.

        Raises:
            ApiError: 400; the URL lies elsewhere, or it could be read in two ways.
        """
        outside = invalid("`url` is at no address of --load-from.", param="url")
        try:
            wanted = _Address.read(given)
            allowed = [_Address.read(address) for address in self.addresses]
        except (ValueError, httpx.InvalidURL):
            raise outside from None
        if not any(wanted.is_in(address) for address in allowed):
            raise outside
        return wanted.url


@dataclass(frozen=True, slots=True)
class _Address:
    url: str
    origin: tuple[str, str, int | None]
    path: str
    """As it is sent, so that nothing is decoded that the server may tell apart."""

    @classmethod
    def read(cls, text: str) -> "_Address":
        """Read a URL as the client will.

        Raises:
            ValueError: It has a user name, a fragment, a step upwards or an odd character, or is no URL.
        """
        if not text.isascii() or not text.isprintable() or "\\" in text or " " in text:
            raise ValueError(text)
        parts = urlsplit(text)
        if parts.scheme == "gs":
            odd = bool(parts.query or parts.fragment or "@" in parts.netloc or not parts.netloc)
            found = cls(text, ("gs", parts.netloc, None), parts.path)
        else:
            read = httpx.URL(text)
            odd = bool(read.userinfo or read.fragment or not read.host) or read.scheme not in ("http", "https")
            path = read.raw_path.partition(b"?")[0].decode()
            found = cls(str(read), (read.scheme, read.host, read.port), path)
        # Also as they were sent: the client takes out the steps that it sees.
        pieces = unquote(f"{parts.path}/{found.path}").split("/")
        if odd or "." in pieces or ".." in pieces:
            raise ValueError(text)
        return found

    def is_in(self, place: "_Address") -> bool:
        top = place.path if place.path.endswith("/") else f"{place.path}/"
        return self.origin == place.origin and self.path.startswith(top)
