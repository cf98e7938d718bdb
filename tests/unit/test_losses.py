"""What Ray says of lost workers, in plain words. The texts are those of Ray 2.60 (and before), shortened."""

from __future__ import annotations

import pytest

from ray_sisa.engine.losses import killed_for_memory, lost

PROCESS = "process 7891 on node 192.0.2.2"
MEMORY = """\
2 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.2, ID: 1bf4c431) was \
1.84GB used / 23.54GB limit (0.078237)
OOM kill reason: Memory usage 1936154624B exceeded threshold of 1921015040B (7.6% of 25276514304B limit)
Object store memory usage: [- objects spillable: 0
- bytes spillable: 0]
Considered workers: [
Selected to kill: (Actor(3a): job ID=01000000, task name=A.__init__, required resources={}, pid=78, actual memory \
used=0.11GB, worker ID=51)
Selected to kill: (Actor(2f): job ID=01000000, task name=A.__init__, required resources={}, pid=7891, actual memory \
used=0.79GB, worker ID=52)
]"""
MEMORY_BEFORE = """\
Memory on the node (IP: 192.0.2.2, ID: 1bf4c431) where the task (actor ID: 2f, name=A.__init__, pid=7891, memory \
used=0.79GB) was running was 1.84GB / 23.54GB (0.078), which exceeds the memory usage threshold of 0.076."""
DIED = "The actor died unexpectedly before finishing this task.\n\tclass_name: ShardWorker\n\tpid: 7270\n"


@pytest.mark.parametrize("text", [MEMORY, MEMORY_BEFORE], ids=["2.60", "before"])
def test_a_kill_for_memory_says_how_much_where_and_what_to_change(text: str) -> None:
    words = killed_for_memory(text, PROCESS, 7891)
    first, remedy = words.splitlines()[:2]
    amounts = "node 192.0.2.2 had 1.84 GB of 23.54 GB in use, 0.79 GB of it by this process"
    assert first == f"{PROCESS} was killed for memory: {amounts}."
    for field in ("scaling.resources_per_worker", "scaling.max_concurrent_shards", "recipe.batch_size"):
        assert field in remedy
    assert text.splitlines()[0] in words
    assert "bytes spillable" not in words


def test_the_own_memory_is_that_of_the_process_alone() -> None:
    assert "0.11 GB of it by this process" in killed_for_memory(MEMORY, "process 78 on node 192.0.2.2", 78)
    assert "by this process" not in killed_for_memory(MEMORY, "process 789 on node 192.0.2.2", 789)


def test_a_text_that_says_nothing_known_is_kept_whole() -> None:
    words = killed_for_memory("The node is full.")
    assert words.startswith("the worker was killed for memory.\nLet fewer workers share a node")
    assert words.endswith("\nThe node is full.")


@pytest.mark.parametrize(
    ("text", "preempted", "expected"),
    [
        (
            "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
            "Worker unexpectedly exits with a connection error code 2. End of file.",
            False,
            "ended without a word: it was killed (if by the kernel for want of memory, `dmesg` on the node says so)",
        ),
        (
            "The actor died because its node has died.\n\tthe actor's node was preempted: spot is taken",
            True,
            "was preempted with its node (spot is taken)",
        ),
        (
            "The actor died because its node has died.\n\tthe actor's node was terminated unexpectedly: "
            "health check failed due to missing too many heartbeats",
            False,
            "died with its node (health check failed due to missing too many heartbeats)",
        ),
        ("The actor 2f is unavailable: The actor is temporarily unavailable.", False, "is out of reach"),
        ("The actor 2f is unavailable: The actor is temporarily unavailable.", True, "was preempted with its node"),
        ("The actor died because of an error raised in its creation task, No module", False, "could not start"),
        ("Something new.", False, "was lost"),
    ],
)
def test_other_losses(text: str, preempted: bool, expected: str) -> None:
    words = lost(DIED + text, PROCESS, preempted)
    assert words.startswith(f"{PROCESS} {expected}")
    assert words.endswith(DIED + text)
