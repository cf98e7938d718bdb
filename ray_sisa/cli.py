"""The program `ray-sisa`: arguments in, one answer out.

A command returns its answer; `_Command` alone prints it. Standard output carries the answer and nothing else, standard
error all logs and progress. What needs torch or Ray is imported inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ray_sisa import cli_attack, ids, printing, printing_measures
from ray_sisa.answer import Answer
from ray_sisa.approximate.methods import METHODS, make_method
from ray_sisa.command import (
    AllowModels,
    AsJson,
    Quiet,
    RunnerOption,
    RunUri,
    SampleIds,
    SamplesFile,
    Set,
    SetScaling,
    SubjectIds,
    SubjectsFile,
    Wait,
    named_ids,
)
from ray_sisa.command import Command as _Command
from ray_sisa.command import RunnerChoice as _Runner
from ray_sisa.command import open_run as _open
from ray_sisa.config import DataConfig, RunConfig
from ray_sisa.config_values import load_config
from ray_sisa.errors import ConfigError, RequestError, SisaError
from ray_sisa.foreign_text import Formatter
from ray_sisa.readings import checker, listed

if TYPE_CHECKING:
    from ray_sisa.engine.work import Event
    from ray_sisa.run import Run


class _Aggregation(StrEnum):
    mean = "mean"
    majority = "majority"
    weighted = "weighted"


Aggregation = Annotated[_Aggregation, typer.Option("--aggregation", help="How the constituents vote.")]
app = typer.Typer(
    name="ray-sisa",
    help="Distributed SISA training on Ray whose models forget exactly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # an unexpected error is a bug, and its plain traceback is what helps
)
app.add_typer(cli_attack.app, name="attack")


def main(arguments: Sequence[str] | None = None) -> None:
    """The program; exits with 0 only if it did what it says.

    Args:
        arguments: of the program; by default those of this process.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Formatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("ray_sisa").setLevel(logging.INFO)
    # What it warns of is its cache of fonts, which it makes elsewhere, or anew, where it must.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    app(None if arguments is None else list(arguments))


@app.command(cls=_Command)
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Configuration of the run.")],
    overrides: Set = None,
    runner: RunnerOption = _Runner.ray,
    wait: Wait = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> Answer:
    """Train a run, or continue it: what is trained already is not trained again."""
    from ray_sisa.run import Run

    began = time.perf_counter()
    run = Run.create(_checked_for_jobs(load_config(config, overrides or ())))
    done = run.train(runner=runner.value, tell=_progress(run, quiet), wait_s=wait)
    return printing.trained(done, run.store.uri, time.perf_counter() - began)


@app.command(cls=_Command)
def forget(
    run: RunUri,
    samples: SampleIds = None,
    subjects: SubjectIds = None,
    samples_from: SamplesFile = None,
    subjects_from: SubjectsFile = None,
    reason: Annotated[str, typer.Option(help="Free text, kept with the request.")] = "",
    key: Annotated[str | None, typer.Option(help="Idempotency key: sent again, it is the same request.")] = None,
    requester: Annotated[str, typer.Option(help="Who asks, kept with the request: its key is theirs alone.")] = "",
    ignore_unknown: Annotated[
        bool, typer.Option("--ignore-unknown", help="Pass over ids that the run never had.")
    ] = False,
    with_duplicates: Annotated[
        bool, typer.Option("--with-duplicates", help="Delete exact copies of the samples as well, whoever they are of.")
    ] = False,
    as_json: AsJson = False,
) -> Answer:
    """Acknowledge a deletion request. From then on no reader is served models of these samples."""
    opened = _open(run)
    named = named_ids(opened, samples, subjects, samples_from, subjects_from)
    done = opened.forget(
        **named,
        reason=reason,
        key=key,
        requester=requester,
        ignore_unknown=ignore_unknown,
        with_duplicates=with_duplicates,
    )
    return printing.forgotten(done)


@app.command(cls=_Command)
def unlearn(
    run: RunUri,
    overrides: SetScaling = None,
    runner: RunnerOption = _Runner.ray,
    wait: Wait = None,
    quiet: Quiet = False,
    allow_models: AllowModels = None,
    as_json: AsJson = False,
) -> Answer:
    """Complete all pending requests: retrain what they touch, and purge what saw the samples."""
    opened = _open(run, overrides)
    done = opened.unlearn(runner=runner.value, tell=_progress(opened, quiet), wait_s=wait)
    return printing.unlearned(done)


@app.command(cls=_Command)
def status(run: RunUri, as_json: AsJson = False) -> Answer:
    """Show the ensemble in force, its shards, and what is pending."""
    opened = _open(run)
    return printing.status(opened.status(), opened.privacy())


