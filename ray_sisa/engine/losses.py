"""Why a worker was lost, in plain words, read from what Ray says of it. Text in, text out: no Ray here."""

from __future__ import annotations

import re

NODE = re.compile(r"\(IP: ([^,)]+)")
IN_USE = re.compile(r"was ([\d.]+) ?GB(?: used)? / ([\d.]+) ?GB")
OWN = r"pid={pid}\b[^\n]*?memory used=([\d.]+) ?GB"
REASON = re.compile(r"node was (?:preempted|terminated[^:]*): *([^\n]+)")
MORE_MEMORY = (
    "Let fewer workers share a node: raise scaling.resources_per_worker (`memory`, in bytes, or `CPU`) or lower "
    "scaling.max_concurrent_shards, both of which may change for a run that is there; or use nodes with more memory. "
    "What a worker needs follows recipe.batch_size and the model, which only a new run can change"
)


def killed_for_memory(text: str, process: str = "", pid: int = 0) -> str:
    """Of a worker that Ray's memory monitor killed.

    Args:
        text: Ray's `OutOfMemoryError`.
        process: where the worker was, if known.
        pid: its process, if known.
    """
    node, in_use, own = NODE.search(text), IN_USE.search(text), re.search(OWN.format(pid=pid), text)
    words = f"{process or 'the worker'} was killed for memory"
    if in_use:
        on = f"node {node[1]}" if node else "its node"
        words += f": {on} had {in_use[1]} GB of {in_use[2]} GB in use"
    if own:
        words += f", {own[1]} GB of it by this process"
    said, _, _ = text.partition("Object store memory usage")  # a page on what this package does not use
    return f"{words}.\n{MORE_MEMORY}.\n{said}"


def lost(text: str, process: str = "", preempted: bool = False) -> str:
    """Of a worker that was lost in another way.

    Args:
        text: Ray's error.
        process: where the worker was, if known.
        preempted: whether its node was taken away by notice.
    """
    return f"{process or 'the worker'} {_how(text, preempted)}\n{text}"


def _how(text: str, preempted: bool) -> str:
    reason = f" ({match[1]})" if (match := REASON.search(text)) else ""
    if preempted:
        return f"was preempted with its node{reason}"
    if "its node has died" in text:
        return f"died with its node{reason}"
    if "is unavailable" in text:
        return "is out of reach: its node died, or the network to it failed"
    if "raised in its creation task" in text:
        return "could not start"
    if "connection error code 2" in text:
        return (
            "ended without a word: it was killed (if by the kernel for want of memory, `dmesg` on the node says so), "
            "or it crashed"
        )
    return "was lost"
