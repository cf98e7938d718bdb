"""`ray-sisa attack`: attacks on a run beyond what `evaluate` measures; one command an attack."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ray_sisa import printing
from ray_sisa.command import AsJson, Command, Quiet, RunnerChoice, RunnerOption, RunUri, SetScaling, open_run
from ray_sisa.config import Columns
from ray_sisa.config_values import load_config
from ray_sisa.errors import ConfigError
from ray_sisa.printing import Answer

if TYPE_CHECKING:
    from ray_sisa.run import Run
    from ray_sisa.samples import Samples


class _Targets(StrEnum):
    constituents = "constituents"
    ensemble = "ensemble"


class _Style(StrEnum):
    wide = "wide"
    study = "study"


app = typer.Typer(help="Attack a run, to see what it gives away.", no_args_is_help=True)


@app.callback()
def _attack() -> None:
    """Keeps `inversion` a command of its own: a single one would take its group's place."""


@app.command(cls=Command)
def inversion(
    run: RunUri,
    layer: Annotated[
        str, typer.Option("--layer", metavar="NAME", help="Whose output leaves the device; an error lists the names.")
    ],
    public: Annotated[
        str, typer.Option("--public", metavar="DATA", help="What the attacker has: a Parquet file, or CONFIG.yaml.")
    ],
    victims: Annotated[
        str, typer.Option("--victims", metavar="DATA", help="Images to reconstruct, which the attacker never sees.")
    ],
    cluster: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="What the intervals resample: a column of the victims; else the label."),
    ] = None,
    targets: Annotated[
        _Targets, typer.Option("--targets", help="Each constituent alone, or what all of them send together.")
    ] = _Targets.constituents,
    noise: Annotated[
        str | None, typer.Option(metavar="KIND:SCALE", help="A defence: laplace:0.5 or gaussian:0.5 on what leaves.")
    ] = None,
    style: Annotated[
        _Style, typer.Option("--decoder", help="The attacker's network: a strong one, or that of the original study.")
    ] = _Style.wide,
    epochs: Annotated[int, typer.Option(min=1, help="Passes of the attacker over the public images.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the attacker.")] = 0,
    white_box: Annotated[
        bool, typer.Option("--white-box", help="Also look for the image with the weights at hand.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder for pictures; they show victims, so no run keeps them.")
    ] = None,
    overrides: SetScaling = None,
    runner: RunnerOption = RunnerChoice.ray,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> Answer:
    """Reconstruct images from what a split network sends from a device to a server. Changes no model."""
    from ray_sisa.inversion.attack import DecoderConfig
    from ray_sisa.progress import attack_progress
    from ray_sisa.splitting import ActivationNoise

    opened = open_run(run, overrides)
    of_victims = _samples(opened, victims, cluster)
    made = opened.attack_inversion(
        layer,
        _samples(opened, public, None),
        of_victims,
        clusters=None if cluster is None else of_victims.subjects.to_pylist(),
        targets=targets.value,
        noise=None if noise is None else ActivationNoise.parse(noise),
        decoder=DecoderConfig(style=style.value, epochs=epochs, seed=seed),
        white_box=white_box,
        pictures=out,
        runner=runner.value,
        tell=attack_progress(quiet),
    )
    return printing.inverted(made, out)


def _samples(run: Run, location: str, cluster: str | None) -> Samples:
    """The samples at a place: a Parquet file or folder in the run's columns, or the training set of a configuration."""
    from ray_sisa import data, parquet

    config = load_config(location).data if location.endswith((".yaml", ".yml")) else None
    if config is not None and config.source != "parquet":
        if cluster is not None:
            rule = f"names a column, and {config.source} has none"
            raise ConfigError("--cluster", cluster, rule, "Leave it out, or give a Parquet file")
        return data.load(config).train
    own = run.record.config.data
    columns = config.columns if config else own.columns if own.source == "parquet" else Columns()
    if cluster is not None:
        columns = columns.model_copy(update={"subject": cluster})
    where = location if config is None or config.train is None else config.train
    return parquet.read(where, columns, "data.train")