@app.command(cls=_Command)
def approximate(
    run: RunUri,
    method: Annotated[str, typer.Option("--method", metavar="NAME", help=f"One of {', '.join(METHODS)}.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a dial of the method, or scaling.KEY. Repeatable."),
    ] = None,
    samples: SampleIds = None,
    subjects: SubjectIds = None,
    samples_from: SamplesFile = None,
    subjects_from: SubjectsFile = None,
    runner: RunnerOption = _Runner.ray,
    wait: Wait = 60.0,
    quiet: Quiet = False,
    allow_models: AllowModels = None,
    as_json: AsJson = False,
) -> Answer:
    """Make an approximately unlearned model of a run of one shard and one slice, to compare with. Deletes nothing."""
    from ray_sisa.progress import quietly

    scaling = [text for text in overrides or () if text.startswith("scaling.")]
    chosen = make_method(method, [text for text in overrides or () if text not in scaling])
    opened = _open(run, scaling)
    named = named_ids(opened, samples, subjects, samples_from, subjects_from)
    known = {made.key for made in opened.approximations()}
    forget, of = named.get("samples", ()), named.get("subjects", ())
    with quietly(quiet):
        made = opened.approximate(chosen, forget=forget, subjects=of, runner=runner.value, wait_s=wait)
    return printing_measures.approximated(made, was_there=made.key in known)


@app.command(cls=_Command)
def evaluate(
    run: RunUri,
    forget: Annotated[
        str | None,
        typer.Option(metavar="N|FILE", help="The forget set: a request's number, or a file of ids as for `forget`."),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(metavar="CONFIG|DATA", help="Where to read the forget set; by default what the run was made of."),
    ] = None,
    aggregation: Aggregation = _Aggregation.mean,
    approximation: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Measure this approximation in place of the ensemble; or a method's name."),
    ] = None,
    roc: Annotated[bool, typer.Option("--roc", help="ROC curves in the JSON.")] = False,
    overrides: SetScaling = None,
    runner: RunnerOption = _Runner.ray,
    allow_models: AllowModels = None,
    as_json: AsJson = False,
) -> Answer:
    """Measure the ensemble in force: accuracies, and what a membership attacker can tell."""
    opened = _open(run, overrides)
    found = opened.evaluate(
        forget=None if forget is None else int(forget) if _is_number(forget) else _forget_set(opened, forget),
        source=None if source is None else _source(opened, source),
        aggregation=aggregation.value,
        runner=runner.value,
        approximation=approximation,
    )
    return printing_measures.evaluated(found, with_roc=roc, is_repeatable=opened.record.training.is_repeatable)


@app.command(cls=_Command)
def verify(
    run: RunUri,
    shards: Annotated[str | None, typer.Option(metavar="0,1", help="Which shards; all by default.")] = None,
    from_scratch: Annotated[
        bool, typer.Option("--from-scratch", help="Train every stage again, from initial weights. The default.")
    ] = False,
    sample: Annotated[
        int | None, typer.Option(min=1, metavar="K", help="Train K stages again, drawn at random, from their parents.")
    ] = None,
    overrides: SetScaling = None,
    runner: RunnerOption = _Runner.ray,
    allow_models: AllowModels = None,
    as_json: AsJson = False,
) -> Answer:
    """Train stages again and compare them with the store, bit for bit. Exits with 1 if any differs."""
    if from_scratch and sample is not None:
        raise RequestError("--sample", sample, "cannot be given with --from-scratch", "Give one of the two")
    numbers = None if shards is None else _numbers("--shards", shards)
    found = _open(run, overrides).verify(shards=numbers, sample=sample, runner=runner.value)
    return printing.verified(found)


@app.command(cls=_Command)
def check(
    run: RunUri,
    repair: Annotated[
        bool, typer.Option("--repair", help="Remove what is invalid or must not exist, and make the rest again.")
    ] = False,
    overrides: SetScaling = None,
    runner: RunnerOption = _Runner.ray,
    wait: Wait = None,
    quiet: Quiet = False,
    allow_models: AllowModels = None,
    as_json: AsJson = False,
) -> Answer:
    """Read every object of a run and say what is damaged, missing or must not exist. Exits with 1 if any is."""
    from ray_sisa import check as checks
    from ray_sisa.progress import counter
    from ray_sisa.store import Store

    store = Store(run)
    before = after = checks.check(store, counter("objects", quiet))
    stopped: SisaError | None = None
    if repair and not before.ok:
        try:
            checks.repair(store, before, wait)
            opened = _open(run, overrides)
            opened.train(runner=runner.value, tell=_progress(opened, quiet), wait_s=wait)
        except SisaError as error:
            stopped = error  # told beside what is still wrong, which may be why
        after = checks.check(store, counter("objects", quiet))
    left = {finding.path for finding in after.findings}
    return printing.checked(after, [f.path for f in before.findings if f.path not in left], stopped)


