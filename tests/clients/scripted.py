"""The model behind the gateway for programs that run tools: it calls one tool, then says that all is done."""

from __future__ import annotations

import json
from typing import Any

from tests.fakes.openai_like import Call, FakeOpenAI, Script

DONE = "All done."
PLACE = '{"city": "Ulm"}'
SHELL = "printf 'hello\\n' > a.txt"
CALLS: dict[str, dict[str, Any]] = {
    "exec_command": {"cmd": SHELL},
    "shell_command": {"command": SHELL},
    "write": {"filePath": "a.txt", "content": "hello\n"},
}
"""What agents' own tools are given. Every other tool is asked about a city."""


def prepare_for(fake: FakeOpenAI) -> None:
    """Let the fake answer each chat by what is in it."""

    def prepare(body: dict[str, Any]) -> None:
        tools = [tool["function"]["name"] for tool in body.get("tools") or () if tool.get("type") == "function"]
        called = any(message["role"] == "tool" for message in body["messages"])
        words = json.dumps(body["messages"])
        if (body.get("response_format") or {}).get("type") == "json_schema":
            fake.script = Script(words=[PLACE[:5], PLACE[5:]])
        elif tools and not called and ("TOOL" in words or isinstance(body.get("tool_choice"), dict)):
            name = next((name for name in CALLS if name in tools), tools[0])
            arguments = json.dumps(CALLS.get(name, json.loads(PLACE)))
            fake.script = Script(words=["I will."], calls=[Call("call_1", name, [arguments[:7], arguments[7:]])])
        elif "*file listing*" in words:  # Aider asks for whole files in this form.
            fake.script = Script(words=["Here it is:\n\na.txt\n```\n", "hello\n", "```\n"])
        else:
            fake.script = Script(words=["All ", "done."])

    fake.prepare = prepare
