"""The original study: S. Keydana, "Hacking deep learning: model inversion attack by example", as it was published.

Its numbers as data, and what is wrong in it. Accuracies are shares, errors are of pixels in [0, 1]. Nothing here was
measured by this package.
"""

from __future__ import annotations

from dataclasses import dataclass

TITLE = "Hacking deep learning: model inversion attack by example"
AUTHOR = "S. Keydana"
YEAR = 2020
WHERE = "RStudio AI blog, 15 May 2020"

NUM_CLAIMED, NUM_DRAWN_FROM = 13_180, 11_000
"""Images that its accountant was told of, and those that its batches were drawn from."""
BATCH, DELTA = 32, 1e-5
NUM_PUBLIC, NUM_VICTIMS, NUM_SHARED = 2_720, 3_120, 1_000
"""Of `small1`, of `small2`, and of both: Greek and Latin."""
NUM_SHOWN = 16
SIDE = 105
EPOCHS, PRIVATE_EPOCHS, ATTACKER_EPOCHS = 10, 20, 100
DROPOUT = 0.2
LEARNING_RATE, PRIVATE_LEARNING_RATE = 1e-3, 5e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetEpoch:
    """Accuracy of its target after an epoch."""

    epoch: int
    train: float
    validation: float


@dataclass(frozen=True, kw_only=True, slots=True)
class AttackerEpoch:
    """Training error of its attacker on the target without privacy, in an epoch."""

    epoch: int
    mse: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivateTarget:
    """What it reports of a target trained with DP-SGD."""

    noise_multiplier: float
    epsilon: float
    train: float
    """Final accuracy on training images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mistake:
    """What is wrong in it, and what is done here instead."""

    key: str
    """By which `evidence` finds what a record says of it."""
    title: str
    text: str
    here: str


TARGET = (
    TargetEpoch(epoch=1, train=0.195, validation=0.377),
    TargetEpoch(epoch=2, train=0.472, validation=0.524),
    TargetEpoch(epoch=9, train=0.821, validation=0.720),
    TargetEpoch(epoch=10, train=0.840, validation=0.727),
)
ATTACKER = (
    AttackerEpoch(epoch=1, mse=0.531),
    AttackerEpoch(epoch=2, mse=0.201),
    AttackerEpoch(epoch=99, mse=0.04135),
    AttackerEpoch(epoch=100, mse=0.04130),
)
PRIVATE = (
    PrivateTarget(noise_multiplier=0.7, epsilon=4.0, train=0.37),
    PrivateTarget(noise_multiplier=0.5, epsilon=12.5, train=0.45),
    PrivateTarget(noise_multiplier=0.3, epsilon=84.7, train=0.56),
)

MISTAKES = (
    Mistake(
        key="overlap",
        title="The attacker trains on victims",
        text="It takes small1 for the attacker and small2 for the victims, and calls them disjoint. Both hold Greek "
        f"and Latin: {NUM_SHARED:,} of {NUM_VICTIMS:,} victims are images that the attacker trained on. That Greek and "
        "Latin letters come back best, which it notices, may be no more than that.",
        here="Victims that were seen are measured apart; the honest arm is about unseen ones.",
    ),
    Mistake(
        key="count",
        title="The accountant was told of more images than were trained on",
        text=f"Epsilon is computed for {NUM_CLAIMED:,} images, while batches come from the {NUM_DRAWN_FROM:,} that are "
        "left after validation images were set apart. Each image is thus used more often than was accounted for.",
        here="The accountant takes the number from what is trained on, and refuses another.",
    ),
    Mistake(
        key="sampler",
        title="Shuffled batches are reported as Poisson samples",
        text="Batches come from a shuffle buffer; the accounting assumes that each image is drawn into each batch "
        "independently. Its epsilons are therefore not guarantees, whatever the count.",
        here="Batches are Poisson samples.",
    ),
    Mistake(
        key="normalisation",
        title="Batch normalisation under DP-SGD",
        text="With batch normalisation a sample's gradient depends on the other samples of its batch, so that clipping "
        "it does not bound their sum by what the noise is for; running statistics have no noise at all. Besides, as "
        "its code reads, the loop that trains the first target never says that it trains, so that normalisation is "
        "inert there and dropout is off, but not in the private targets.",
        here="With DP-SGD, channels are normalised by groups. Networks trained as the original's stand beside and are "
        "said not to be private; the network without privacy is trained both ways.",
    ),
    Mistake(
        key="baselines",
        title="No baseline",
        text="It reports the attacker's error and nothing to hold it against: neither the error of the mean image, "
        "which needs no attack, nor that of as many numbers chosen for the purpose.",
        here="The mean image, white paper, principal components and an encoder with random weights stand beside all.",
    ),
    Mistake(
        key="metric",
        title="No measure on victims",
        text="The error that it reports is on the attacker's own training images, and only for the target without "
        f"privacy. Of the victims {NUM_SHOWN} were looked at.",
        here="Victims are measured, all of them, by error, structure, ink and whether they can be recognised.",
    ),
    Mistake(
        key="arms",
        title="Arms differ in more than privacy",
        text=f"Its private targets have no dropout, {PRIVATE_EPOCHS} epochs and a learning rate of "
        f"{PRIVATE_LEARNING_RATE:g}; the other has dropout of {DROPOUT:g}, {EPOCHS} epochs and {LEARNING_RATE:g}. They "
        "also classify worse, and an encoder that has learnt less tells less. Each was trained once.",
        here="One network for all arms, controls of equal accuracy, and several seeds where the preset has them.",
    ),
    Mistake(
        key="conclusion",
        title="DP-SGD is held against an attack that it is not about",
        text="The attack reconstructs images that somebody sends to a trained network. DP-SGD bounds what a network "
        "tells of the images that it was trained on, and promises nothing on those that it is asked about.",
        here="That is said wherever a number stands, and defences that act on activations are measured as well.",
    ),
)


def private(noise_multiplier: float) -> PrivateTarget | None:
    """What it reports of a noise multiplier; None if it has no such target."""
    return next((each for each in PRIVATE if each.noise_multiplier == noise_multiplier), None)
