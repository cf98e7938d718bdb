"""Law: with `ids: keyed` a store names nobody, and what was erased can be confirmed by no guess, however good it is.

The attacker here has the whole store, all samples that are left, the erased sample's id, label and pixels. He lacks the
key alone: he knows what he guesses, and still nothing that is stored follows from it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small_runs import (
    all_samples,
    assert_same_models,
    digits,
    files_of,
    folder_of,
    small_config,
    without,
    write_parquet,
)

from ray_sisa.config import RunConfig
from ray_sisa.data import Dataset
from ray_sisa.errors import ConfigError, RequestError
from ray_sisa.index import digest_rows, slice_digest
from ray_sisa.keyed_ids import SOURCES, IdsKey, tombstones
from ray_sisa.run import Run
from ray_sisa.samples import Samples

KEY = "0123456789abcdef" * 4
GONE = "digit-0007"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SOURCES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_SISA_IDS_KEY", KEY)


def _config(folder: Path, ids: str, samples: Samples) -> RunConfig:
    folder.mkdir(exist_ok=True)
    source = {
        "train": write_parquet(folder / "train.parquet", samples),
        "test": write_parquet(folder / "test.parquet", digits(240, 60)),
    }
    config = small_config(folder, data=source, placement={"shards": 2, "slices": 2})
    return config.model_copy(update={"ids": ids})


def _guesses(sample: Samples) -> Iterator[Samples]:
    """The erased sample under every name that an attacker has for it."""
    tombstone = tombstones(IdsKey(KEY.encode()).hashed("sample", sample.ids))  # it stands in the ledger
    for ids in (sample.ids, tombstone):
        yield Samples(ids=ids, subjects=sample.subjects, images=sample.images, labels=sample.labels)


def _confirmed(run: Run, sample: Samples) -> list[str]:
    """What in a store follows from the content of an erased sample: its own digest, or that of its slice with it."""
    files = {name: state.content for name, state in files_of(folder_of(run)).items()}
    found = []
    for guess in _guesses(sample):
        row = digest_rows(guess)
        found += [name for name, content in files.items() if row.tobytes() in content]
        for shard, number in itertools.product(range(2), (1, 2)):
            index = run.live.index(shard)
            rows = index.row_digests[index.slices == number]
            # The rows that are left are known; the erased one is put where it may have been.
            for place in range(len(rows)):
                whole = np.concatenate([rows[:place], row, rows[place + 1 :]])
                digest = str(slice_digest(whole, sample.shape))
                found += [name for name, content in files.items() if digest.encode() in content]
    return sorted(set(found))


def test_a_plain_store_confirms_a_guess_of_what_was_erased_and_a_keyed_one_does_not(tmp_path: Path) -> None:
    sample = all_samples().select([GONE])
    confirmed = {}
    for ids in ("plain", "keyed"):
        run = Run.create(_config(tmp_path / ids, ids, all_samples()))
        run.train(runner="local")
        run.forget(samples=[GONE])
        run.unlearn(runner="local")
        confirmed[ids] = _confirmed(run, sample)
    assert [name.split("/")[0] for name in confirmed["plain"]] == ["index", "run.json"]  # what docs/privacy.md says
    assert confirmed["keyed"] == []

    # `run` is the keyed one: no id and no subject stands anywhere in it, of live samples neither.
    for name, state in files_of(folder_of(run)).items():
        assert not any(text in state.content for text in (b"digit-0", b"person-0")), name
    pseudonym = IdsKey(KEY.encode()).hashed("sample", sample.ids)[0].as_py().encode()
    assert not [name for name, state in files_of(folder_of(run)).items() if pseudonym in state.content]


def test_a_keyed_run_forgets_exactly_by_id_and_by_subject_and_needs_its_key_for_that_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.create(_config(tmp_path / "all", "keyed", all_samples()))
    run.train(runner="local")
    done = run.forget(samples=[GONE, "digit-0007"], subjects=["person-003"])
    assert (done.samples, done.unknown) == (4, 0)
    with pytest.raises(RequestError, match="1 not in this run"):
        run.forget(samples=["digit-9999"])
    monkeypatch.delenv("RAY_SISA_IDS_KEY")
    run = Run.open(run.store.uri)
    run.unlearn(runner="local")
    assert run.status().complete and (run.check().findings, run.check().notes) == ((), ())
    assert run.verify(runner="local").ok
    with pytest.raises(ConfigError, match="needs its key from outside the store"):
        run.forget(samples=["digit-0001"])
    (tmp_path / "key").write_text(KEY + "\n")
    monkeypatch.setenv("RAY_SISA_IDS_KEY_FILE", str(tmp_path / "key"))
    assert run.evaluate(forget=1, runner="local").forget.num_samples == 4  # type: ignore[union-attr]
    assert run.forget(samples=[GONE], key="again").already_forgotten == 1
    monkeypatch.delenv("RAY_SISA_IDS_KEY_FILE")
    monkeypatch.setenv("RAY_SISA_IDS_KEY_COMMAND", f"printf %s {KEY}")
    gone = [GONE, "digit-0009", "digit-0010", "digit-0011"]
    scratch = Run.create(_config(tmp_path / "left", "keyed", without(all_samples(), gone)))
    scratch.train(runner="local")
    run.unlearn(runner="local")
    assert_same_models(run, scratch)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("RAY_SISA_IDS_KEY", "", "needs its key from outside the store, and 0 are named"),
        ("RAY_SISA_IDS_KEY", "short", "has a key of 5 characters, fewer than 32"),
        ("RAY_SISA_IDS_KEY_FILE", "/nowhere", "gives no key: No such file or directory"),
        ("RAY_SISA_IDS_KEY_COMMAND", "false", "gives no key: CalledProcessError"),
        ("RAY_SISA_IDS_KEY_COMMAND", 'echo "', "gives no key: ValueError"),
        ("RAY_SISA_IDS_KEY", KEY[::-1], "is not the key that this run was made with"),
    ],
)
def test_a_key_that_is_none_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, rule: str
) -> None:
    config = _config(tmp_path, "keyed", all_samples())
    made = Run.create(config) if "not the key" in rule else None
    monkeypatch.delenv("RAY_SISA_IDS_KEY")
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError) as raised:
        made.forget(samples=[GONE]) if made else Run.create(config)
    assert rule in str(raised.value) and KEY not in str(raised.value)
    assert (made.ledger().position if made else 0) == 0 and (made or not (tmp_path / "run").exists())


def test_the_form_of_ids_is_fixed_for_the_life_of_a_run(tmp_path: Path) -> None:
    config = _config(tmp_path, "keyed", all_samples())
    Run.create(config)
    with pytest.raises(ConfigError, match="these differ: ids"):
        Run.create(config.model_copy(update={"ids": "plain"}))


def test_two_runs_with_the_same_keys_have_the_same_names(tmp_path: Path) -> None:
    dataset = Dataset(train=all_samples(), test=None, num_classes=10, mean=(0.3,), std=(0.38,))
    runs = [Run.create(_config(tmp_path / name, "keyed", all_samples()), dataset) for name in ("one", "other")]
    assert len({run.record.fingerprint for run in runs}) == 1
