"""One function in a process of its own, as on Cloud Run, on a clock that the bench moves.

`python -m tests.bench._idle_function FILE`: each line on standard input is a call, with `shift_s` and `authorization`,
and is answered by a line on standard output. Between two calls the clock goes on only by what `shift_s` adds.
"""

import asyncio
import json
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

_real, _shift_s = time.monotonic, 0.0
# Before anything of Goblin's is imported: defaults of arguments keep the function that they see then.
time.monotonic = lambda: _real() + _shift_s

import httpx  # noqa: E402

from goblin.cli.loading import load  # noqa: E402
from goblin.core.clock import SystemClock  # noqa: E402


def _now(_: SystemClock) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=_shift_s)


async def _serve(file: Path) -> None:
    global _shift_s
    SystemClock.now = _now  # type: ignore[method-assign]
    app = load(file)
    _say({"import_cpu_s": time.process_time()})
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://function") as client:
        # Blocking on purpose: between two requests an instance has no CPU, so nothing may run in the background.
        for line in sys.stdin:
            call = json.loads(line)
            _shift_s = call["shift_s"]
            cpu_s, wall_s = time.process_time(), time.perf_counter()
            answer = await client.post("/", headers={"authorization": call["authorization"]}, timeout=60)
            spent = {"cpu_s": time.process_time() - cpu_s, "wall_s": time.perf_counter() - wall_s}
            _say({"status": answer.status_code, "text": answer.text[:500], **spent})


def _say(reply: dict[str, object]) -> None:
    print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
