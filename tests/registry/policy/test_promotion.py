from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.core.errors import InvalidRequest
from goblin.registry.domain.versions import (
    LoadedModel,
    ModelArtifact,
    ModelName,
    Pointer,
    Promotion,
    ServingState,
    Version,
    parse_artifact,
    parse_version,
    version_order,
)
from goblin.registry.policy.promotion import (
    Keep,
    Load,
    Move,
    NoMove,
    PromotionRequest,
    Unmoved,
    choose_load,
    choose_promotion,
    choose_rollback,
    choose_wanted,
)

NAME = ModelName("acme", "tiny")
AT = datetime(2026, 11, 25, 12, tzinfo=UTC)


def version(number: str, name: ModelName = NAME) -> Version:
    digest = f"{hash((name, number)) & (2**64 - 1):064x}"
    uri = f"gs://b/{name.folder}/{number}/m.gguf"
    artifact = ModelArtifact(uri=uri, generation=1, size=1, crc32c="AAAAAA==", sha256=digest)
    return Version(name=name, version=number, artifact=artifact, registered_at=AT, registered_by="ann")


def request(event_id: str = "e", at: datetime = AT) -> PromotionRequest:
    return PromotionRequest(event_id=event_id, actor="ann", reason="why", at=at)


def promoted(number: str, *, minute: int = 0, name: ModelName = NAME, before: Pointer | None = None) -> Pointer:
    asked = request(f"{name}-{number}-{minute}", AT + timedelta(minutes=minute))
    move = choose_promotion(version(number, name), before, expected=None, request=asked)
    assert isinstance(move, Move)
    return Pointer(promotion=move.promotion, generation=move.generation + 1)


def test_the_first_promotion_expects_nothing_there() -> None:
    move = choose_promotion(version("1.0.0"), None, expected="none", request=request("x"))
    assert isinstance(move, Move)
    assert (move.generation, move.promotion.seq, move.promotion.previous) == (0, 1, None)
    assert (move.promotion.event_id, move.promotion.promoted_by, move.promotion.reason) == ("x", "ann", "why")


def test_the_next_remembers_what_it_replaced() -> None:
    one = promoted("1.0.0")
    move = choose_promotion(version("1.1.0"), one, expected="1.0.0", request=request())
    assert isinstance(move, Move)
    assert move.generation == one.generation
    assert (move.promotion.seq, move.promotion.previous, move.promotion.previous_seq) == (2, "1.0.0", 1)


@pytest.mark.parametrize("expected", ["none", "0.9.0"])
def test_a_wrong_expectation_moves_nothing(expected: str) -> None:
    one = promoted("1.0.0")
    for decision in (
        choose_promotion(version("1.1.0"), one, expected=expected, request=request()),
        choose_rollback(one, None, expected=expected, request=request()),
    ):
        assert isinstance(decision, NoMove)
        assert "1.0.0" in decision.reason
        assert expected in decision.reason


def test_what_is_in_production_already_is_not_promoted_again() -> None:
    one = promoted("1.0.0")
    assert choose_promotion(version("1.0.0"), one, expected=None, request=request()) == Unmoved(pointer=one)


def test_two_rollbacks_go_back_twice() -> None:
    history: dict[int, Promotion] = {}
    pointer: Pointer | None = None
    for number in ("1.0.0", "1.1.0", "1.2.0"):
        pointer = promoted(number, before=pointer)
        history[pointer.promotion.seq] = pointer.promotion
    for wanted in ("1.1.0", "1.0.0"):
        assert pointer is not None
        back_to = history[pointer.promotion.previous_seq or 0]
        move = choose_rollback(pointer, back_to, expected=None, request=request())
        assert isinstance(move, Move)
        assert move.promotion.version == wanted
        assert move.promotion.artifact == version(wanted).artifact
        pointer = Pointer(promotion=move.promotion, generation=move.generation + 1)
        history[move.promotion.seq] = move.promotion
    assert pointer is not None
    assert pointer.promotion.seq == 5
    assert isinstance(choose_rollback(pointer, None, expected=None, request=request()), NoMove)
    assert isinstance(choose_rollback(None, None, expected=None, request=request()), NoMove)


@given(st.lists(st.sampled_from(["1.0.0", "1.1.0", "2.0.0", "back"]), max_size=30))
def test_any_course_of_moves_counts_up_without_gaps_and_leads_back_to_the_first(wishes: list[str]) -> None:
    pointer: Pointer | None = None
    history: dict[int, Promotion] = {}
    for wish in wishes:
        if wish == "back":
            seq = pointer.promotion.previous_seq if pointer else None
            move = choose_rollback(pointer, history.get(seq or 0), expected=None, request=request())
        else:
            move = choose_promotion(version(wish), pointer, expected=None, request=request())
        if isinstance(move, Move):
            assert move.generation == (pointer.generation if pointer else 0)
            assert pointer is None or move.promotion.version != pointer.promotion.version
            pointer = Pointer(promotion=move.promotion, generation=move.generation + 1)
            history[move.promotion.seq] = move.promotion
    assert sorted(history) == list(range(1, len(history) + 1))
    while pointer is not None and pointer.promotion.previous_seq is not None:
        back = history[pointer.promotion.previous_seq]
        assert back.version == pointer.promotion.previous
        assert back.seq < pointer.promotion.seq
        pointer = replace(pointer, promotion=back)


