"""Forms: read field by field, and written again as they came."""

from __future__ import annotations

from contextlib import suppress

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from goblin.core.errors import InvalidRequest
from goblin.gateway.domain import requests
from goblin.gateway.domain.forms import parse_form

SOUND = b"RIFF\x00\xff\r\n--x\r\n\r\n\x80"


def form(*, content: bytes = SOUND, **fields: str) -> bytes:
    """A form as httpx, and so both SDKs, write it."""
    request = httpx.Request("POST", "http://g", data=fields, files={"file": ("a.wav", content, "audio/wav")})
    return request.read()


def test_fields_and_the_file() -> None:
    found = parse_form(form(model="whisper", prompt="ü\r\n", language="de"))
    assert {name: found.text(name) for name in ("model", "prompt", "language", "file", "none")} == {
        "model": "whisper", "prompt": "ü\r\n", "language": "de", "file": None, "none": None,
    }  # fmt: skip
    assert found.parts[-1].content == SOUND


def test_it_is_written_as_it_came_but_for_what_changes() -> None:
    data = form(model="whisper", goblin="{}")
    found = parse_form(data)
    assert found.encoded(without="none") == data
    sent = parse_form(found.encoded(without="goblin", model="org/whisper"))
    assert [(part.name, part.text) for part in sent.parts] == [("model", "org/whisper"), ("file", None)]
    assert sent.parts[-1] == found.parts[-1]
    assert found.boundary in found.media_type


@given(st.binary(max_size=200), st.text(alphabet="abc/-_ü", min_size=1, max_size=20))
def test_any_file_comes_through(content: bytes, model: str) -> None:
    found = parse_form(form(content=content, model=model))
    assert (found.text("model"), found.parts[-1].content) == (model, content)


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda rest: b"--x\r\n" + rest))
def test_whatever_comes_is_read_or_refused(data: bytes) -> None:
    with suppress(InvalidRequest):
        parse_form(data)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{}", b"--", b"--x", b"--x\r\n", b"--x\r\n\r\n--x--", b"--x\r\nA: b\r\n\r\nc\r\n--x--\r\n",
        b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb', b"--" + b"y" * 71 + b"\r\n",
        b"--x" + b'\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x' * 65 + b"--",
    ],
)  # fmt: skip
def test_what_is_no_whole_form_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_form(data)


@pytest.mark.parametrize(
    ("fields", "param"),
    [({}, "model"), ({"model": ""}, "model"), ({"model": "m", "stream": "true"}, "stream"),
     ({"model": "m", "goblin": "{"}, "goblin"), ({"model": "m", "goblin": '{"x":1}'}, "goblin")],
)  # fmt: skip
def test_a_recording_needs_a_model_and_is_answered_whole(fields: dict[str, str], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        requests.parse_transcription(form(**fields), "audio/transcriptions")
    assert caught.value.param == param


def test_a_recording() -> None:
    found = requests.parse_transcription(
        form(model="m", stream="false", goblin='{"provider":"p"}'), "audio/translations"
    )
    assert (found.model, found.path) == ("m", "audio/translations")
    assert found.goblin is not None
    assert found.goblin.provider == "p"
