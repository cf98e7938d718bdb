"""What the benchmarks share: legs timed in turns, ratios within a round, and a report of what was measured where.

It times and prints; what is worth measuring, and the target, each benchmark says itself.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

from ray_sisa.strict_json import finite, to_json

ROOT = Path(__file__).resolve().parent.parent
Measured = TypeVar("Measured")
LIBRARIES = ("numpy", "pyarrow", "obstore", "pydantic", "torch", "torchvision", "ray")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One number that answers the question, and the bound that it is to keep, if any."""

    name: str
    value: float
    unit: str
    spread: tuple[float, float] | None = None
    """Least and greatest of the repetitions."""
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the bound is kept; None where there is none."""
        if self.at_least is None and self.at_most is None:
            return None
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )

    @property
    def target(self) -> str:
        """The bound in words."""
        bounds = (("at least", self.at_least), ("at most", self.at_most))
        return ", ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)


def parse_arguments(
    description: str | None, add: Callable[[argparse.ArgumentParser], object] = lambda parser: None
) -> argparse.Namespace:
    """The command line: what `add` defines, and the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="seconds, to see that it runs; the numbers mean nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write what was measured to FILE")
    add(parser)
    return parser.parse_args()


def in_turns(legs: Mapping[str, Callable[[], Measured]], repetitions: int) -> dict[str, list[Measured]]:
    """What each leg returns, by repetition: A B C, A B C, ..., so that a drifting machine is shared by all."""
    measured: dict[str, list[Measured]] = {name: [] for name in legs}
    for repetition in range(repetitions):
        for name, leg in legs.items():
            gc.collect()
            began = time.perf_counter()
            measured[name].append(leg())
            took = time.perf_counter() - began
            print(f"  {repetition + 1}/{repetitions} {name}: {took:.1f} s", file=sys.stderr, flush=True)
    return measured


def found(name: str, values: Sequence[float], unit: str, **bounds: float) -> Finding:
    """The median of some repetitions, with their spread."""
    return Finding(name=name, value=statistics.median(values), unit=unit, spread=(min(values), max(values)), **bounds)


def ratio(name: str, upper: Sequence[float], lower: Sequence[float], **bounds: float) -> Finding:
    """The median of the ratios of each round: noise that both legs of a round met falls out."""
    return found(name, [a / b for a, b in zip(upper, lower, strict=True)], "x", **bounds)


def percentile(values: Sequence[float], percent: float) -> float:
    """The least value that `percent` per cent of the values do not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def machine() -> dict[str, object]:
    """What a time may depend on: processor, cores, load, device, versions. No name or path of the machine."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "device": _device(),
        "libraries": {name: _version(name) for name in LIBRARIES},
        "load_average": round(os.getloadavg()[0], 2),
    }


def report(
    *,
    question: str,
    findings: Sequence[Finding],
    arguments: argparse.Namespace,
    raw: Mapping[str, object],
    settings: Mapping[str, object],
    before: Mapping[str, object],
) -> None:
    """Prints the table, and writes all that is needed to read it later.

    Args:
        question: what was asked.
        findings: the answer.
        arguments: the command line as parsed.
        raw: every repetition.
        settings: sizes and options that were in force.
        before: `machine()` as it was at the start.
    """
    print(f"\n{question}")
    print(f"{before['processor']}, {before['cores']} cores; load {before['load_average']} -> {os.getloadavg()[0]:.2f}")
    _print_table(findings)
    if arguments.json is None:
        return
    content = {
        "benchmark": Path(sys.argv[0]).stem,
        "question": question,
        "command": ["python", f"benchmarks/{Path(sys.argv[0]).name}", *_options(arguments)],
        "quick": arguments.quick,
        "commit": commit(),
        "machine": {**before, "load_average_after": round(os.getloadavg()[0], 2)},
        "settings": dict(settings),
        "findings": [{**asdict(finding), "met": finding.met} for finding in findings],
        "raw": dict(raw),
    }
    arguments.json.write_text(to_json(finite(content), indent=1) + "\n", encoding="utf-8")


def commit() -> str | None:
    """The commit of the checkout, with `+` where files differ from it; None outside git."""
    try:
        head = _git("rev-parse", "HEAD").strip()
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _print_table(findings: Sequence[Finding]) -> None:
    width = max(len(finding.name) for finding in findings)
    print(f"{'':{width}}  {'median':>10}        {'least .. greatest':>21}  target")
    for finding in findings:
        spread = "{:.4g} .. {:.4g}".format(*finding.spread) if finding.spread else ""
        verdict = {None: "", True: "met", False: "MISSED"}[finding.met]
        print(
            f"{finding.name:{width}}  {finding.value:>10.4g} {finding.unit:<6} {spread:>21}  {finding.target} {verdict}"
        )


def _options(arguments: argparse.Namespace) -> list[str]:
    """The command line in full, less the file that the report goes to."""
    parts: list[str] = []
    for name, value in vars(arguments).items():
        if name != "json" and value not in (None, False):
            values = value if isinstance(value, list) else [] if value is True else [value]
            parts += [f"--{name.replace('_', '-')}", *map(str, values)]
    return parts


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _device() -> str | None:
    torch = sys.modules.get("torch")  # a benchmark that never loaded torch used no device
    return torch.cuda.get_device_name(0) if torch is not None and torch.cuda.is_available() else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
