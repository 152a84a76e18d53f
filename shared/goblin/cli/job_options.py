"""Option types of `goblin jobs submit`: dollars, deadlines such as `+10h`, GPUs, parameters, gigabytes."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any

import click

from goblin.jobs.domain.instances import gpu_name

USD_MAX = 1_000_000
HOURS_MAX = 24 * 365
GB, MIB = 10**9, 2**20
_UNITS_S = {"m": 60, "h": 3600, "d": 86400}
_SPAN = re.compile(r"^\+(\d{1,6}(?:\.\d{1,3})?)([mhd])$")
_NAME = re.compile(r"^[A-Za-z_][A-Za-z0-9_.-]{0,63}$")


class Dollars(click.ParamType):
    """Amount of dollars above 0: `0.80` or `$0.80`."""

    name = "dollars"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Decimal:
        try:
            amount = Decimal(str(value).removeprefix("$"))
        except InvalidOperation:
            self.fail(f"{value!r} is not an amount of dollars; write it as 0.80", param, ctx)
        # A comparison with a NaN would raise.
        if not amount.is_finite() or not 0 < amount <= USD_MAX:
            self.fail(f"{value!r} is not above 0 and at most {USD_MAX} dollars", param, ctx)
        return amount


class Deadline(click.ParamType):
    """Time from now (`+10h`; units `m`, `h`, `d`) or ISO time; without a zone it is in this machine's zone."""

    name = "when"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        now = datetime.now(UTC)
        if span := _SPAN.match(value):
            hours = float(span[1]) * _UNITS_S[span[2]] / 3600
            if not 0 < hours <= HOURS_MAX:
                self.fail(f"{value!r} is not within a year from now; write a shorter time", param, ctx)
            return (now + timedelta(hours=hours)).replace(microsecond=0)
        try:
            at = datetime.fromisoformat(value).astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is not a time; write +10h, or 2026-12-01T18:00", param, ctx)
        if at <= now:
            self.fail(f"{value!r} is in the past: it is {now:%Y-%m-%dT%H:%M}Z now", param, ctx)
        return at


class Gpu(click.ParamType):
    """GPU model as its provider names it; `RTX 4090` becomes `RTX_4090`."""

    name = "gpu"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        name = gpu_name(str(value))
        if not re.fullmatch(r"[A-Z0-9][A-Z0-9._-]{0,63}", name):
            self.fail(f"{value!r} is not a GPU model; write it as RTX_4090 or H100_SXM", param, ctx)
        return name


class Parameter(click.ParamType):
    """Task parameter such as `lr=0.001`: the value is JSON if it parses as JSON, else text."""

    name = "name=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        if isinstance(value, tuple):
            return value
        name, equals, text = str(value).partition("=")
        if not equals or not _NAME.match(name):
            self.fail(f"{value!r} is not a parameter; write it as lr=0.001 or layers='[2, 3]'", param, ctx)
        try:
            return name, json.loads(text, parse_constant=_no_number)
        except ValueError:
            return name, text


def _no_number(text: str) -> Any:
    """Refuse `NaN` and `Infinity`: they are not JSON, although Python parses them."""
    raise ValueError(text)


def memory_mib(gigabytes: float) -> int:
    """Convert gigabytes of 10^9 bytes, as sellers count them, to MiB: a card sold as 24 GB reports 24,564 MiB."""
    return int(gigabytes * GB / MIB)
