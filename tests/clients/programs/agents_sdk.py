"""OpenAI's Agents SDK, by its defaults: a tool loop, a second turn, a stream, a typed answer."""

import asyncio
import json
import os

from agents import Agent, Runner, function_tool, set_tracing_disabled
from pydantic import BaseModel

set_tracing_disabled(True)  # It would send traces to OpenAI.
MODEL = os.environ["MODEL"]
asked = []


@function_tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    asked.append(city)
    return "sunny"


class Place(BaseModel):
    city: str


agent = Agent(name="Weather", instructions="Help.", model=MODEL, tools=[get_weather])


async def main() -> None:
    first = await Runner.run(agent, "TOOL: the weather?")
    second = await Runner.run(agent, [*first.to_input_list(), {"role": "user", "content": "And now?"}])
    stream = Runner.run_streamed(agent, "TOOL: the weather?")
    async for _ in stream.stream_events():
        pass
    typed = await Runner.run(Agent(name="Place", model=MODEL, output_type=Place), "Where?")
    said = {"first": first.final_output, "second": second.final_output, "stream": stream.final_output}
    print(json.dumps({**said, "typed": typed.final_output.city, "asked": asked}))


asyncio.run(main())