@app.command(cls=_Command)
def plan(
    target: Annotated[str, typer.Argument(metavar="CONFIG|RUN", help="A configuration, or a run that exists.")],
    requests: Annotated[
        int | None, typer.Option(metavar="K", help="The expected cost of K random deletions in one batch.")
    ] = None,
    samples: SampleIds = None,
    subjects: SubjectIds = None,
    samples_from: SamplesFile = None,
    subjects_from: SubjectsFile = None,
    overrides: Set = None,
    allow_models: AllowModels = None,
    as_json: AsJson = False,
) -> Answer:
    """Say what training or a deletion would cost. Writes nothing.

    Of a configuration: training it. Of a run: what `train` or `unlearn` would do now, or what forgetting these samples
    would cost. With --requests: what so many random deletions are expected to cost.
    """
    from ray_sisa import planning

    is_named = any(name is not None for name in (samples, subjects, samples_from, subjects_from))
    if requests is not None and is_named:
        raise RequestError("--requests", requests, "cannot be given with samples", "Give one of the two")
    if _is_config(target):
        if is_named:
            raise RequestError("samples", "", "a configuration has none", "Name a run, or give --requests")
        return printing.planned(planning.plan_config(load_config(target, overrides or ()), requests))
    run = _open(target, overrides)
    if is_named:
        named = named_ids(run, samples, subjects, samples_from, subjects_from)
        return printing.planned(planning.plan_forgetting(run, **named))
    found = planning.plan_next(run) if requests is None else planning.plan_random_deletions(run, requests)
    return printing.planned(found)


@app.command(cls=_Command)
def predict(
    run: RunUri,
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help="Image, .npy, .npz or .parquet files.")],
    aggregation: Aggregation = _Aggregation.mean,
    allow_models: AllowModels = None,
    as_json: AsJson = False,
) -> Answer:
    """Ask the ensemble in force about images or feature vectors."""
    from ray_sisa.data import load_inputs

    opened = _open(run)
    shape, read = opened.record.training.image_shape, opened.record.config.data
    names, arrays = load_inputs(inputs, shape, read.columns, read.exif)
    ensemble = opened.ensemble()
    scores = ensemble.predict_proba(arrays, aggregation.value)
    return printing.predicted(names, scores, ensemble.head, ensemble.silent)


@app.command(cls=_Command)
def report(
    run: RunUri,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write it; by default into the run.")
    ] = None,
    as_json: AsJson = False,
) -> Answer:
    """Write the run's report, one HTML page."""
    from ray_sisa.report import write_report

    where = write_report(_open(run), output)
    return Answer(fields={"report": where}, text=where)


@app.command(cls=_Command)
def demo(
    folder: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to keep the run.")] = None,
    as_json: AsJson = False,
) -> Answer:
    """Train, forget and prove it, on this machine, within minutes. Exits with 1 if the proof fails."""
    from ray_sisa.demo import run_demo

    result = run_demo(folder, echo=lambda line: print(line, file=sys.stderr))
    return Answer(fields=result.as_dict(), text=f"{result.table}\n\nreport  {result.report}", ok=result.verified)


def _checked_for_jobs(config: RunConfig) -> RunConfig:
    """The same configuration, unless its run would be lost: Ray deletes the working folder of a submitted job.

    Raises:
        ConfigError: a relative `storage_path` in a submitted job.
    """
    in_a_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ  # set by Ray for the driver of a submitted job
    if in_a_job and "://" not in config.storage_path and not Path(config.storage_path).expanduser().is_absolute():
        rule = "is relative to the working folder of this job, which Ray deletes with all that is in it"
        raise ConfigError("storage_path", config.storage_path, rule, "Give a URI or a full path that every node has")
    return config


def _progress(run: Run, quiet: bool) -> Callable[[Event], None]:
    if quiet:
        return lambda event: None
    from ray_sisa.planning import missing_stages
    from ray_sisa.progress import Progress

    return Progress(missing_stages(run), run.record.config.placement.slices)


def _numbers(option: str, text: str) -> list[int]:
    parts = listed(text)
    if not parts or not all(map(_is_number, parts)):
        raise RequestError(option, text, "must be whole numbers with commas between them", "For example 0,2")
    return [int(part) for part in parts]


def _forget_set(run: Run, path: str) -> Iterable[str]:
    return ids.read("--forget", path, checker(run, "--forget", by_subject=False))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _is_config(target: str) -> bool:
    return target.endswith((".yaml", ".yml")) or Path(target).is_file()


def _source(run: Run, source: str) -> DataConfig:
    """The data section of a configuration; or data laid out as the run's own, at another place."""
    if source.endswith((".yaml", ".yml")):
        return load_config(source).data
    config = run.record.config.data
    if config.source == "parquet":
        return config.model_copy(update={"train": source})
    if config.source.startswith("torchvision:"):
        return config.model_copy(update={"root": source})
    raise RequestError("--source", source, f"{config.source} lies nowhere else", "Leave it out, or give a CONFIG.yaml")


if __name__ == "__main__":
    main()
