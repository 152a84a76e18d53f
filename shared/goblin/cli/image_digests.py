"""Write the digests of pushed images where Terraform reads them. Run by cloudbuild.yaml: `python -m`.

Standard library only: it runs in a step that has nothing else.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class NoDigest(Exception):
    """A report names no digest; the message says which report."""


def of_pack(report: str) -> str:
    """Return the digest in the `report.toml` of a `pack build --publish`. Raises `NoDigest`."""
    image = _parsed(tomllib.loads, report).get("image")
    return _checked(image.get("digest") if isinstance(image, dict) else None)


def of_buildx(metadata: str) -> str:
    """Return the digest in the metadata file of a `docker buildx build --push`. Raises `NoDigest`."""
    return _checked(_parsed(json.loads, metadata).get("containerimage.digest"))


def _parsed(parse: Any, text: str) -> dict[str, Any]:
    try:
        found = parse(text)
    except ValueError as error:
        raise NoDigest(f"it cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise NoDigest("it is not a table")
    return found


def _checked(digest: object) -> str:
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise NoDigest("it names no digest, so the image was not pushed")
    return digest


READERS = {"pack": of_pack, "buildx": of_buildx}


def main(words: Sequence[str] | None = None) -> int:
    """Read `VARIABLE=IMAGE=REPORT` of each image and write the variables; return the exit code."""
    parser = argparse.ArgumentParser(prog="image_digests", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="Terraform's variable file to write, in JSON.")
    for kind in READERS:
        parser.add_argument(
            f"--{kind}", action="append", default=[], metavar="VARIABLE=IMAGE=REPORT", help="An image. Repeatable."
        )
    said = vars(parser.parse_args(words))
    variables = {}
    for kind, read in READERS.items():
        for entry in said[kind]:
            variable, image, report = entry.split("=", 2)
            try:
                variables[variable] = f"{image}@{read(Path(report).read_text(encoding='utf-8'))}"
            except (OSError, NoDigest) as error:
                print(f"goblin: {report} of {image}: {error}", file=sys.stderr)
                return 1
    said["out"].write_text(json.dumps(variables, indent=2) + "\n", encoding="utf-8")
    for variable, image in variables.items():
        print(f"{variable} = {image}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
