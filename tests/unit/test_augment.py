"""Batches against brute force: every image that comes out is one that the rules allow, compared pixel by pixel."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ray_sisa.augment import Batches, Normalise
from ray_sisa.config import TrainingRecipe
from ray_sisa.samples import Samples

Make = Callable[..., TrainingRecipe]
MakeSamples = Callable[..., Samples]


@pytest.fixture(scope="session")
def unscaled(make_training: Make) -> Make:
    """A recipe under which normalisation leaves pixels (or features) as they are."""

    def make(shape: tuple[int, ...], **settings: object) -> TrainingRecipe:
        scale = 255.0 if len(shape) == 3 else 1.0
        constants = {"mean": (0.0,) * shape[-1], "std": (1 / scale,) * shape[-1]}
        return make_training(image_shape=shape, **constants, **settings)

    return make


def batches_of(images: np.ndarray, training: TrainingRecipe) -> Batches:
    """Labels are row numbers, so that what comes out can be traced."""
    return Batches(torch.from_numpy(images), torch.arange(len(images)), training, "cpu")


def epoch(batches: Batches, key: str = "key", number: int = 0) -> tuple[Tensor, Tensor]:
    """All of an epoch: images [n, H, W, C] (or [n, D]) and row numbers [n]."""
    parts = list(batches.epoch(key, number))
    images, rows = torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])
    return (images.permute(0, 2, 3, 1) if images.ndim == 4 else images), rows


# Order.


@pytest.mark.parametrize("shape", [(8, 8, 1), (4, 6, 3), (5,)], ids=str)
def test_without_augmentation_an_epoch_is_a_permutation(
    unscaled: Make, random_samples: MakeSamples, shape: tuple[int, ...]
) -> None:
    samples = random_samples(21, shape)
    out, rows = epoch(batches_of(samples.images, unscaled(shape)))
    assert sorted(rows.tolist()) == list(range(21))
    assert rows.tolist() != list(range(21))
    np.testing.assert_allclose(out.numpy(), samples.images[rows.numpy()], rtol=1e-6)


@pytest.mark.parametrize(
    ("count", "sizes"), [(21, [8, 8, 5]), (16, [8, 8]), (3, [3]), (1, [2]), (9, [9]), (17, [8, 9])]
)
def test_the_last_batch_is_kept(unscaled: Make, random_samples: MakeSamples, count: int, sizes: list[int]) -> None:
    batches = batches_of(random_samples(count).images, unscaled((8, 8, 1)))
    assert [len(y) for _, y in batches.epoch("key", 0)] == sizes
    assert len(batches) == len(sizes)


@pytest.mark.parametrize("augment", [[], ["crop", "flip", "cutout"]], ids=str)
def test_key_and_epoch_decide(unscaled: Make, random_samples: MakeSamples, augment: list[str]) -> None:
    images, training = random_samples(30).images, unscaled((8, 8, 1), augment=augment)
    batches = batches_of(images, training)
    first, rows = epoch(batches, "a", 0)
    epoch(batches, "b", 3)
    torch.rand(5)
    again, same_rows = epoch(batches_of(images, training), "a", 0)
    assert torch.equal(first, again)
    assert torch.equal(rows, same_rows)
    assert not torch.equal(rows, epoch(batches, "a", 1)[1])
    assert not torch.equal(rows, epoch(batches, "b", 0)[1])


def test_one_augmentation_does_not_move_another(unscaled: Make, random_samples: MakeSamples) -> None:
    images = random_samples(40).images
    flipped, rows = epoch(batches_of(images, unscaled((8, 8, 1), augment=["flip"])))
    cut, other_rows = epoch(batches_of(images, unscaled((8, 8, 1), augment=["flip", "cutout"])))
    cropped, more_rows = epoch(batches_of(images, unscaled((8, 8, 1), augment=["flip", "crop"])))
    assert torch.equal(rows, other_rows)
    assert torch.equal(rows, more_rows)
    kept = cut != 0
    assert torch.equal(flipped[kept], cut[kept])
    # Those that were cropped in the middle are as if they had not been.
    assert any(torch.equal(a, b) for a, b in zip(flipped, cropped, strict=True))


def test_the_global_generator_is_left_alone(unscaled: Make, random_samples: MakeSamples) -> None:
    batches = batches_of(random_samples(20).images, unscaled((8, 8, 1), augment=["crop", "flip", "cutout"]))
    before = torch.get_rng_state()
    epoch(batches)
    assert torch.equal(torch.get_rng_state(), before)


# Augmentation, by brute force.


def crops(image: np.ndarray) -> Iterator[np.ndarray]:
    height, width = image.shape[:2]
    pad = height // 8
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    for top in range(2 * pad + 1):
        for left in range(2 * pad + 1):
            yield padded[top : top + height, left : left + width]


def flips(image: np.ndarray) -> Iterator[np.ndarray]:
    yield image
    yield image[:, ::-1]


def cut_outs(image: np.ndarray) -> Iterator[np.ndarray]:
    """A square of a quarter of the height, centred anywhere, clipped at the edges (DeVries and Taylor 2017)."""
    height, width = image.shape[:2]
    half = height // 8
    for row in range(height):
        for column in range(width):
            cut = image.copy()
            cut[max(0, row - half) : row + half, max(0, column - half) : column + half] = 0
            yield cut


STEPS = {"crop": crops, "flip": flips, "cutout": cut_outs}


def allowed(image: np.ndarray, augment: list[str]) -> list[bytes]:
    images = [image]
    for step in augment:
        images = [changed for one in images for changed in STEPS[step](one)]
    return [one.tobytes() for one in images]


@pytest.mark.parametrize(
    "augment",
    [
        ["crop"],
        ["flip"],
        ["cutout"],
        ["crop", "flip"],
        ["crop", "flip", "cutout"],
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(8, 8, 1), (16, 12, 3)], ids=str)
def test_every_image_is_one_that_is_allowed(
    unscaled: Make, random_samples: MakeSamples, shape: tuple[int, ...], augment: list[str]
) -> None:
    # Never 0, so that padding and holes show.
    images = np.maximum(random_samples(24, shape).images, 1)
    out, rows = epoch(batches_of(images, unscaled(shape, augment=augment)))
    chosen = []
    for image, row in zip(out.round().to(torch.uint8).numpy(), rows.tolist(), strict=True):
        candidates = allowed(images[row], augment)
        assert image.tobytes() in candidates
        chosen.append(candidates.index(image.tobytes()))
    assert len(set(chosen)) > 1


@pytest.mark.parametrize("augment", ["crop", "flip"])
def test_every_choice_is_equally_likely(unscaled: Make, random_samples: MakeSamples, augment: str) -> None:
    image = np.maximum(random_samples(1).images, 1)
    out, _ = epoch(batches_of(np.repeat(image, 3600, axis=0), unscaled((8, 8, 1), augment=[augment], batch_size=3600)))
    candidates = allowed(image[0], [augment])
    chosen = [candidates.index(one.tobytes()) for one in out.round().to(torch.uint8).numpy()]
    counts, expected = np.bincount(chosen, minlength=len(candidates)), 3600 / len(candidates)
    # Six standard deviations; the key is fixed, so this is no lottery.
    assert np.abs(counts - expected).max() < 6 * expected**0.5


def test_holes_are_everywhere(unscaled: Make) -> None:
    images = np.full((4000, 8, 8, 1), 255, np.uint8)
    out, _ = epoch(batches_of(images, unscaled((8, 8, 1), augment=["cutout"], batch_size=4000)))
    assert (out == 0).sum(dim=0).min() > 0


def test_features_are_not_augmented(unscaled: Make, random_samples: MakeSamples) -> None:
    features = random_samples(20, (5,)).images
    out, rows = epoch(batches_of(features, unscaled((5,), augment=["crop", "flip", "cutout"])))
    assert np.array_equal(out.numpy(), features[rows.numpy()])


def test_padding_is_black_before_normalisation(make_training: Make) -> None:
    images = np.full((64, 8, 8, 1), 255, np.uint8)
    out, _ = epoch(batches_of(images, make_training(augment=["crop"], mean=(0.5,), std=(0.25,))))
    assert sorted(out.unique().tolist()) == pytest.approx([-2.0, 2.0])


# Normalisation.


@pytest.mark.parametrize("shape", [(8, 8, 1), (4, 6, 3)], ids=str)
def test_pixels_are_scaled_centred_and_divided(
    make_training: Make, random_samples: MakeSamples, shape: tuple[int, ...]
) -> None:
    mean, std = (0.5071, 0.4865, 0.4409)[: shape[2]], (0.2673, 0.2564, 0.2762)[: shape[2]]
    training = make_training(image_shape=shape, mean=mean, std=std)
    images = random_samples(10, shape).images
    out = Normalise(training, "cpu")(torch.from_numpy(images))
    assert (out.dtype, tuple(out.shape)) == (torch.float32, (10, shape[2], *shape[:2]))
    assert out.is_contiguous(memory_format=torch.channels_last)
    expected = (images.astype(np.float64) / 255 - mean) / std
    np.testing.assert_allclose(out.permute(0, 2, 3, 1).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_features_are_centred_and_divided(make_training: Make, random_samples: MakeSamples) -> None:
    mean, std = (1.0, -2.0, 0.0), (2.0, 0.5, 1.0)
    features = random_samples(10, (3,)).images
    out = Normalise(make_training(image_shape=(3,), mean=mean, std=std), "cpu")(torch.from_numpy(features.copy()))
    np.testing.assert_allclose(out.numpy(), (features.astype(np.float64) - mean) / std, rtol=1e-5, atol=1e-6)


def test_nearest_upsampling_repeats_pixels(unscaled: Make, random_samples: MakeSamples) -> None:
    images = random_samples(3).images
    out = Normalise(unscaled((8, 8, 1), input_size=16), "cpu")(torch.from_numpy(images))
    expected = images.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(out.permute(0, 2, 3, 1).numpy(), expected, rtol=1e-6)


@pytest.mark.parametrize("size", [5, 8, 16, 21])
def test_bilinear_upsampling_is_torchs(unscaled: Make, random_samples: MakeSamples, size: int) -> None:
    images = random_samples(3, (8, 8, 3)).images
    training = unscaled((8, 8, 3), input_size=size, upsampling="bilinear")
    out = Normalise(training, "cpu")(torch.from_numpy(images))
    plain = torch.from_numpy(images).permute(0, 3, 1, 2).double().contiguous()
    expected = F.interpolate(plain, size=(size, size), mode="bilinear", align_corners=False)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.gpu
def test_the_device_changes_no_draw(unscaled: Make, random_samples: MakeSamples) -> None:
    images, training = random_samples(30).images, unscaled((8, 8, 1), augment=["crop", "flip", "cutout"])
    on_gpu = Batches(torch.from_numpy(images), torch.arange(30), training, "cuda")
    out, rows = epoch(on_gpu)
    expected, expected_rows = epoch(batches_of(images, training))
    assert torch.equal(rows.cpu(), expected_rows)
    torch.testing.assert_close(out.cpu(), expected)
