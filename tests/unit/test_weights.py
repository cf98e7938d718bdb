"""Weights as bytes: round trips, damage, files to start from, and what does not fit.

Everything here is real: the files are written by torch and safetensors, the published weights are the published ones.
"""

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ray_sisa import models, weights
from ray_sisa.config import Recipe, TrainingRecipe
from ray_sisa.digests import digest_tensors
from ray_sisa.errors import ConfigError, StoreError


def network(name: str = "small_cnn", num_classes: int = 10, image_shape: tuple[int, ...] = (32, 32, 3)) -> nn.Module:
    training = TrainingRecipe(
        recipe=Recipe(model=name, epochs_per_slice=1),
        model_code=None,
        initial_weights=None,
        num_classes=num_classes,
        image_shape=image_shape,
        mean=(0.5,),
        std=(0.5,),
        epochs=(1,),
    )
    return models.build(training)


def example() -> dict[str, Tensor]:
    base = torch.randn(3, 4)
    return {
        "b.weight": base,
        "b.shared": base,
        "b.turned": base.t(),
        "b.part": base[1:],
        "a.count": torch.tensor(7),
        "a.empty": torch.zeros(0, 3),
        "c.half": torch.randn(5, dtype=torch.bfloat16),
        "c.last": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "d.parameter": nn.Parameter(torch.randn(2)),
    }


def with_header(header: object, body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def tensor_entry(dtype: str, shape: list[int], size: int) -> dict[str, object]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}


# --- bytes


def test_tensors_survive_a_round_trip() -> None:
    tensors = example()
    back = weights.from_bytes(weights.to_bytes(tensors))
    assert back.keys() == tensors.keys()
    assert digest_tensors(back) == digest_tensors(tensors)
    assert len({tensor.data_ptr() for tensor in back.values() if tensor.numel()}) == len(back) - 1


def test_bytes_are_a_function_of_content() -> None:
    tensors = example()
    turned = dict(reversed(tensors.items()))
    copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    saves = {weights.to_bytes(t) for _ in range(20) for t in (tensors, turned, copies)}
    assert len(saves) == 1


def test_saving_leaves_the_tensors_as_they_are() -> None:
    model = network()
    before = digest_tensors(model.state_dict())
    weights.to_bytes(model.state_dict())
    assert digest_tensors(model.state_dict()) == before


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage that is no header at all",
        b"\xff" * 64,
        struct.pack("<Q", 2**62) + b"{}",
        struct.pack("<Q", 50) + b"{}",
        with_header([]),
        with_header(tensor_entry("F32", [100], 4), b"1234"),
        with_header(tensor_entry("F32", [1], 4), b"1234 and more"),
        with_header(tensor_entry("F99", [1], 4), b"1234"),
        with_header(tensor_entry("F6_E2M3", [4], 3), b"123"),
        with_header(tensor_entry("F32", [2**63, 0], 0)),
    ],
)
def test_bytes_that_are_no_safetensors(data: bytes) -> None:
    with pytest.raises(StoreError, match="is not valid safetensors") as caught:
        weights.from_bytes(data)
    assert caught.value.field == "weights"


def test_truncated_bytes_are_refused_wherever_they_end() -> None:
    data = weights.to_bytes({"a": torch.randn(7), "b": torch.randn(2, 2)})
    for end in range(len(data)):
        with pytest.raises(StoreError):
            weights.from_bytes(data[:end])


# --- files


@pytest.mark.parametrize("wrap", [None, "state_dict", "model", "model_state_dict", "net", "whatever"])
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("ending", [".pt", ".pth", ".th", ".PTH"])
def test_reads_what_torch_saves(tmp_path: Path, wrap: str | None, prefix: str, ending: str) -> None:
    state = network().state_dict()
    named = {prefix + name: tensor for name, tensor in state.items()}
    path = tmp_path / f"weights{ending}"
    torch.save({wrap: named, "best_prec1": 91.7} if wrap else named, path)
    assert digest_tensors(weights.read(str(path))) == digest_tensors(state)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_reads_safetensors(tmp_path: Path, prefix: str) -> None:
    state = network().state_dict()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(weights.to_bytes({prefix + name: tensor for name, tensor in state.items()}))
    assert digest_tensors(weights.read(str(path))) == digest_tensors(state)


def test_a_prefix_that_only_some_names_have_stays(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"module.a": torch.ones(1), "b": nn.Parameter(torch.ones(1))}, path)
    tensors = weights.read(str(path))
    assert tensors.keys() == {"module.a", "b"}
    assert not any(tensor.requires_grad for tensor in tensors.values())


