"""LlamaIndex: `OpenAILike` with chat, stream, a tool call, a typed answer, and a plain text."""

import json
import os

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

MODEL, TINY = os.environ["MODEL"], os.environ["TINY"]
where = {"api_base": os.environ["OPENAI_BASE_URL"], "api_key": os.environ["OPENAI_API_KEY"]}
chat = OpenAILike(model=MODEL, is_chat_model=True, is_function_calling_model=True, context_window=32768, **where)
plain = OpenAILike(model=TINY, is_chat_model=False, context_window=32768, max_tokens=4, **where)


def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


turn = [ChatMessage(role="user", content="Hi")]
print(
    json.dumps(
        {
            "complete": chat.complete("Hi").text,
            "stream": "".join(part.delta or "" for part in chat.stream_chat(turn)),
            "tool": chat.predict_and_call([FunctionTool.from_defaults(get_weather)], "TOOL: the weather?").response,
            "text": bool(plain.complete("Once upon").text),
        }
    )
)
