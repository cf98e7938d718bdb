"""A call in a process of its own, with a limit on its memory and its time: what is not refused in bounds ends there."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECONDS = 120  # on a machine that others use as well

# Address space above what the imports took: an allocation that is refused is a MemoryError, not a killed machine.
_CHILD = """
import os, pickle, re, resource, sys, threading
{imports}
used = int(re.search(r"VmSize:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + {allowed}, used + {allowed}))
try:
    {call}
    raised = None
except BaseException as error:
    raised = error
sys.stdout.buffer.write(pickle.dumps((type(raised).__name__, str(raised)[:2000])))
sys.stdout.flush()
os._exit(0)
"""


def raised_by(call: str, *, imports: str, megabytes: int) -> tuple[str, str]:
    """Name and message of what a call raises when it may take so much memory beside its imports."""
    code = _CHILD.format(imports=imports, call=call, allowed=megabytes << 20)
    # Arrow's own allocator reserves more addresses than it uses.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ARROW_DEFAULT_MEMORY_POOL": "system"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr.decode()
    found: tuple[str, str] = pickle.loads(done.stdout)  # of our own child
    return found