OTHER = ModelName("acme", "big")


def test_a_server_takes_its_own_model_or_the_one_promoted_last() -> None:
    tiny, big = promoted("1.0.0", minute=5).promotion, promoted("3.0.0", minute=9, name=OTHER).promotion
    for order in ([tiny, big], [big, tiny]):
        assert choose_wanted(order, takes="*") is big
        assert choose_wanted(order, takes="acme/tiny") is tiny
        assert choose_wanted(order, takes="acme/none") is None
    assert choose_wanted([], takes="*") is None


ONE = promoted("1.0.0").promotion
TWO = promoted("1.1.0", minute=1, before=promoted("1.0.0")).promotion
DEFAULT = LoadedModel(alias="goblin-tiny", sha256=None)


def of(promotion: Promotion) -> LoadedModel:
    return LoadedModel(alias=str(promotion.name), sha256=promotion.artifact.sha256)


NEW = ServingState(endpoint="e")
TOOK_ONE = ServingState(endpoint="e", served=ONE)
REFUSED_TWO = ServingState(endpoint="e", served=ONE, refused=TWO, refusal="torn")


@pytest.mark.parametrize(
    ("wanted", "known", "loaded", "decision"),
    [
        (None, NEW, DEFAULT, None),
        (ONE, NEW, DEFAULT, Load(promotion=ONE)),
        (ONE, TOOK_ONE, of(ONE), ONE),
        (ONE, NEW, of(ONE), ONE),  # It died after the load, before it was written down.
        (ONE, TOOK_ONE, DEFAULT, Load(promotion=ONE)),  # The server was started again.
        (TWO, TOOK_ONE, of(ONE), Load(promotion=TWO)),
        (TWO, REFUSED_TWO, of(ONE), ONE),
        (TWO, REFUSED_TWO, DEFAULT, Load(promotion=ONE)),
        (TWO, replace(REFUSED_TWO, served=None), DEFAULT, None),
        (replace(TWO, event_id="again"), REFUSED_TWO, of(ONE), Load(promotion=replace(TWO, event_id="again"))),
        (ONE, TOOK_ONE, replace(of(ONE), alias="other"), Load(promotion=ONE)),
    ],
)
def test_what_a_server_is_made_to_load(
    wanted: Promotion | None, known: ServingState, loaded: LoadedModel, decision: Load | Promotion | None
) -> None:
    chosen = choose_load(wanted, known, loaded)
    if isinstance(decision, Load):
        assert chosen == decision
    else:
        assert isinstance(chosen, Keep)
        assert chosen.confirmed == decision


@pytest.mark.parametrize("text", ["1.2.3", "v1.2.3", "0.0.0", "1.0.0-rc.1", "10.20.30-alpha-1.x"])
def test_semantic_versions_have_one_form(text: str) -> None:
    assert parse_version(text) == text.removeprefix("v")


@pytest.mark.parametrize(
    "text", ["", "1", "1.2", "01.2.3", "1.2.3+b", "1.2.3-", "1.2.3-01", "1.2.3\n", "../1.2.3", "1.2.3-a..b", "1" * 70]
)
def test_other_versions_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_version(text)


def test_versions_sort_by_precedence() -> None:
    # Source: semver.org 2.0.0, 11.4.
    shuffled = "1.0.1 1.0.0-beta.11 1.10.0 1.0.0-alpha.beta 1.0.0 1.0.0-alpha 1.0.0-rc.1 1.0.0-beta.2 1.0.0-alpha.1"
    ordered = "1.0.0-alpha 1.0.0-alpha.1 1.0.0-alpha.beta 1.0.0-beta.2 1.0.0-beta.11 1.0.0-rc.1 1.0.0 1.0.1 1.10.0"
    assert sorted(shuffled.split(), key=version_order) == ordered.split()


@pytest.mark.parametrize("text", ["acme", "acme/", "/m", "a/b/c", "a--b/m", "_a/m", "a/..", "a b/m", "a/" + "m" * 64])
def test_names_that_are_no_path_or_no_slug_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        ModelName.parse(text)


def test_names_and_artifacts() -> None:
    assert str(ModelName.parse("acme/tiny-2.5_x")) == "acme/tiny-2.5_x"
    assert parse_artifact("a.Q4_K_M.gguf") == "a.Q4_K_M.gguf"
    for bad in ("MANIFEST.json", "../a.gguf", "a/b.gguf", ".gguf", "a.bin", "a.gguf\n"):
        with pytest.raises(InvalidRequest):
            parse_artifact(bad)
