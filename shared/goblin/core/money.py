"""Conversion of amounts from and to whole micro-dollars."""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal

USD_MICROS = 1_000_000


def to_micros(amount: Decimal) -> int:
    """Convert dollars to micro-dollars, rounded up so that spending is never understated."""
    return int((amount * USD_MICROS).to_integral_value(ROUND_CEILING))


def plain_usd(micros: int) -> str:
    """Format an amount for a machine, exactly: `12.500000`."""
    dollars, rest = divmod(abs(micros), USD_MICROS)
    return f"{'-' if micros < 0 else ''}{dollars}.{rest:06d}"


def show_usd(micros: int) -> str:
    """Format an amount for a person, exactly: `$12.50`, `-$0.000001`."""
    dollars, rest = divmod(abs(micros), USD_MICROS)
    digits = f"{rest:06d}"
    return f"{'-' if micros < 0 else ''}${dollars:,}.{digits[:2]}{digits[2:].rstrip('0')}"