class Opens:
    """An object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.open, (str(self.path), os.O_CREAT)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_code_in_a_pickle_is_refused_and_never_run(tmp_path: Path, save) -> None:
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"
    save({"state_dict": {"a": torch.ones(1), "b": Opens(trace)}}, path)
    with pytest.raises(ConfigError, match="not a file of plain tensors") as caught:
        weights.read(str(path))
    assert caught.value.field == "recipe.weights"
    assert "weights_only" not in str(caught.value)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("absent.pt", None, "No such file"),
        ("absent.safetensors", None, "No such file"),
        ("weights.onnx", b"", "unknown ending '.onnx'"),
        ("weights", b"", "unknown ending ''"),
        ("empty.pt", b"", "not a file of plain tensors"),
        ("garbage.pth", b"garbage", "not a file of plain tensors"),
        ("garbage.safetensors", b"garbage", "not valid safetensors"),
        ("none.safetensors", with_header({}), "holds no tensors"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes | None, told: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=r"^recipe\.weights = ") as caught:
        weights.read(str(tmp_path / name))
    assert told in str(caught.value)


def test_a_truncated_file_of_torch_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(network().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ConfigError, match="not a file of plain tensors"):
        weights.read(str(path))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "weights.pt").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        weights.read(str(tmp_path / "weights.pt"))


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, {"state_dict": {}}, {"state": {0: {"step": [1]}}}, []])
def test_a_file_without_tensors(tmp_path: Path, content: object) -> None:
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    with pytest.raises(ConfigError, match=r"weights\.pt: holds no tensors"):
        weights.read(str(path))


@pytest.mark.parametrize("content", [[torch.ones(1)], torch.ones(1), {"layers": [torch.ones(1)]}])
def test_a_file_of_tensors_without_names(tmp_path: Path, content: object) -> None:
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    with pytest.raises(ConfigError, match=r"weights\.pt: holds tensors, but without names"):
        weights.read(str(path))


def as_training_programs_save() -> list[dict[str, object]]:
    """Checkpoints that hold the weights of `network()` once, beside other tensors."""
    model = network()
    state, optimizer = model.state_dict(), torch.optim.Adam(model.parameters())
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    state = {name: tensor.clone() for name, tensor in state.items()}
    step = torch.tensor(7)
    return [
        {"epoch": 3, "model_state_dict": state, "optimizer_state_dict": optimizer.state_dict()},
        {"net": state, "step": step, "ema": {"decay": torch.tensor(0.9)}},
        {"model": {"epoch": 1}, "checkpoint": {"state_dict": state}, "optimizer": optimizer.state_dict()},
        {"step": step, "mine": state},
        {"optimizer": {"state": {0: {"exp_avg": step}}}, "networks": [state]},
        {"state_dict": state, "model": {name: tensor + 1 for name, tensor in state.items()}},
    ]


@pytest.mark.parametrize("number", range(6))
def test_the_weights_are_found_beside_other_tensors(tmp_path: Path, number: int) -> None:
    content, path = as_training_programs_save()[number], tmp_path / "weights.pt"
    torch.save(content, path)
    read = weights.read(str(path))
    assert read.keys() == network().state_dict().keys()
    assert weights.fit(network(), read) == []


def test_of_several_networks_none_is_guessed(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"generator": network().state_dict(), "critic": network().state_dict()}, path)
    with pytest.raises(ConfigError, match=r"weights\.pt: holds tensors under several names: generator, critic"):
        weights.read(str(path))


def test_values_that_hold_themselves_are_read(tmp_path: Path) -> None:
    path, content = tmp_path / "weights.pt", {"epoch": 3}
    content["self"] = content
    torch.save(content, path)
    with pytest.raises(ConfigError, match="holds no tensors"):
        weights.read(str(path))


# --- names


@pytest.mark.parametrize(
    "prefix",
    ["_orig_mod.", "model.", "backbone.", "module.", "module._orig_mod.", "_orig_mod.module.model.", "encoder."],
)
@pytest.mark.parametrize("num_classes", [10, 7])
def test_prefixes_that_all_names_share_are_taken_off(tmp_path: Path, prefix: str, num_classes: int) -> None:
    state, target = network().state_dict(), network(num_classes=num_classes)
    path = tmp_path / "weights.pt"
    torch.save({prefix + name: tensor for name, tensor in state.items()}, path)
    tensors = weights.named_for(target, weights.read(str(path)))
    assert digest_tensors(tensors) == digest_tensors(state)
    assert weights.fit(target, tensors) == ([] if num_classes == 10 else ["linear.bias", "linear.weight"])


def test_names_that_fit_stay_though_all_share_a_prefix(tmp_path: Path) -> None:
    """What opened before opens under the same names: the names of runs depend on them."""
    wrapped = nn.ModuleDict({"model": network()})
    path = tmp_path / "weights.pt"
    torch.save(wrapped.state_dict(), path)
    tensors = weights.named_for(wrapped, weights.read(str(path)))
    assert digest_tensors(tensors) == digest_tensors(wrapped.state_dict())
    assert all(name.startswith("model.") for name in tensors)


def test_an_error_names_the_file_and_both_lists() -> None:
    state = {f"encoder.{name}": tensor for name, tensor in network("resnet20").state_dict().items()}
    model = network()
    with pytest.raises(ConfigError) as caught:
        weights.fit(model, weights.named_for(model, state), "mine.pt")
    told = str(caught.value)
    assert told.startswith("recipe.weights = mine.pt: does not fit the network: ")
    assert (
        f"The file has {', '.join(list(state)[:5])}, ... ({len(state)} in all), all with the prefix encoder.; " in told
    )
    wanted = list(model.state_dict())
    assert f"the network wants {', '.join(wanted[:5])}, ... ({len(wanted)} in all)" in told


# --- fitting


def test_fit_copies_all_tensors() -> None:
    source, target = network(), network()
    source(torch.randn(4, 3, 8, 8))  # moves the buffers of BatchNorm away from their initial values
    assert weights.fit(target, source.state_dict()) == []
    assert digest_tensors(target.state_dict()) == digest_tensors(source.state_dict())
    assert target.get_parameter("linear.weight").data_ptr() != source.get_parameter("linear.weight").data_ptr()


def test_fit_leaves_the_last_layer_of_other_classes_as_it_was() -> None:
    source, target = network(num_classes=10), network(num_classes=100)
    own = target.get_parameter("linear.weight").detach().clone()
    assert weights.fit(target, source.state_dict()) == ["linear.bias", "linear.weight"]
    assert torch.equal(target.get_parameter("linear.weight"), own)
    assert torch.equal(target.get_parameter("conv3.weight"), source.get_parameter("conv3.weight"))


def test_fit_to_a_network_that_is_one_layer() -> None:
    source, target = nn.Linear(4, 3), nn.Linear(4, 2)
    assert weights.fit(target, source.state_dict()) == ["bias", "weight"]


def test_fit_does_without_batch_counts() -> None:
    state = network().state_dict()
    kept = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    assert len(kept) < len(state)
    assert weights.fit(network(), kept) == []


def test_fit_names_what_is_wrong_and_changes_nothing() -> None:
    state = dict(network().state_dict())
    del state["conv2.weight"]
    state["conv9.weight"] = torch.ones(1)
    state["bn1.bias"] = torch.ones(31)
    target = network()
    before = digest_tensors(target.state_dict())
    with pytest.raises(ConfigError) as caught:
        weights.fit(target, state)
    told = str(caught.value)
    assert "bn1.bias is [31] in the file and [32] in the network" in told
    assert "conv2.weight is missing from the file" in told
    assert "conv9.weight is unknown to the network" in told
    assert "change recipe.model" in told
    assert digest_tensors(target.state_dict()) == before


def test_fit_names_five_of_many() -> None:
    with pytest.raises(ConfigError, match=r"missing from the file; and \d+ more"):
        weights.fit(network("resnet32"), network("resnet20").state_dict())


def test_a_last_layer_with_other_inputs_is_of_another_network() -> None:
    state = dict(network().state_dict())
    state["linear.weight"] = torch.ones(5, 63)
    with pytest.raises(ConfigError, match=r"linear.weight is \[5, 63\] in the file and \[10, 64\]"):
        weights.fit(network(), state)


def convolutions(num_classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, num_classes, 1), nn.AdaptiveAvgPool2d(1))


@pytest.mark.parametrize("make", [convolutions, lambda: network("torchvision:squeezenet1_0")])
def test_fit_of_equal_classes_needs_no_linear_layer(make: Callable[[], nn.Module]) -> None:
    source, target = make(), make()
    assert weights.fit(target, source.state_dict()) == []
    assert digest_tensors(target.state_dict()) == digest_tensors(source.state_dict())


def test_fit_of_other_classes_needs_a_linear_layer() -> None:
    with pytest.raises(ConfigError, match=r"no linear layer.*give weights for as many classes"):
        weights.fit(convolutions(), convolutions(num_classes=5).state_dict())


PUBLISHED = {
    "resnet20": "cifar10_resnet20-12fca82f.th",
    "resnet32": "cifar10_resnet32-d509ac18.th",
    "resnet56": "cifar10_resnet56-4bfd9763.th",
}


@pytest.fixture
def data() -> Path:
    folder = os.environ.get("RAY_SISA_DATA")
    if folder is None:
        pytest.skip("RAY_SISA_DATA names no folder with the published weights")
    return Path(folder)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_cifar_weights_load(data: Path, name: str) -> None:
    path = data / PUBLISHED[name]
    if not path.exists():
        pytest.skip(f"RAY_SISA_DATA holds no {path.name}")
    tensors = weights.read(str(path))
    same = network(name, num_classes=10)
    assert weights.fit(same, tensors) == []
    assert sum(p.double().sum().item() for p in same.parameters()) == pytest.approx(
        sum(tensors[n].double().sum().item() for n, _ in same.named_parameters()), abs=1e-9
    )
    assert torch.equal(same.get_buffer("layer3.0.bn2.running_var"), tensors["layer3.0.bn2.running_var"])
    wider = network(name, num_classes=100)
    assert weights.fit(wider, tensors) == ["linear.bias", "linear.weight"]
    assert torch.equal(wider.get_parameter("conv1.weight"), tensors["conv1.weight"])
