"""RunPod's management API, version 2, over a market of its own, with machines that are processes.

Source: RunPod's OpenAPI schema 2.0.0 (runpod/docs at 2026-08-20) and answers recorded from it by others in August 2026,
read 2026-11-25. What neither says is marked "inferred" where it stands.

    pods.py      the nouns: GPU types, pods, the ways between their states
    checks.py    what a create request may say: 422 with the violations, 400 with the rule
    charges.py   seconds into money, and books.py: the account's
    market.py    the account and its world: stock, balance, hosts, time; kept.py: on disk
    quota.py     requests per minute, hour and day
    faults.py    what goes wrong on the way, as a test wants it
    problems.py  how it says no
    views.py     how things look on the wire, and routes.py: where
"""

from __future__ import annotations

from localgpus.runpod.faults import Fault
from localgpus.runpod.market import Market, Terms
from localgpus.runpod.pods import GPUS, Cloud, GpuType, Status
from localgpus.runpod.routes import Api, routes

UNSUPPORTED = {
    "spot": "version 2 creates no interruptible pods: there is no bid, and nothing is outbid",
    "cpu pods": "no flavors are in stock: such a request finds no capacity",
    "templates, network volumes, registries": "none exist in this account: naming one is answered like one not found",
    "clusters": "the list is empty, and creating one finds no capacity",
    "serverless": "the list is empty; its jobs plane is another host's",
    "PATCH, logs": "405 and 404",
}
"""What this market does not have, and why."""

__all__ = ["GPUS", "UNSUPPORTED", "Api", "Cloud", "Fault", "GpuType", "Market", "Status", "Terms", "routes"]
