"""The engine when the library refuses: explicit errors, never silence, never the wrong text."""

import threading

import llama_cpp
import pytest

from goblin_llamacpp.context import EngineSettings
from goblin_llamacpp.engine import Engine
from goblin_llamacpp.errors import ApiError
from goblin_llamacpp.generation import Failed, Finished, Generation, Piece
from goblin_llamacpp.metrics import Meters
from goblin_llamacpp.model import Model
from goblin_llamacpp.sampling import Sampling

from .conftest import MODEL

FULL, FATAL = 1, -3


class Answers:
    """Collects what the engine says, and lets a test wait for the ends."""

    def __init__(self):
        self.texts: dict[int, str] = {}
        self.ends: dict[int, Finished | Failed] = {}
        self._changed = threading.Condition()

    def post(self, events):
        with self._changed:
            for generation, event in events:
                if isinstance(event, Piece):
                    self.texts[generation.index] = self.texts.get(generation.index, "") + event.text
                else:
                    assert generation.index not in self.ends, "an answer ends once"
                    self.ends[generation.index] = event
            self._changed.notify_all()

    def wait(self, count: int):
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.ends) == count, timeout=20)


@pytest.fixture(scope="module")
def model():
    return Model(MODEL)


@pytest.fixture
def engine(model):
    answers = Answers()
    engine = Engine(model, EngineSettings(slots=4), Meters(), answers.post)
    engine.answers = answers
    yield engine
    engine.close(cut=True)
    assert engine.join(10)


def question(model, text, index=0, **options):
    words = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    prompt = model.tokenize(words, add_special=True, parse_special=True)
    return Generation(
        prompt=prompt, sampling=Sampling(temperature=0), max_new=60, sink=lambda *_: None, index=index, **options
    )


def refuse(monkeypatch, *codes):
    """Answer these codes instead of decoding, 0 meaning to decode; afterwards decode."""
    real, left = llama_cpp.llama_decode, list(codes)

    def decode(context, batch):
        code = left.pop(0) if left else 0
        return code or real(context, batch)

    monkeypatch.setattr(llama_cpp, "llama_decode", decode)


QUESTIONS = ["What is Goblin?", "What is the capital of France?", "Who are you?"]


def ask(engine, model):
    start = len(engine.answers.ends)
    engine.submit(*(question(model, text, start + i) for i, text in enumerate(QUESTIONS)))
    engine.answers.wait(start + len(QUESTIONS))
    return [engine.answers.texts[start + i] for i in range(len(QUESTIONS))]


def test_a_full_pool_sends_the_youngest_back_and_no_text_is_lost(engine, model, monkeypatch):
    expected = ask(engine, model)
    refuse(monkeypatch, 0, 0, 0, FULL, FULL, FULL, 0, 0, FULL, FULL)
    assert ask(engine, model) == expected
    assert all(end.reason == "stop" for end in engine.answers.ends.values())


def test_a_request_that_fits_nowhere_is_told(engine, model, monkeypatch):
    refuse(monkeypatch, FULL, FULL, FULL)
    engine.submit(question(model, "Hello"))
    engine.answers.wait(1)
    assert engine.answers.ends[0] == Failed("The request does not fit the key-value cache.")
    assert engine.is_alive


def test_after_a_fatal_error_everybody_is_told_and_liveness_fails(engine, model, monkeypatch):
    refuse(monkeypatch, 0, 0, FATAL)
    engine.submit(*(question(model, QUESTIONS[i % 3], i) for i in range(8)))
    engine.answers.wait(8)
    assert all(isinstance(end, Failed) for end in engine.answers.ends.values())
    assert "code -3" in engine.answers.ends[0].message
    assert engine.join(10)
    assert not engine.is_alive
    with pytest.raises(ApiError) as refused:
        engine.submit(question(model, "Hello", 9))
    assert refused.value.status == 500


def test_a_step_that_takes_too_long_fails_liveness(model, monkeypatch):
    inside, release = threading.Event(), threading.Event()

    def hang(_context, _batch):
        inside.set()
        release.wait(20)
        return FATAL

    answers = Answers()
    engine = Engine(model, EngineSettings(slots=1, stall_s=0.0), Meters(), answers.post)
    assert engine.is_alive, "an idle engine lives"
    monkeypatch.setattr(llama_cpp, "llama_decode", hang)
    engine.submit(question(model, "Hello"))
    assert inside.wait(10)
    assert not engine.is_alive
    release.set()
    assert engine.join(10)


def test_a_closed_engine_takes_nothing_and_finishes_what_it_has(engine, model):
    engine.submit(question(model, "What is Goblin?"))
    engine.close()
    with pytest.raises(ApiError) as refused:
        engine.submit(question(model, "Hello", 1))
    assert refused.value.status == 503
    engine.answers.wait(1)
    assert engine.answers.ends[0].reason == "stop"


def test_together_or_not_at_all(model):
    """Two answers of one request are not torn apart by a full queue."""
    engine = Engine(model, EngineSettings(slots=1, queue=1), Meters(), Answers().post)
    engine.submit(
        question(
            model,
            "Hello",
        ),
        question(model, "Hello", 1),
    )
    with pytest.raises(ApiError) as refused:
        engine.submit(*(question(model, "Hello", i) for i in range(3)))
    assert refused.value.status == 429
    engine.close(cut=True)
    assert engine.join(10)


def test_the_weights_outlive_everybody_who_uses_them():
    """Freed with the last reference, not before: another thread may still tokenise."""
    model = Model(MODEL)
    engine = Engine(model, EngineSettings(slots=1), Meters(), Answers().post)
    tokenize = model.tokenize
    del model
    engine.close()
    assert engine.join(10)
    del engine
    assert tokenize("Hello", add_special=False, parse_special=False)
