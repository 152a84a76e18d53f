"""What was seen of pools and machines, kept from look to look."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from goblin.jobs.domain.market import InstanceRequirements, Listing, Offer
from goblin.jobs.policy.spot.market_history import (
    GAP,
    MACHINES_MAX,
    POOLS_MAX,
    MarketHistory,
    blame,
    look,
    lost,
    may_come,
)

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
OFFER = Offer(
    offer_id="1", provider="vastai", pool="vastai/RTX_4090", spot=True, gpu="RTX_4090", price_usd_micros_per_hour=1,
    gpu_memory_mib=1,
)  # fmt: skip
WANTED = InstanceRequirements(kind="training", gpus=("RTX_4090",), gpu_count=1)
THERE, EMPTY = {"vastai": Listing(offers=(OFFER,))}, {"vastai": Listing()}


def seen(*answers: dict[str, Listing], every: timedelta = MINUTE) -> MarketHistory:
    history = MarketHistory()
    for number, answer in enumerate(answers):
        history = look(history, WANTED, answer, now=NOW + number * every)
    return history


def test_a_pool_ages_while_it_is_there_and_starts_anew_after_a_loss() -> None:
    assert 119 <= seen(THERE, THERE, THERE).rates[OFFER.pool].age_s <= 121
    gone = seen(THERE, THERE, EMPTY).rates[OFFER.pool]
    assert (gone.age_s, gone.losses) == (0.0, 1.0)
    assert seen(THERE, EMPTY, THERE).rates[OFFER.pool].age_s == 60.0


def test_a_provider_that_did_not_answer_says_nothing_about_its_pools() -> None:
    assert look(seen(THERE), WANTED, {}, now=NOW + MINUTE) == seen(THERE)
    assert look(seen(THERE), WANTED, {"runpod": Listing()}, now=NOW + MINUTE) == seen(THERE)


def test_a_question_that_does_not_cover_a_pool_says_nothing_about_it() -> None:
    other = replace(WANTED, gpus=("H100",))
    assert look(seen(THERE), other, EMPTY, now=NOW + MINUTE) == seen(THERE)
    assert look(seen(THERE), replace(WANTED, gpu_count=2), EMPTY, now=NOW + MINUTE) == seen(THERE)


def test_what_happened_while_nobody_looked_is_not_made_up() -> None:
    after = seen(THERE, THERE, every=GAP + MINUTE).rates[OFFER.pool]
    assert after.age_s <= 1.0
    assert seen(THERE, EMPTY, every=GAP + MINUTE).rates[OFFER.pool].losses == 0.0


def test_two_looks_at_one_instant_are_one() -> None:
    once = seen(THERE)
    assert look(once, WANTED, THERE, now=NOW) == once
    assert look(once, WANTED, THERE, now=NOW - MINUTE) == once


def test_on_demand_has_no_pool_that_comes_and_goes() -> None:
    assert not look(MarketHistory(), WANTED, {"vastai": Listing(offers=(replace(OFFER, spot=False),))}, now=NOW).pools


def test_an_instance_of_ours_that_is_taken_away_is_a_loss_though_others_are_still_offered() -> None:
    after = lost(seen(THERE, THERE), OFFER.pool, now=NOW + 2 * MINUTE)
    assert (after.rates[OFFER.pool].losses, after.rates[OFFER.pool].age_s) == (1.0, 0.0)
    assert lost(after, OFFER.pool, now=NOW + 3 * MINUTE) == after, "told twice, lost once"
    assert lost(MarketHistory(), "nobody", now=NOW) == MarketHistory()


def test_spot_that_was_there_within_a_day_may_come_again() -> None:
    history = seen(THERE, EMPTY)
    assert may_come(history, WANTED, now=NOW + timedelta(hours=20))
    assert not may_come(history, WANTED, now=NOW + timedelta(hours=25))
    assert not may_come(history, replace(WANTED, gpus=("H100",)), now=NOW)
    assert may_come(history, replace(WANTED, gpus=()), now=NOW)


def test_what_is_kept_is_bounded_and_the_oldest_goes() -> None:
    offers = tuple(replace(OFFER, pool=f"p{n:04d}", offer_id=str(n)) for n in range(POOLS_MAX))
    history = look(MarketHistory(), WANTED, {"vastai": Listing(offers=offers)}, now=NOW)
    history = look(history, InstanceRequirements(kind="training"), THERE, now=NOW + MINUTE)
    assert len(history.pools) == POOLS_MAX
    assert OFFER.pool in history.pools
    for number in range(MACHINES_MAX + 5):
        history = blame(history, f"vastai/{number}", kind="boot", now=NOW + number * MINUTE)
    assert len(history.machines) == MACHINES_MAX
    assert "vastai/4" not in history.machines
    assert history.machines["vastai/404"].last_kind == "boot"
