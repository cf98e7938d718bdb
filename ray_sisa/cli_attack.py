"""`ray-sisa attack`: attacks on a run beyond what `evaluate` measures; one command an attack."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ray_sisa import printing_measures
from ray_sisa.answer import Answer
from ray_sisa.command import (
    AllowModels,
    AsJson,
    Command,
    Quiet,
    RunnerChoice,
    RunnerOption,
    RunUri,
    SetScaling,
    open_run,
)
from ray_sisa.config import Columns, DataConfig
from ray_sisa.config_values import load_config
from ray_sisa.errors import ConfigError

if TYPE_CHECKING:
    from ray_sisa.inverting import AttackerConfig
    from ray_sisa.parquet_sources import Location
    from ray_sisa.run import Run
    from ray_sisa.samples import Samples


class _Targets(StrEnum):
    constituents = "constituents"
    ensemble = "ensemble"


class _Style(StrEnum):
    wide = "wide"
    study = "study"
    kernel = "kernel"


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
        typer.Option(
            metavar="COLUMN",
            help="What the intervals resample: a column of the victims; else the label. Of the public images what the "
            "kernel attacker leaves out together, where they have it.",
        ),
    ] = None,
    targets: Annotated[
        _Targets, typer.Option("--targets", help="Each constituent alone, or what all of them send together.")
    ] = _Targets.constituents,
    noise: Annotated[
        str | None, typer.Option(metavar="KIND:SCALE", help="A defence: laplace:0.5 or gaussian:0.5 on what leaves.")
    ] = None,
    style: Annotated[
        _Style,
        typer.Option(
            "--decoder",
            help="The attacker: a strong network, that of the original study, or kernel ridge regression (seconds).",
        ),
    ] = _Style.wide,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, show_default="100", help="Passes of a network over the public images; kernel has none."),
    ] = None,
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
    allow_models: AllowModels = None,
    as_json: AsJson = False,
) -> Answer:
    """Reconstruct images from what a split network sends from a device to a server. Changes no model."""
    from ray_sisa.progress import attack_progress
    from ray_sisa.splitting import ActivationNoise

    decoder = _attacker(style, epochs, seed)
    opened = open_run(run, overrides)
    of_victims = _samples(opened, victims, cluster)
    has_clusters = style is _Style.kernel and cluster is not None and _has_column(public, cluster)
    of_public = _samples(opened, public, cluster if has_clusters else None)
    made = opened.attack_inversion(
        layer,
        of_public,
        of_victims,
        clusters=None if cluster is None else of_victims.subjects.to_pylist(),
        public_clusters=of_public.subjects.to_pylist() if has_clusters else None,
        targets=targets.value,
        noise=None if noise is None else ActivationNoise.parse(noise),
        decoder=decoder,
        white_box=white_box,
        pictures=out,
        runner=runner.value,
        tell=attack_progress(quiet),
    )
    return printing_measures.inverted(made, out)


def _attacker(style: _Style, epochs: int | None, seed: int) -> AttackerConfig:
    from ray_sisa.inversion.attack import DecoderConfig
    from ray_sisa.inversion.kernel import KernelConfig

    if style is _Style.kernel:
        if epochs is not None:
            raise ConfigError("--epochs", epochs, "is for networks, and the kernel attacker is none", "Leave it out")
        return KernelConfig(seed=seed)
    name: Literal["study", "wide"] = "study" if style is _Style.study else "wide"
    return DecoderConfig(style=name, epochs=100 if epochs is None else epochs, seed=seed)


def _samples(run: Run, location: str, cluster: str | None) -> Samples:
    """The samples at a place: a Parquet file or folder in the run's columns, or the training set of a configuration."""
    from ray_sisa import data, parquet
    from ray_sisa.image_form import Form

    config, own = _config(location), run.record.config.data
    exif = (config and config.exif) or own.exif
    if config is not None and config.source != "parquet":
        if cluster is not None:
            rule = f"names a column, and {config.source} has none"
            raise ConfigError("--cluster", cluster, rule, "Leave it out, or give a Parquet file")
        return data.load(config.model_copy(update={"exif": exif})).train
    columns = config.columns if config else own.columns if own.source == "parquet" else Columns()
    if cluster is not None:
        columns = columns.model_copy(update={"subject": cluster})
    # As the run's own images were, and of a size that the attack judges.
    form = replace(Form.of_run(run.record.training.image_shape, exif), size=None, may_lose_colour=own.channels == 1)
    return parquet.read(_files(location, config), columns, "data.train", form)


def _has_column(location: str, name: str) -> bool:
    """Whether all files of a place have a column."""
    from ray_sisa import parquet_sources

    config = _config(location)
    if config is not None and config.source != "parquet":
        return False
    return all(name in file.column_names() for file in parquet_sources.find(_files(location, config), "data.train"))


def _config(location: str) -> DataConfig | None:
    return load_config(location).data if location.endswith((".yaml", ".yml")) else None


def _files(location: str, config: DataConfig | None) -> Location:
    return location if config is None or config.train is None else config.train
