"""How large an object of each kind may be, judged before a byte of it is read."""

from __future__ import annotations

from ray_sisa import memory
from ray_sisa.layout import kind_of

MIB = 1 << 20
LARGEST = {
    **dict.fromkeys(("lease", "activity", "probes", "seals", "spent", "stages/diverged"), MIB),
    **dict.fromkeys(("stages/stage", "partial/record", "approximate/record"), 256 * MIB),  # a line each epoch
    **dict.fromkeys(("heads", "certificates"), 256 * MIB),  # a line each shard or stage
    **dict.fromkeys(("run.json", "ledger", "reports"), 2048 * MIB),  # a line each slice or sample
}
"""In bytes, many times what it ever is. Samples, weights and segments may be as large as the memory."""


def refusal(path: str, size: int) -> str:
    """Why an object of so many bytes is not read, or nothing."""
    if size > LARGEST.get(kind_of(path), size):
        return f"has {size:,} bytes, more than its kind may have"
    if size > MIB and size > memory.limit():
        return f"has {size:,} bytes, more than there is memory"
    return ""
