"""Runs one target under atheris, which follows which code each input reaches.

    python tests/fuzz/fuzz_yaml.py -max_total_time=60     # any option of libFuzzer

Starts from valid bytes and the kept seeds. What fails is written beside the working folder's other files as `crash-*`;
keep it in seeds/<target>/ once it is fixed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
LIMITS = ["-timeout=60", "-rss_limit_mb=4096", "-max_len=16384"]


def fuzz(target: str) -> None:
    """Fuzzes a target with the options of the command line; ends the process."""
    import atheris

    sys.path.insert(0, str(HERE.parents[1]))
    import torch  # noqa: F401 - before instrumentation, which is for the code that reads the bytes

    with atheris.instrument_imports(include=["ray_sisa", "yaml", "safetensors", "pickletools", "zipfile"]):
        import targets

    corpus = Path(tempfile.mkdtemp(prefix=f"corpus-{target}-"))
    for number, example in enumerate(targets.examples(target)):
        (corpus / f"example-{number}").write_bytes(example)
    seeds = HERE / "seeds" / target
    folders = [str(corpus), *([str(seeds)] if seeds.exists() else [])]
    atheris.Setup([sys.argv[0], *LIMITS, *sys.argv[1:], *folders], lambda data: targets.survives(target, data))
    atheris.Fuzz()
