"""Validation of names, labels and update masks, and pages of names, by production's rules.

Source: the field comments of `google.pubsub.v1` and https://cloud.google.com/pubsub/quotas, read 2026-11-23.
"""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence

from localcloud.pubsub.errors import invalid
from localcloud.pubsub.wire import Raw

DELETED_TOPIC = "_deleted-topic_"
LABELS_MAX = 64
PAGE_SIZE_MAX = 1000

_PROJECT = re.compile(r"projects/([^/\s]{1,128})")
_RESOURCE_ID = re.compile(r"(?!goog)[A-Za-z][A-Za-z0-9\-_.~+%]{2,254}")
_LABEL_KEY = re.compile(r"[^\W\dA-Z][\w\-]{0,62}")
_LABEL_VALUE = re.compile(r"[\w\-]{0,63}")


def check_name(collection: str, name: str) -> None:
    """Refuse a name that is not `projects/{project}/{collection}/{id}` with an id that production accepts."""
    project, _, rest = name.partition(f"/{collection}/")
    if not _PROJECT.fullmatch(project) or not _RESOURCE_ID.fullmatch(rest):
        raise invalid(f"Invalid [{collection}] name: (name={name[:512]})")


def check_project(project: str) -> None:
    """Refuse a name that is not `projects/{project}`."""
    if not _PROJECT.fullmatch(project):
        raise invalid(f"Invalid project name: (name={project[:512]})")


def check_labels(labels: Mapping[str, str]) -> None:
    """Refuse labels that no Google resource accepts: at most 64, lower case, at most 63 characters."""
    if len(labels) > LABELS_MAX:
        raise invalid(f"A resource has at most {LABELS_MAX} labels; this one has {len(labels)}.")
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value) or value != value.lower():
            raise invalid(f"Invalid label: {key[:80]!r}={value[:80]!r}")


def check_mask(request: str, resource: Raw, mask: Raw, mutable: frozenset[str]) -> Sequence[str]:
    """Return the fields that an update changes.

    Args:
        request: The request's name, for the message.
        resource: The resource, for its field names.
        mask: The FieldMask; nested paths select their top-level field.
        mutable: The fields that may change.
    """
    if not mask.paths:
        raise invalid(f"The update_mask in the {request} must be set, and must contain a non-empty paths list.")
    kind = resource.DESCRIPTOR.name
    fields = sorted({path.partition(".")[0] for path in mask.paths})
    for field in fields:
        if field not in resource.DESCRIPTOR.fields_by_name:
            raise invalid(
                f"Invalid update_mask provided in the {request}: '{field}' is not a known {kind} field. "
                "Note that field paths must be of the form 'push_config' rather than 'pushConfig'."
            )
        if field not in mutable:
            raise invalid(
                f"Invalid update_mask provided in the {request}: the '{field}' field in the {kind} is not mutable."
            )
    return fields


def apply_fields(target: Raw, source: Raw, fields: Sequence[str]) -> None:
    """Overwrite whole top-level fields; a field that `source` lacks is cleared."""
    patch = type(target)()
    patch.CopyFrom(source)
    for name in source.DESCRIPTOR.fields_by_name:
        if name not in fields:
            patch.ClearField(name)
    for field in fields:
        target.ClearField(field)
    target.MergeFrom(patch)


def page(names: Sequence[str], page_size: int, page_token: str) -> tuple[Sequence[str], str]:
    """Return one page of names in their order, and the token of the next page or an empty string."""
    if page_size < 0:
        raise invalid("page_size must not be negative.")
    after = _read_token(page_token) if page_token else ""
    left = sorted(name for name in names if name > after)
    size = min(page_size or PAGE_SIZE_MAX, PAGE_SIZE_MAX)
    some = left[:size]
    token = base64.urlsafe_b64encode(some[-1].encode()).decode() if len(left) > size else ""
    return some, token


def _read_token(token: str) -> str:
    try:
        return base64.urlsafe_b64decode(token.encode()).decode()
    except (binascii.Error, ValueError) as error:
        raise invalid("Invalid page token.") from error
