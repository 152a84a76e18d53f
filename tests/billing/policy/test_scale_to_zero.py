from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.billing.domain.ledger import BudgetAction, EntryKind, Freeze
from goblin.billing.domain.run_service import ZERO, RunService, ServiceScaling
from goblin.billing.policy.scale_to_zero import changed, record_of, why_off
from goblin.core.endpoints import Endpoint

NOW = datetime(2026, 11, 25, 12, tzinfo=UTC)
NAME = "projects/p/locations/us-east4/services/llamacpp"
GPU = Endpoint(name="cloudrun_llamacpp", provider="llamacpp", url="http://x")
HAD = ServiceScaling(instances_min=1, instances_max=3)
SERVICE = RunService(name=NAME, scaling=HAD, version="1")


def freeze(account: str = "total", action: BudgetAction | None = BudgetAction.SCALE_TO_ZERO, name: str = "f") -> Freeze:
    return Freeze(entry_id=name, account=account, reason="", since=NOW, action=action)


@pytest.mark.parametrize(
    ("account", "action", "off"),
    [
        ("total", BudgetAction.SCALE_TO_ZERO, True),
        ("llamacpp", BudgetAction.SCALE_TO_ZERO, True),
        ("cloudrun_llamacpp", BudgetAction.SCALE_TO_ZERO, True),
        ("openai", BudgetAction.SCALE_TO_ZERO, False),
        ("llamacpp/ann", BudgetAction.SCALE_TO_ZERO, False),  # One key's budget is no reason to turn it off for all.
        ("total", BudgetAction.STOP_JOBS, False),
        ("total", BudgetAction.FREEZE, False),
        ("total", None, False),
    ],
)
def test_only_a_freeze_that_says_so_and_concerns_it_turns_a_service_off(
    account: str, action: BudgetAction | None, off: bool
) -> None:
    assert (why_off([GPU], [freeze("openai", BudgetAction.FREEZE), freeze(account, action)]) is not None) == off


def test_what_a_service_had_is_kept_and_given_back_once() -> None:
    off = changed(SERVICE, freeze())
    assert off == RunService(name=NAME, scaling=ZERO, kept=HAD, frozen_by="f", version="1")
    assert changed(off, freeze()) is None
    assert changed(off, freeze(name="another")) is None
    back = changed(off, None)
    assert back == SERVICE
    assert changed(back, None) is None


def test_what_somebody_else_turned_off_is_not_turned_on() -> None:
    theirs = replace(SERVICE, scaling=ZERO)
    assert changed(theirs, freeze()) is None
    assert changed(theirs, None) is None


def test_a_deployment_during_the_freeze_is_turned_off_again_and_given_back_as_deployed() -> None:
    off = changed(SERVICE, freeze())
    assert off is not None
    deployed = replace(off, scaling=ServiceScaling(instances_max=9))
    again = changed(deployed, freeze())
    assert again is not None
    assert (again.scaling, again.kept) == (ZERO, ServiceScaling(instances_max=9))
    lifted = changed(deployed, None)
    assert lifted is not None
    assert (lifted.scaling, lifted.kept) == (ServiceScaling(instances_max=9), None)


@given(
    st.lists(st.booleans(), max_size=8),
    st.sampled_from([HAD, ServiceScaling(), ZERO, ServiceScaling(instances_exactly=4)]),
)
def test_however_often_it_is_frozen_and_thawed_it_ends_as_it_began(walk: list[bool], had: ServiceScaling) -> None:
    service = replace(SERVICE, scaling=had)
    for frozen in [*walk, False]:
        service = changed(service, freeze() if frozen else None) or service
        assert service.scaling.is_zero or not frozen
    assert service == replace(SERVICE, scaling=had)


def test_each_change_of_one_freeze_is_one_entry() -> None:
    off = changed(SERVICE, freeze())
    assert off is not None
    entry = record_of(SERVICE, off, "total", now=NOW)
    assert (entry.kind, entry.account) == (EntryKind.SCALE, "total")
    assert entry.note == "Cloud Run service llamacpp is scaled to zero; it had 1 to 3 instances"
    back = record_of(off, SERVICE, "total", now=NOW)
    assert back.entry_id == entry.entry_id + ":back"
    assert back.note == "Cloud Run service llamacpp may run again, with 1 to 3 instances"
    assert str(ServiceScaling()) == "0 or more instances"
    assert str(ZERO) == "exactly 0 instances"
