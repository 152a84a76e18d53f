"""The machines of a new market. Prices are in the order of magnitude of 2026; hosts and places are invented."""

from __future__ import annotations

from localgpus.vast.state import Machine, Rival


def machines() -> list[Machine]:
    """Build a dozen machines, from hobby to data centre, some of them with rivals."""
    return [
        _machine(101, "RTX 3090", 24_576, 0.17, 0.09, geolocation="Poland, PL", inet_down=640, compute_cap=860),
        _machine(102, "RTX 3090", 24_576, 0.19, 0.10, 2, geolocation="Texas, US", inet_down=420, compute_cap=860),
        _machine(111, "RTX 4090", 24_564, 0.38, 0.19, geolocation="Utah, US", inet_down_cost=0.002, inet_up_cost=0.002),
        _machine(112, "RTX 4090", 24_564, 0.40, 0.20, 2, geolocation="Sweden, SE", reliability=0.997),
        _machine(113, "RTX 4090", 24_564, 0.44, 0.24, 4, geolocation="Quebec, CA", rivals=[Rival(gpus=2, bid=0.26)]),
        _machine(114, "RTX 4090", 24_564, 0.34, 0.17, geolocation="Bulgaria, BG", reliability=0.93, inet_down=210),
        _machine(121, "RTX 5090", 32_607, 0.54, 0.32, 2, geolocation="Norway, NO", compute_cap=1200),
        _machine(131, "A100 SXM4", 81_920, 0.95, 0.52, 4, geolocation="Virginia, US", rivals=[Rival(gpus=2, bid=None)]),
        _machine(132, "A100 PCIE", 81_920, 0.87, 0.48, 2, geolocation="Netherlands, NL", inet_down=2400),
        _machine(141, "H100 SXM", 81_559, 1.87, 1.20, 8, geolocation="Oregon, US", inet_down=5200, compute_cap=900),
        _machine(142, "H100 NVL", 95_830, 2.08, 1.31, 2, geolocation="Japan, JP", inet_down=3100, compute_cap=900),
        _machine(151, "L4", 23_034, 0.30, 0.15, geolocation="Iowa, US", inet_down=1000),
    ]


def _machine(
    number: int, gpu: str, ram: int, price: float, floor: float, gpus: int = 1,
    *, geolocation: str, inet_down: float = 800.0, inet_down_cost: float = 0.0, inet_up_cost: float = 0.0,
    reliability: float = 0.99, compute_cap: int = 890, rivals: list[Rival] | None = None,
) -> Machine:  # fmt: skip
    return Machine(
        id=number, host_id=number * 7, gpu_name=gpu, num_gpus=gpus, gpu_ram=ram, price=price, floor=floor,
        geolocation=geolocation, inet_down=inet_down, inet_up=inet_down / 2, inet_down_cost=inet_down_cost,
        inet_up_cost=inet_up_cost, reliability=reliability, compute_cap=compute_cap, rivals=rivals or [],
    )  # fmt: skip
