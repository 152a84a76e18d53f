"""What a job has cost by now, and what it comes to: what is spent, and its price over the time left."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from goblin.jobs.domain.job import ENDED, InstanceReservation, Job

_HOUR_S = 3600
LEFT_S_MAX = 10 * 366 * 24 * _HOUR_S
"""Speeds that would take longer are no speeds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobCostForecast:
    """Where a job's money and time are going, if nothing happens to it."""

    spent_usd_micros: int
    """By now: what is settled, and what the instances cost whose end or bill is not known yet."""
    price_usd_micros_per_hour: int
    """Of what runs now; of a job that waits, of what it ran on last."""
    left_s: float | None
    """Work left at the speed that was measured last; None: it has no speed or no known end."""
    at_end_usd_micros: int | None
    """None: nobody can say. Of an ended job what it cost."""


def forecast(job: Job, *, now: datetime) -> JobCostForecast:
    """Follow a job to its end at its last speed and price; losses on the way are not foreseen.

    Args:
        job: As it is. Its speed and steps are its host's words: good enough to show, not to decide by.
        now: Aware UTC.
    """
    spent = job.spent_usd_micros + sum(_cost(reservation, now) for reservation in job.reservations)
    price = _price(job)
    if job.state in ENDED:
        return JobCostForecast(
            spent_usd_micros=spent, price_usd_micros_per_hour=price, left_s=0.0, at_end_usd_micros=spent
        )
    left_s = _left_s(job)
    at_end = None if left_s is None else spent + _share(price, left_s)
    if price == 0 and job.lease is not None:
        at_end = spent  # However long it takes.
    return JobCostForecast(
        spent_usd_micros=spent, price_usd_micros_per_hour=price, left_s=left_s, at_end_usd_micros=at_end
    )


def _cost(reservation: InstanceReservation, now: datetime) -> int:
    """What an instance comes to so far; never more than was put aside for it."""
    lasted = max(timedelta(), (reservation.ended_at or now) - reservation.since)
    cost = reservation.start_usd_micros + _share(reservation.price_usd_micros_per_hour, lasted.total_seconds())
    return min(cost, reservation.reserved_usd_micros)


def _share(price_usd_micros_per_hour: int, seconds: float) -> int:
    """Rounded up to the micro-dollar."""
    return -(-price_usd_micros_per_hour * round(seconds * 1000) // (_HOUR_S * 1000))


def _price(job: Job) -> int:
    running = [
        reservation.price_usd_micros_per_hour for reservation in job.reservations if reservation.ended_at is None
    ]
    if running:
        return sum(running)
    if job.placement is None:
        return 0
    offer = job.placement.offer
    # A machine may be offered both ways under one id.
    chosen = (one for one in job.placement.candidates if (one.offer_id, one.spot) == (offer.offer_id, offer.spot))
    known = [one.all_in_usd_micros_per_hour for one in chosen if one.all_in_usd_micros_per_hour is not None]
    return known[0] if known else job.placement.run.price_usd_micros_per_hour


def _left_s(job: Job) -> float | None:
    speed = job.progress.steps_per_s if job.progress else None
    if speed is None or job.total is None or not speed > 0:
        return None
    left_s = max(0, job.total - job.step) / speed
    return left_s if left_s <= LEFT_S_MAX else None
