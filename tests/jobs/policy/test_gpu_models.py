"""A GPU model that no market knows is named with the one that was meant; what is sold is never refused."""

import pytest

from goblin.jobs.policy.gpu_models import MODELS, why_unknown
from localgpus.runpod.pods import gpus
from localgpus.vast.stock import machines

SOLD = [
    *(machine.gpu_name for machine in machines()), *(gpu.name for gpu in gpus()), *(gpu.id for gpu in gpus()), *MODELS,
    "RTX 3080 Ti", "RTX 4070S Ti", "RTX 4090 D", "RTX 5000Ada", "RTX 6000Ada", "RTX A6000", "RTX PRO 6000 S",
    "RTX PRO 6000 WS", "NVIDIA RTX PRO 6000 Blackwell Server Edition", "NVIDIA RTX 6000 Ada Generation",
    "NVIDIA RTX 4000 SFF Ada Generation", "H200 NVL", "H100 NVL", "A100-SXM4-80GB", "Tesla V100", "Tesla T4",
    "V100-SXM2-32GB", "GTX 1660 S", "GTX 1080 Ti", "NVIDIA B200", "Instinct MI300X", "RTX 3070 laptop", "A100_80GB",
]  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(SOLD)))
def test_what_a_market_sells_can_be_asked_for(name: str) -> None:
    assert why_unknown(name) is None


@pytest.mark.parametrize("name", ["H100", "a100", "rtx", "RTX_PRO", "geforce rtx 3090", "rtx-4090"])
def test_a_family_and_any_spelling_will_do(name: str) -> None:
    assert why_unknown(name) is None


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("RTX_4O90", "RTX_4090"), ("RTX4090", "RTX_4090"), ("RTX_490", "RTX_4090"), ("4090", "RTX_4090"),
        ("RTX_9040", "RTX_"), ("H10O", "H100"), ("A1000", "A100"), ("H100_SMX", "H100"), ("RXT_3090", "RTX_3090"),
        ("RTX_4090_TO", "RTX_4090"),
    ],
)  # fmt: skip
def test_a_misspelled_one_is_named_with_what_was_meant(name: str, meant: str) -> None:
    reason = why_unknown(name)
    assert reason is not None
    assert reason.startswith(f"GPU model {name!r} is not known. Did you mean ")
    assert meant in reason.partition("Did you mean")[2]


def test_one_that_is_like_none_is_refused_with_an_example() -> None:
    assert why_unknown("potato") == "GPU model 'potato' is not known. Write it as RTX_4090 or H100_SXM."


def test_a_model_that_is_sold_since_can_be_added() -> None:
    assert why_unknown("RTX_6090 Ti", ["RTX 6090"]) is None
    assert why_unknown("RTX_6090") is not None
