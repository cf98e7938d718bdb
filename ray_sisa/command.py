"""What all commands of the program share: how one answers, and the arguments that many take.

Standard output carries the answer and nothing else, standard error all logs and progress.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from ray_sisa import ids, model_code, printing
from ray_sisa.answer import Answer
from ray_sisa.config_values import override
from ray_sisa.errors import ConfigError, RequestError, SisaError
from ray_sisa.foreign_text import escaped
from ray_sisa.readings import checker, listed, otherwise
from ray_sisa.strict_json import finite, to_json
from ray_sisa.termination import TERMINATED, Terminated, graceful

if TYPE_CHECKING:
    from ray_sisa.run import Run

FAILED, INTERRUPTED = 1, 130


class Command(TyperCommand):
    """Runs a command, prints its answer, and turns errors raised on purpose into one line and an exit code."""

    def invoke(self, ctx: Any) -> None:
        """Runs it once."""
        as_json = ctx.params["as_json"]
        model_code.allow(ctx.params.get("allow_models") or ())
        try:
            # Whatever a library or a user's model prints must not mix with the answer.
            with redirect_stdout(sys.stderr), graceful():
                answer: Answer = super().invoke(ctx)
        except SisaError as error:
            if as_json:
                print(to_json(printing.failed(error)))
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(FAILED) from None
        except KeyboardInterrupt:
            print("interrupted: run the same command again to continue", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        except Terminated:
            print("terminated: run the same command again to continue", file=sys.stderr)
            raise typer.Exit(TERMINATED) from None
        print(to_json(finite(answer.fields)) if as_json else escaped(answer.text, keep="\n"))
        if not answer.ok:
            raise typer.Exit(FAILED)


# Enumerations, since typer learned to read `Literal` only in later versions than the oldest supported one.
class RunnerChoice(StrEnum):
    """Where to work."""

    ray = "ray"
    local = "local"


RunUri = Annotated[str, typer.Argument(metavar="RUN", help="storage_path/name of the run, a folder or URI.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
RunnerOption = Annotated[RunnerChoice, typer.Option("--runner", help="Where to work: a Ray cluster, or this process.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on standard error.")]
SetScaling = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a field of scaling or purge, or recipe.on_divergence, for this command. Repeatable.",
    ),
]

AllowModels = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-model",
        metavar="PACKAGE.MODULE:FUNCTION",
        help="Import this network if the run names it: code of whoever made the run. Repeatable.",
    ),
]
Wait = Annotated[
    float | None,
    typer.Option(
        "--wait",
        min=0,
        metavar="SECONDS",
        help="Wait so long for another process that works on the run; by default, as long as the lease of a dead one.",
    ),
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a field: recipe.seed=1. Repeatable.")
]
SampleIds = Annotated[str | None, typer.Option("--samples", metavar="A,B", help="Ids of samples.")]
SubjectIds = Annotated[str | None, typer.Option("--subjects", metavar="U,V", help="Ids of subjects.")]
SamplesFile = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="FILE",
        help="Ids of samples, one a line; - is standard input. In FILE.jsonl each line is a JSON string or integer, "
        "for ids with newlines or outer spaces.",
    ),
]
SubjectsFile = Annotated[str | None, typer.Option("--subjects-from", metavar="FILE", help="Ids of subjects, likewise.")]


def open_run(uri: str, overrides: Sequence[str] | None = None) -> Run:
    """The run at a URI, with other values of scaling, purge and `recipe.on_divergence`."""
    from ray_sisa.run import Run

    run = Run.open(uri)
    if not overrides:
        return run
    for text in overrides:
        if not text.startswith(("scaling.", "purge.", "recipe.on_divergence=")):
            rule = "can only change scaling, purge and recipe.on_divergence: all else is fixed for the life of a run"
            raise ConfigError("--set", text, rule, "For example --set scaling.max_concurrent_shards=2")
    changed = override(run.record.config, overrides)
    return Run.open(uri, changed.scaling, changed.purge, changed.recipe.on_divergence)


def named_ids(
    run: Run, samples: str | None, subjects: str | None, samples_from: str | None, subjects_from: str | None
) -> dict[str, Iterable[str]]:
    """The argument `samples` or `subjects` of `Run.forget` that one of the four options gives.

    Raises:
        RequestError: none is given, or more than one; or what is given can be read in two ways, both of them ids.
    """
    given = [value for value in (samples, subjects, samples_from, subjects_from) if value is not None]
    if len(given) != 1:
        rule = "exactly one of --samples, --subjects, --from and --subjects-from must be given"
        raise RequestError("request", ", ".join(given), rule, "Name what to forget in one way")
    kind = "samples" if samples is not None or samples_from is not None else "subjects"
    path = subjects_from if samples_from is None else samples_from
    if path is not None:
        option = "--from" if kind == "samples" else "--subjects-from"
        return {kind: ids.read(option, path, checker(run, option, by_subject=kind == "subjects"))}
    text = samples or subjects or ""
    checker(run, f"--{kind}", by_subject=kind == "subjects")(list(otherwise(text)))
    return {kind: listed(text)}
