"""The source of a network of the user's: who may be imported, and what it must be, judged before any of it runs.

Runs name networks, and a run may be somebody else's: no `package.module:function` is imported but by a name that the
caller gave, in a configuration, by `allow`, or in RAY_SISA_ALLOW_MODELS. Nothing here needs torch.
"""

from __future__ import annotations

import importlib
import os
import stat
import sys
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    SourceFileLoader,
    SourcelessFileLoader,
)
from pathlib import Path
from types import ModuleType

from ray_sisa.digests import digest_bytes
from ray_sisa.errors import ConfigError
from ray_sisa.local_files import is_run

FIELD = "recipe.model"
VARIABLE = "RAY_SISA_ALLOW_MODELS"
# In the order in which an import looks for them.
LOADERS = (
    (ExtensionFileLoader, EXTENSION_SUFFIXES),
    (SourceFileLoader, SOURCE_SUFFIXES),
    (SourcelessFileLoader, BYTECODE_SUFFIXES),
)
_ALLOWED: set[str] = set()  # by this process's caller; workers are told those of their driver


def allow(names: Iterable[str]) -> None:
    """Lets networks by these names be imported from now on, in this process and by the workers that it starts."""
    _ALLOWED.update(names)


def allowed() -> frozenset[str]:
    """Names of the networks that may be imported."""
    named = os.environ.get(VARIABLE, "").split(",")
    return frozenset(_ALLOWED.union(name.strip() for name in named if name.strip()))


def is_own(name: str) -> bool:
    """Whether a network is a function of the user's, rather than one that this package or torchvision brings."""
    kind, colon, _ = name.partition(":")
    return bool(colon) and kind != "torchvision"


def check_allowed(name: str) -> None:
    """Passes a network that is not the user's, or that the caller has named.

    Raises:
        ConfigError: it is code that nobody here has asked for.
    """
    if is_own(name) and name not in allowed():
        rule = "is code that the run names; it is imported only if you say so, since a run may be somebody else's"
        raise ConfigError(
            FIELD, name, rule, f"Look at it; if you trust it, pass --allow-model {name}, or set {VARIABLE}"
        )


def digest(name: str) -> str | None:
    """Digest of the source of the module that holds a network of the user's, which is not run; None for all others.

    Modules which that one imports are not covered.

    Raises:
        ConfigError: a module that is not there, is no source file, or lies in a run's folder.
    """
    if not is_own(name):
        return None
    path = _source(name)
    try:
        with tokenize.open(path) as file:
            source = file.read()
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        rule = f"module {_module(name)} has no readable source: {error}"
        raise ConfigError(FIELD, name, rule, "Keep the network in a .py file") from None
    return digest_bytes((source if source.endswith("\n") else f"{source}\n").encode())


def load(name: str, expected: str | None) -> ModuleType:
    """The module that holds a network of the user's, imported once it is known to be what a run was created with.

    Args:
        name: of the network.
        expected: digest of the module's source.

    Raises:
        ConfigError: the caller has not named it, its source is another or unknown, or it cannot be imported.
    """
    check_allowed(name)
    if expected is None:
        rule = "is code, and the run does not say by a digest which: it was not made by this program"
        raise ConfigError(FIELD, name, rule, "Make a new run")
    if digest(name) != expected:
        rule = "its source changed since the run was created, so its stages would be others"
        raise ConfigError(FIELD, name, rule, "Restore the source, or create a new run")
    try:
        return importlib.import_module(_module(name))
    except Exception as error:  # importing runs the user's code, which may raise anything
        raise _cannot_import(name, f"{type(error).__name__}: {error}") from error


def _source(name: str) -> Path:
    """The file of the module of a network, found without running any part of the packages that it is in."""
    path: Path | None = None
    for spec in _specs(name):
        path = Path(spec.origin) if spec.origin and spec.has_location else None
        for place in filter(None, (path, *map(Path, spec.submodule_search_locations or ()))):
            if run := _run_around(place):
                rule = f"module {_module(name)} lies in the folder of a run, {run}: runs bring data, and never code"
                raise ConfigError(FIELD, name, rule, "Keep the network elsewhere")
    if path is None or path.suffix != ".py" or not stat.S_ISREG(path.stat().st_mode):
        rule = f"module {_module(name)} has no readable source: it is no .py file"
        raise ConfigError(FIELD, name, rule, "Keep the network in a .py file")
    return path


def _specs(name: str) -> Iterator[ModuleSpec]:
    """Where the module of a network and each package around it are, the outermost first."""
    importlib.invalidate_caches()
    parts = _module(name).split(".")
    places: list[str] | None = None
    for number in range(1, len(parts) + 1):
        full = ".".join(parts[:number])
        spec = (_outermost(full) if number == 1 else _inside(full, places or [])) if all(parts) else None
        if spec is None or (number < len(parts) and spec.submodule_search_locations is None):
            raise _cannot_import(name, f"ModuleNotFoundError: No module named {full!r}")
        yield spec
        # An import goes on from where the package was found that is imported already.
        known = getattr(sys.modules.get(full), "__path__", spec.submodule_search_locations)
        places = list(known or ())


def _outermost(name: str) -> ModuleSpec | None:
    found = (finder.find_spec(name, None) for finder in sys.meta_path if hasattr(finder, "find_spec"))
    return next(filter(None, found), None)


def _inside(name: str, places: Sequence[str]) -> ModuleSpec | None:
    """What an import would find in the folders of a package; `importlib.util.find_spec` would run the package."""
    found = [spec for place in places if (spec := FileFinder(place, *LOADERS).find_spec(name))]
    folders = [folder for spec in found for folder in spec.submodule_search_locations or ()]
    whole = next((spec for spec in found if spec.loader), None)
    if whole is None and found:
        found[0].submodule_search_locations = folders  # of a package without a file of its own
    return whole or next(iter(found), None)


def _run_around(place: Path) -> Path | None:
    """The folder of a run that a file lies in, as it is named or as its links lead."""
    around = {*place.absolute().parents, *place.resolve().parents, place.absolute(), place.resolve()}
    return next(filter(is_run, around), None)


def _module(name: str) -> str:
    return name.partition(":")[0]


def _cannot_import(name: str, why: str) -> ConfigError:
    rule = f"module {_module(name)!r} cannot be imported: {why}"
    return ConfigError(FIELD, name, rule, "Check the name, and that the module is on PYTHONPATH wherever the run works")
