"""GPU models that the markets know: a misspelled one would wait for ever.

Source: the models that Vast.ai and RunPod list, read 2026-11-23. Names are as `domain.instances.gpu_name` writes them.
A model that is sold since then: `GOBLIN_GPU_MODELS`.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from difflib import get_close_matches

from goblin.jobs.domain.instances import gpu_name

_LISTED = """
    A10 A100 A100X A10G A16 A2 A2000 A30 A40 A4000 A4500 A5000 A5500 A6000 A800 B100 B200 B300 CMP_170HX CMP_30HX
    CMP_50HX CMP_70HX CMP_90HX GB200 GB300 GH200 GTX_1050 GTX_1060 GTX_1070 GTX_1080 GTX_1650 GTX_1660 GTX_750
    GTX_950 GTX_960 GTX_970 GTX_980 GTX_TITAN H100 H20 H200 H800 INSTINCT_MI100 INSTINCT_MI210 INSTINCT_MI250
    INSTINCT_MI250X INSTINCT_MI300X INSTINCT_MI325X INSTINCT_MI350X INSTINCT_MI355X K80 L20 L4 L40 L40S M40 M60
    MI100 MI210 MI250 MI250X MI300X MI325X MI350X MI355X P100 P104 P106 P4 P40 QUADRO_GP100 QUADRO_GV100
    QUADRO_K2200 QUADRO_K620 QUADRO_M4000 QUADRO_M6000 QUADRO_P1000 QUADRO_P2000 QUADRO_P4000 QUADRO_P5000
    QUADRO_P6000 QUADRO_P620 QUADRO_RTX_4000 QUADRO_RTX_5000 QUADRO_RTX_6000 QUADRO_RTX_8000 Q_RTX_4000 Q_RTX_5000
    Q_RTX_6000 Q_RTX_8000 RADEON_VII RTX_2000 RTX_2000ADA RTX_2060 RTX_2060S RTX_2070 RTX_2070S RTX_2080 RTX_2080S
    RTX_3050 RTX_3060 RTX_3070 RTX_3080 RTX_3090 RTX_4000 RTX_4000ADA RTX_4050 RTX_4060 RTX_4070 RTX_4070S RTX_4080
    RTX_4080S RTX_4090 RTX_4500 RTX_4500ADA RTX_5000 RTX_5000ADA RTX_5050 RTX_5060 RTX_5070 RTX_5080 RTX_5090
    RTX_5880ADA RTX_6000 RTX_6000ADA RTX_A1000 RTX_A2000 RTX_A3000 RTX_A4000 RTX_A4500 RTX_A5000 RTX_A5500 RTX_A6000
    RTX_PRO_2000 RTX_PRO_4000 RTX_PRO_4500 RTX_PRO_5000 RTX_PRO_6000 RX_6800 RX_6900 RX_7900 T4 T4G TITAN_RTX
    TITAN_V TITAN_X TITAN_XP V100
"""
MODELS = frozenset(_LISTED.split())
_FAMILIES = frozenset({"RTX", "GTX", "RTX_PRO", "QUADRO", "QUADRO_RTX", "Q_RTX", "TITAN", "INSTINCT", "CMP", "RX"})
"""First words of models: each means all of its models."""
_VARIANT = re.compile(
    r"(?:\d{1,4}GB?|SXM\d?|PCIE?|NVL|NVLINK|HBM\d[A-Z]?|OAM|DGXS|FHHL|MIG|\d?G|TI|SUPER|D|V2|S|X|XT|XTX|GRE|ADA"
    r"|GENERATION|LAPTOP|MOBILE|MAX|Q|Q_?DESIGN|DESIGN|GPU|BLACKWELL|SERVER|WORKSTATION|WS|WK|EDITION|SFF|LR|M)\Z"
)
"""Words after a model that name a variant of it, such as `80GB`, `SXM4` or `TI`."""


def why_unknown(text: str, more: Collection[str] = ()) -> str | None:
    """Explain that no market knows a GPU model, with the nearest names; None: it is known.

    Args:
        text: The model as a caller wrote it.
        more: Further models that are known here.
    """
    wanted, known = gpu_name(text), MODELS.union(gpu_name(one) for one in more)
    if wanted in known or wanted in _FAMILIES or any(name.startswith(f"{wanted}_") for name in known):
        return None
    words = wanted.split("_")
    for cut in range(len(words) - 1, 0, -1):
        if "_".join(words[:cut]) in known and all(_VARIANT.match(word) for word in words[cut:]):
            return None
    near = get_close_matches(wanted, sorted(known), n=3, cutoff=0.6)
    # A number alone, as in `4090`.
    near = near or sorted(name for name in known if wanted and wanted in name.split("_"))[:3]
    hint = f" Did you mean {' or '.join(near)}?" if near else " Write it as RTX_4090 or H100_SXM."
    return f"GPU model {text!r} is not known.{hint}"
