"""A fake of Groq's OpenAI-like API: `x_groq` on the first and last chunk, its limits, its refusals, status 498."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from tests.fakes.openai_like import FakeOpenAI
from tests.fakes.serving import run

REFUSED = ("logprobs", "logit_bias", "top_logprobs")


@dataclass
class FakeGroq(FakeOpenAI):
    owner: str = "Groq"
    path = "/openai/v1"
    full: bool = False
    """The flex tier has no room."""

    @property
    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Mount(
                    "/openai",
                    routes=[
                        Route("/v1/models", self._models),
                        Route("/v1/chat/completions", self._chat_checked, methods=["POST"]),
                    ],
                )
            ]
        )

    async def _chat_checked(self, request: Request) -> Response:
        body = await request.json()
        wrong = [name for name in REFUSED if name in body]
        wrong += [f"messages.{i}.name" for i, message in enumerate(body["messages"]) if "name" in message]
        if wrong or body.get("n", 1) != 1:
            said = f"property '{(wrong or ['n'])[0]}' is unsupported"
            return JSONResponse({"error": {"message": said, "type": "invalid_request_error"}}, 400)
        if self.full:
            said = "Flex tier capacity exceeded"
            return JSONResponse({"error": {"message": said, "type": "requests", "code": "capacity_exceeded"}}, 498)
        return await self._chat(request)

    def _beside_the_first(self) -> dict[str, Any]:
        return {"x_groq": {"id": "req_fake", "seed": 7}}

    def _before_done(self, base: dict[str, Any], count: int) -> list[dict[str, Any]]:
        """The usage, asked for or not, in a chunk of its own."""
        usage = {"prompt_tokens": 11, "completion_tokens": count, "total_tokens": 11 + count, "queue_time": 0.01}
        told = {"usage": {**usage, "prompt_time": 0.1, "completion_time": 0.2, "total_time": 0.3}}
        x_groq = {"id": "req_fake", **(told if self.script.usage else {})}
        return [{**base, "choices": [], "x_groq": x_groq}]


if __name__ == "__main__":
    run(FakeGroq())
