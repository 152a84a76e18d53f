"""A fake of an endpoint that speaks OpenAI's Responses API itself, on a real socket; faults as in `openai_like`.

It searches the web when it may, and seals its thoughts, which only it can read.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.fakes.openai_like import FakeOpenAI

REASONING = {"id": "rs_up", "type": "reasoning", "summary": [], "encrypted_content": "gAAAAsealed"}
SEARCH = {"id": "ws_up", "type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "q"}}


@dataclass
class FakeResponses(FakeOpenAI):
    @property
    def app(self) -> Any:
        app = super().app
        app.router.routes.append(Route("/v1/responses", self._respond, methods=["POST"]))
        return app

    async def _respond(self, request: Request) -> Response:
        self.paths.append(request.url.path)
        body = await request.json()
        self.asked.append(body)
        if (refused := self._refused(request)) is not None:
            return refused
        for item in body["input"] if isinstance(body["input"], list) else ():
            # As OpenAI: nothing is stored, so there is nothing to look up.
            if item.get("type") == "item_reference" or (
                item.get("type") == "reasoning" and not item.get("encrypted_content")
            ):
                said = {"message": f"Item with id '{item.get('id')}' not found.", "type": "invalid_request_error"}
                return JSONResponse({"error": {**said, "param": "input", "code": None}}, 404)
        assert body["stream"] is True, "the gateway always streams upstream"
        assert body["store"] is False, "nothing of a caller is stored upstream"
        return StreamingResponse(self._watched(request, self._events(body)), media_type=self.script.content_type)

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[str]:
        script, number = self.script, 10  # A number of its own, which is not the caller's.
        base = {
            "id": "resp_up",
            "object": "response",
            "created_at": 7,
            "model": "tiny-2026",
            "tools": [],
            "tool_choice": "auto",
            "parallel_tool_calls": True,
            "store": True,
            "unheard_of": {"a": 1},
        }
        output: list[dict[str, Any]] = []

        def event(kind: str, **fields: Any) -> str:
            nonlocal number
            number += 2
            return f"event: {kind}\ndata: {json.dumps({'type': kind, 'sequence_number': number, **fields})}\n\n"

        yield event("response.created", response={**base, "status": "in_progress", "output": []})
        searches = any(tool.get("type") == "web_search" for tool in body.get("tools", ()))
        for item in (REASONING, *([SEARCH] if searches else [])):
            place = {"output_index": len(output)}
            yield event("response.output_item.added", **place, item=item)
            output.append(item)
            yield event("response.output_item.done", **place, item=item)
        text = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        message = {"id": "msg_up", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
        place = {"output_index": len(output), "item_id": "msg_up", "content_index": 0}
        yield event("response.output_item.added", output_index=len(output), item=message)
        yield event("response.content_part.added", **place, part=text)
        for count, word in enumerate(script.words):
            if count == script.break_after:
                raise ConnectionError("the fake breaks off")
            if count == script.error_after:
                error = {"code": "server_error", "message": "CUDA error: secret prompt"}
                yield event("response.failed", response={**base, "status": "failed", "error": error, "output": output})
                return
            if count == script.silent_after:
                await asyncio.Event().wait()
            yield event("response.output_text.delta", **place, delta=word, logprobs=[], obfuscation="x")
        text = {**text, "text": "".join(script.words)}
        message = {**message, "status": "completed", "content": [text]}
        yield event("response.output_text.done", **place, text=text["text"], logprobs=[])
        yield event("response.content_part.done", **place, part=text)
        yield event("response.output_item.done", output_index=len(output), item=message)
        output.append(message)
        for call in script.calls:
            said = "".join(call.pieces)
            item = {"id": f"fc_{call.id}", "type": "function_call", "call_id": call.id, "name": call.name}
            place = {"output_index": len(output)}
            yield event("response.output_item.added", **place, item={**item, "arguments": ""})
            for piece in call.pieces:
                yield event("response.function_call_arguments.delta", **place, item_id=item["id"], delta=piece)
            yield event("response.function_call_arguments.done", **place, item_id=item["id"], arguments=said)
            output.append({**item, "arguments": said, "status": "completed"})
            yield event("response.output_item.done", **place, item=output[-1])
        cut = script.finish == "length"
        usage = {
            "input_tokens": 11,
            "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
            "output_tokens": 5,
            "output_tokens_details": {"reasoning_tokens": 2},
            "total_tokens": 16,
        }
        end = {**base, "status": "incomplete" if cut else "completed", "output": output}
        end |= {"usage": usage} if script.usage else {}
        end |= {"incomplete_details": {"reason": "max_output_tokens"}} if cut else {}
        yield event("response.incomplete" if cut else "response.completed", response=end)
