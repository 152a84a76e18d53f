"""pydantic-ai, by its defaults: `openai:MODEL` with a tool loop, a second turn, a stream, a typed answer."""

import asyncio
import json
import os
from collections.abc import AsyncIterable
from typing import Any

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput

MODEL = "openai:" + os.environ["MODEL"]
agent = Agent(MODEL, instructions="Help.")
asked = []


@agent.tool_plain
def get_weather(city: str) -> str:
    """The weather of a city."""
    asked.append(city)
    return "sunny"


class Place(BaseModel):
    city: str


async def read(_: Any, events: AsyncIterable[Any]) -> None:
    """With a reader of events, pydantic-ai streams."""
    async for _event in events:
        pass


async def main() -> None:
    first = await agent.run("TOOL: the weather?")
    second = await agent.run("And now?", message_history=first.all_messages())
    stream = await agent.run("TOOL: the weather?", event_stream_handler=read)
    typed = await Agent(MODEL, output_type=NativeOutput(Place)).run("Where?")
    said = {"first": first.output, "second": second.output, "stream": stream.output}
    print(json.dumps({**said, "typed": typed.output.city, "asked": asked}))


asyncio.run(main())
