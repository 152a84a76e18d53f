"""Names of GPUs and labels of instances."""

import pytest

from goblin.core.labels import attempt_label, is_attempt_label, job_of_label
from goblin.jobs.domain.instances import gpu_name, is_gpu


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("RTX 4090", "RTX_4090"),
        ("rtx_4090", "RTX_4090"),
        ("NVIDIA GeForce RTX 4090", "RTX_4090"),
        (" Tesla  T4 ", "T4"),
        ("H100-SXM", "H100_SXM"),
    ],
)
def test_one_gpu_has_one_name_whoever_sells_it(text: str, name: str) -> None:
    assert gpu_name(text) == name


@pytest.mark.parametrize(
    ("name", "wanted", "will_do"),
    [
        ("H100_SXM", ("H100",), True),
        ("H100_SXM", ("H100_NVL", "H100_SXM"), True),
        ("H100_SXM", ("H100_NVL",), False),
        ("H100", ("H100_SXM",), False),
        ("RTX_4090D", ("RTX_4090",), False),
        ("L40S", ("L4",), False),
        ("anything", (), True),
    ],
)
def test_a_family_is_wanted_by_its_name(name: str, wanted: tuple[str, ...], will_do: bool) -> None:
    assert is_gpu(name, wanted) is will_do


@pytest.mark.parametrize("job_id", ["j", "a-a2", "x.y_z-1"])
def test_a_label_says_whose_it_is(job_id: str) -> None:
    label = attempt_label(job_id, 12)
    assert is_attempt_label(label)
    assert job_of_label(label) == job_id


@pytest.mark.parametrize("label", [None, "", "goblin-serve", "goblin-j", "goblin-j-a0", "goblin-j-a1\n", "other-j-a1"])
def test_what_is_not_an_attempts_is_nobodys(label: str | None) -> None:
    assert not is_attempt_label(label)
    assert job_of_label(label or "") == "-"
