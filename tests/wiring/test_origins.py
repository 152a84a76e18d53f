"""`GOBLIN_CORS_ORIGINS`: exact origins, over TLS or of this machine, as browsers send them."""

import pytest

from goblin.wiring.settings import BadConfiguration, Settings


def origins(text: str) -> set[str]:
    return set(Settings.from_env({"GOBLIN_CORS_ORIGINS": text}).origins())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", set()),
        (" , ", set()),
        ("https://chat.example.com", {"https://chat.example.com"}),
        ("HTTPS://Chat.Example.com:443", {"https://chat.example.com"}),
        ("https://a.example:8443,http://localhost:3000", {"https://a.example:8443", "http://localhost:3000"}),
        ("http://127.0.0.1:80, http://[::1]:5173", {"http://127.0.0.1", "http://[::1]:5173"}),
    ],
)
def test_origins_are_kept_as_browsers_send_them(text: str, found: set[str]) -> None:
    assert origins(text) == found


@pytest.mark.parametrize(
    "text",
    [
        "*", "https://*.example.com", "null", "chat.example.com", "https://", "https://a.example/", "https://a.example/x",
        "https://a.example?x", "https://a@a.example", "http://chat.example.com", "http://localhost.evil.example",
        "ftp://localhost", "https://a.example:99999", "https://a.example:x", "https://[::1", "file:///x",
    ],
)  # fmt: skip
def test_another_text_is_refused_by_name(text: str) -> None:
    with pytest.raises(BadConfiguration, match="GOBLIN_CORS_ORIGINS"):
        origins(f"https://good.example,{text}")
