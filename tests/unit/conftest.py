"""What the tests of the core share: tiny recipes and samples, made by factories so that property tests may use them."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_sisa import model_code
from ray_sisa.config import Recipe, TrainingRecipe
from ray_sisa.samples import Samples, make_samples
from ray_sisa.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store in a folder that is not there yet."""
    return Store(str(tmp_path / "run"))


@pytest.fixture(scope="session")
def make_training() -> Callable[..., TrainingRecipe]:
    """A recipe for tiny data: `epochs` and what else `TrainingRecipe` takes by name, the rest goes to its `Recipe`."""

    def make(*, epochs: tuple[int, ...] = (1, 1, 1), **settings: Any) -> TrainingRecipe:
        shape = settings.pop("image_shape", (8, 8, 1))
        model = settings.get("model", "mlp")
        model_code.allow([model])
        of_data = {
            "model_code": settings.pop("model_code", None) or model_code.digest(model),
            "initial_weights": None,
            "noise_multiplier": None,
            "num_classes": 3,
            "mean": (0.5,) * shape[-1],
            "std": (0.25,) * shape[-1],
        }
        own = {name: settings.pop(name, value) for name, value in of_data.items()}
        recipe = {"model": "mlp", "epochs_per_slice": 1, "batch_size": 8, **settings}
        return TrainingRecipe(recipe=Recipe.model_validate(recipe), image_shape=shape, epochs=epochs, **own)

    return make


@pytest.fixture(scope="session")
def random_samples() -> Callable[..., Samples]:
    """`count` samples with ids `sample-<i>`, three classes, images of noise (features where `shape` is of one axis)."""

    def make(count: int, shape: tuple[int, ...] = (8, 8, 1), seed: int = 0) -> Samples:
        random = np.random.default_rng(seed)
        if len(shape) == 1:
            images = random.standard_normal((count, *shape), dtype=np.float32)
        else:
            images = random.integers(0, 256, (count, *shape), dtype=np.uint8)
        return make_samples(
            ids=[f"sample-{i}" for i in range(count)], images=images, labels=random.integers(0, 3, count)
        )

    return make


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], str]]:
    """Serves a folder on this machine over HTTP; gives its URL."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with ExitStack() as stack:

        def serve(folder: Path) -> str:
            handler = functools.partial(QuietHandler, directory=str(folder))
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}/"

        yield serve
