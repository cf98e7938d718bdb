"""Where a new run may lie: not in another, nor around one, since each removes from its folder what is not its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ray_sisa.errors import ConfigError, StoreError
from ray_sisa.layout import FOLDERS, RUN
from ray_sisa.local_files import is_run
from ray_sisa.location import without_options
from ray_sisa.store import Store


def check(store: Store, name: str) -> None:
    """Passes a place where there is no run yet, nor one in it or around it.

    Raises:
        ConfigError: there is one, or the run would be called what a folder in each run is.
    """
    if name in {*FOLDERS, RUN}:
        rule = "is what a part of each run is called, and would be taken for one"
        raise ConfigError("name", name, rule, "Choose another name")
    if inner := next((path for path in sorted(store.sizes("")) if path.endswith(f"/{RUN}")), None):
        rule = f"would be a run around another: {store.where(inner)} is there"
        raise ConfigError("name", name, rule, "Choose another name, or another storage_path")
    if outer := next(_runs_around(store), None):
        rule = "lies in the folder of a run, which removes what is not its own"
        raise ConfigError("storage_path", outer, rule, "Choose a folder beside it")


def _runs_around(store: Store) -> Iterator[str]:
    if store.is_local:
        yield from map(str, filter(is_run, Path(store.uri).parents))
        return
    around = without_options(store.uri)
    options = store.uri.removeprefix(around)
    while (around := around.rpartition("/")[0]) and not around.endswith("/"):
        # Whoever may not look there cannot have a run there either.
        with suppress(StoreError):
            if Store(around + options).find(RUN) is not None:
                yield around
