"""LangChain: chat and Responses, a tool loop, `batch`, a typed answer; `generate` with several prompts and `n`."""

import json
import os

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

MODEL, TINY = os.environ["MODEL"], os.environ["TINY"]


@tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"sunny in {city}"


class Place(BaseModel):
    """A place."""

    city: str


def loop(model: ChatOpenAI) -> list[object]:
    bound = model.bind_tools([get_weather])
    turns = [HumanMessage("TOOL: the weather?")]
    called = bound.invoke(turns)
    (call,) = called.tool_calls
    turns += [called, ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])]
    return [call["args"], bound.invoke(turns).text]


chat, responses = ChatOpenAI(model=MODEL), ChatOpenAI(model=MODEL, use_responses_api=True)
several = ChatOpenAI(model=TINY, n=2, max_tokens=4).generate([[HumanMessage("Hi")], [HumanMessage("Ho")]])
texts = OpenAI(model=TINY, n=2, max_tokens=4).generate(["Once", "Twice", "Three times"])
print(
    json.dumps(
        {
            "chat": loop(chat),
            "responses": loop(responses),
            "stream": "".join(chunk.text for chunk in chat.stream("Hi")),
            "batch": [answer.text for answer in chat.batch(["Hi", "Ho", "Hum"])],
            "typed": chat.with_structured_output(Place, method="json_schema").invoke("Where?").city,
            "chat_n": [len(row) for row in several.generations],
            "texts_n": [len(row) for row in texts.generations],
            "text_usage": texts.llm_output["token_usage"],
        }
    )
)
