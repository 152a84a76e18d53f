"""Forecast of a job's cost: what is spent so far, plus its price over the time left."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from goblin.jobs.domain.job import ENDED, InstanceReservation, Job

_HOUR_S = 3600
LEFT_S_MAX = 10 * 366 * 24 * _HOUR_S
"""Ten years: a speed that would take longer gives no forecast."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JobCostForecast:
    """Cost and time left of a job, if no attempt is lost."""

    spent_usd_micros: int
    """Spent so far: settled cost, plus the cost of instances that are not settled yet."""
    price_usd_micros_per_hour: int
    """Price of the running instances; of a job that waits, the price of its last placement."""
    left_s: float | None
    """Time for the work left at the last measured speed; None: the speed or the total is unknown."""
    at_end_usd_micros: int | None
    """Cost at the end; None: unknown. For an ended job its actual cost."""


def forecast(job: Job, *, now: datetime) -> JobCostForecast:
    """Forecast a job's cost at its last speed and price, without losses.

    Args:
        job: The job as read. Its speed and steps are reported by an untrusted host: show the forecast, do not decide
            by it.
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
        at_end = spent  # A free instance: the time left does not matter.
    return JobCostForecast(
        spent_usd_micros=spent, price_usd_micros_per_hour=price, left_s=left_s, at_end_usd_micros=at_end
    )


def _cost(reservation: InstanceReservation, now: datetime) -> int:
    """Compute the cost of an instance so far; never more than is reserved for it."""
    lasted = max(timedelta(), (reservation.ended_at or now) - reservation.since)
    cost = reservation.start_usd_micros + _share(reservation.price_usd_micros_per_hour, lasted.total_seconds())
    return min(cost, reservation.reserved_usd_micros)


def _share(price_usd_micros_per_hour: int, seconds: float) -> int:
    """Compute the price of some seconds, rounded up to the micro-dollar."""
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
    # A machine may be offered on spot and on demand under one id.
    chosen = (one for one in job.placement.candidates if (one.offer_id, one.spot) == (offer.offer_id, offer.spot))
    known = [one.all_in_usd_micros_per_hour for one in chosen if one.all_in_usd_micros_per_hour is not None]
    return known[0] if known else job.placement.run.price_usd_micros_per_hour


def _left_s(job: Job) -> float | None:
    speed = job.progress.steps_per_s if job.progress else None
    if speed is None or job.total is None or not speed > 0:
        return None
    left_s = max(0, job.total - job.step) / speed
    return left_s if left_s <= LEFT_S_MAX else None
