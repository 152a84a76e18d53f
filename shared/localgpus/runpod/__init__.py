"""RunPod's management API, version 2, over a simulated account whose machines are processes.

Source: RunPod's OpenAPI schema 2.0.0 (runpod/docs at 2026-08-20) and answers recorded from it by others in August 2026,
read 2026-11-25. What neither of them says is marked "inferred" in place.

    pods.py      GPU types, pods and the actions that each status allows
    checks.py    validation of a create request: 422 with the violations, 400 with the rule
    charges.py   the cost of a span of time; books.py: the account's spans and balance
    market.py    the account: stock, pods, hosts, balance; kept.py: its state on disk
    quota.py     requests per minute, hour and day
    faults.py    injected faults, for tests
    problems.py  error answers
    views.py     pods, GPU types and bills in the wire format; routes.py: the paths
"""

from __future__ import annotations

from localgpus.runpod.faults import Fault
from localgpus.runpod.market import Market, Terms
from localgpus.runpod.pods import GPUS, Cloud, GpuType, Status
from localgpus.runpod.routes import Api, routes

UNSUPPORTED = {
    "spot": "version 2 creates no interruptible pods: there are no bids, and no pod is outbid",
    "cpu pods": "no flavors are in stock: such a request finds no capacity",
    "templates, network volumes, registries": "none exist in this account: naming one is answered as not found",
    "clusters": "the list is empty, and creating one finds no capacity",
    "serverless": "the list is empty; its jobs API is on another host",
    "PATCH, logs": "405 and 404",
}
"""The parts of RunPod's API that this market does not have, with the answer or the reason."""

__all__ = ["GPUS", "UNSUPPORTED", "Api", "Cloud", "Fault", "GpuType", "Market", "Status", "Terms", "routes"]
