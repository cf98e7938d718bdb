"""The ledger of privacy spent, on real small runs: what is charged and when, what it comes to, where it is told.

Training is in this process. Kills between charge and stage are in tests/laws/test_resume.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
from small_runs import MLP, PRIVATE_MLP, all_samples, dataset, small_config
from typer.testing import CliRunner

from ray_sisa import planning, spending
from ray_sisa.check import Checked, check
from ray_sisa.cli import app
from ray_sisa.config import DpConfig
from ray_sisa.errors import StoreError
from ray_sisa.layout import SPENT, charges, numbered
from ray_sisa.privacy import epsilon, stage_mechanism
from ray_sisa.records import Charge
from ray_sisa.report import write_report
from ray_sisa.run import Run
from ray_sisa.spending import PrivacySpent, account, charge, charge_of, read_charges

DELTA = 1e-3
SEED = 0x5EED << 112
PLACES = {"shards": 2, "slices": 2}
SECURE = PRIVATE_MLP | {"dp": {"noise_multiplier": 1.0, "delta": DELTA, "noise": "secure"}}


def make_run(folder: Path, recipe: dict[str, object] = PRIVATE_MLP) -> Run:
    chosen = {"seed": SEED} | recipe
    return Run.create(small_config(folder, recipe=chosen, placement=PLACES), dataset=dataset(all_samples()))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    made = make_run(tmp_path)
    made.train(runner="local")
    return made


def spent_by(run: Run) -> PrivacySpent:
    found = run.privacy()
    assert found is not None
    return found


def by_place(found: PrivacySpent) -> dict[tuple[int, int], float]:
    return {(each.shard, each.slice): each.epsilon for each in found.slices}


def expected(stages: Sequence[tuple[int, int]]) -> float:
    mechanisms = [stage_mechanism(num_samples=n, epochs=e, batch_size=32, noise_multiplier=1.0) for n, e in stages]
    return epsilon(mechanisms, DELTA).epsilon


def sizes(run: Run, shard: int) -> list[tuple[int, int]]:
    return [(stage.num_samples, stage.epochs) for stage in run.live.chains(run.ledger())[shard].stages]


def test_each_slice_has_spent_what_its_own_stage_and_later_ones_spend(run: Run) -> None:
    found = spent_by(run)
    for shard in (0, 1):
        first, second = sizes(run, shard)
        assert by_place(found)[shard, 1] == pytest.approx(expected([first, second]), abs=1e-3)
        assert by_place(found)[shard, 2] == pytest.approx(expected([second]), abs=1e-3)
    assert found.epsilon == found.epsilon_at_end == max(by_place(found).values())
    assert {(each.slice, each.charges) for each in found.slices} == {(1, 2), (2, 1)}


def test_a_deletion_spends_again_and_what_was_spent_stays(run: Run) -> None:
    before, kept = sizes(run, 0), run.store.sizes(SPENT)
    run.forget(samples=run.sample_ids(0, 2)[:1])
    pending = spent_by(run)
    run.unlearn(runner="local")
    after, found = sizes(run, 0), spent_by(run)
    assert after[0] == before[0]
    assert by_place(found)[0, 1] == pytest.approx(expected([*before, after[1]]), abs=1e-3)
    assert by_place(found)[0, 2] == pytest.approx(expected([before[1], after[1]]), abs=1e-3)
    assert pending.epsilon_at_end == found.epsilon > pending.epsilon
    # The stage that was purged has its charge still.
    assert kept.items() <= run.store.sizes(SPENT).items()
    assert len(run.store.sizes(SPENT)) == len(kept) + 1
    assert [stage.times for stage in found.stages] == [1] * 5


def test_before_training_it_says_what_it_will_be(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    found = spent_by(run)
    assert found.epsilon == 0.0
    run.train(runner="local")
    assert spent_by(run).epsilon == found.epsilon_at_end


def test_a_slice_without_live_samples_is_not_told_of(run: Run) -> None:
    run.forget(samples=run.sample_ids(0, 1))
    run.unlearn(runner="local")
    assert sorted(by_place(spent_by(run))) == [(0, 2), (1, 1), (1, 2)]


def test_charges_name_no_sample(run: Run) -> None:
    text = b"".join(run.store.get(path) for path in run.store.sizes(SPENT)).decode()
    ids = [sample for shard in (0, 1) for number in (1, 2) for sample in run.sample_ids(shard, number)]
    assert not [sample for sample in ids if f'"{sample}"' in text]


@pytest.mark.parametrize(("recipe", "again"), [(PRIVATE_MLP, 1), (SECURE, 2)], ids=["reproducible", "secure"])
def test_another_attempt_is_charged_where_its_noise_is_new(
    recipe: dict[str, object], again: int, tmp_path: Path
) -> None:
    run = make_run(tmp_path, recipe)
    stage = run.live.chains(run.ledger())[0].stages[0]
    for count in (1, again):
        charge(run.store, stage, run.record.training)
        assert run.store.numbers(charges(stage.key)) == list(range(1, count + 1))
    assert len(read_charges(run.store)) == again


def test_two_workers_with_one_stage_and_secure_noise_are_charged_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, SECURE)
    stage = run.live.chains(run.ledger())[0].stages[0]
    other = charge_of(stage, run.record.training)
    create = run.store.create

    def be_late(path: str, data: bytes) -> bool:
        create(other.path or "", other.to_bytes())
        return create(path, data)

    monkeypatch.setattr(run.store, "create", be_late)
    charge(run.store, stage, run.record.training)
    assert run.store.numbers(charges(stage.key)) == [1, 2]


def test_a_stage_is_charged_before_it_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)

    def fail(*arguments: object, **named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ray_sisa.engine.worker.train_stage", fail)
    with pytest.raises(KeyboardInterrupt):
        run.train(runner="local")
    assert len(run.store.sizes(SPENT)) == 1
    assert spent_by(run).epsilon > 0
    assert check(run.store).ok


def test_verification_spends_nothing(run: Run) -> None:
    before = run.store.sizes(SPENT)
    assert run.verify(runner="local").ok
    assert run.store.sizes(SPENT) == before


def test_a_run_without_differential_privacy_keeps_no_charges(tmp_path: Path) -> None:
    run = make_run(tmp_path, MLP)
    run.train(runner="local")
    assert run.privacy() is None
    assert run.store.sizes(SPENT) == {}


def test_a_delta_that_says_nothing_makes_the_figure_no_guarantee(tmp_path: Path) -> None:
    """Such a run is refused when it is created; one that another version made says what its figure is worth."""
    run = make_run(tmp_path)
    dp = DpConfig(noise_multiplier=1.0, delta=0.01)
    recipe = run.record.training.recipe.model_copy(update={"dp": dp})
    training = run.record.training.model_copy(update={"recipe": recipe})
    found = spent_by(Run(run.store, run.record.model_copy(update={"training": training})))
    assert len(found.doubts) == 1
    assert "NO GUARANTEE: delta 0.01 is not below 1 / samples, 240 of them" in found.label


@pytest.mark.parametrize(
    ("recipe", "is_secret"), [(PRIVATE_MLP, False), (SECURE, True)], ids=["reproducible", "secure"]
)
def test_a_seed_that_can_be_guessed_makes_the_figure_no_guarantee(
    recipe: dict[str, object], is_secret: bool, tmp_path: Path
) -> None:
    assert not spent_by(make_run(tmp_path / "long", recipe)).doubts
    found = spent_by(make_run(tmp_path / "short", recipe | {"seed": 7}))
    assert ("NO GUARANTEE: recipe.seed has fewer than 64 bits" in found.label) is not is_secret


# What a check says.


def problems(found: Checked) -> dict[str, str]:
    return {finding.path: finding.problem for finding in found.findings}


def first_charge(run: Run) -> Charge:
    return next(each for each in read_charges(run.store) if (each.shard, each.slice) == (0, 1))


def test_a_lost_charge_is_found_and_counted_all_the_same(run: Run) -> None:
    before, path = spent_by(run), first_charge(run).path or ""
    run.store.delete([path])
    found = check(run.store)
    assert problems(found) == {path: "is not there, and its stage was trained"}
    assert not found.findings[0].repairable
    assert by_place(spent_by(run)) == by_place(before)
    assert not before.doubts
    assert "NO GUARANTEE: 1 training has no charge left" in spent_by(run).label


def test_the_lost_charge_of_a_purged_stage_is_found(run: Run) -> None:
    (gone,) = [each for each in read_charges(run.store) if (each.shard, each.slice) == (0, 2)]
    run.forget(samples=run.sample_ids(0, 2)[:1])
    run.unlearn(runner="local")
    run.store.delete([gone.path or ""])
    assert problems(check(run.store)) == {gone.path: "is not there, and its stage was trained"}
    assert spent_by(run).doubts == (lost_text("1 training has"),)


def test_so_is_that_of_a_purged_stage_that_no_head_ever_named(run: Run) -> None:
    gone = first_charge(run)
    run.forget(samples=run.sample_ids(0, 1)[:1])
    run.unlearn(runner="local")
    run.forget(samples=run.sample_ids(0, 1)[1:2])
    assert not spent_by(run).doubts
    run.store.delete([gone.path or ""])
    # With a request pending, which the head in force does not know of, and without one.
    for _ in range(2):
        assert problems(check(run.store)) == {gone.path: "is not there, and its stage was trained"}
        assert spent_by(run).doubts == (lost_text("1 training has"),)
        run.unlearn(runner="local")


def lost_text(many: str) -> str:
    return f"{many} no charge left, so more may have been spent: run `ray-sisa check`"


def test_a_store_that_lost_its_charges_makes_no_clean_claim(run: Run) -> None:
    run.forget(samples=run.sample_ids(0, 1)[:1])
    run.unlearn(runner="local")
    run.store.delete(sorted(run.store.sizes(SPENT)))
    assert spent_by(run).doubts == (lost_text("6 trainings have"),)  # four stages that are there, two that were purged


def test_a_gap_in_the_numbers_of_charges_is_a_doubt(tmp_path: Path) -> None:
    run = make_run(tmp_path, SECURE)
    stage = run.live.chains(run.ledger())[0].stages[0]
    for _ in range(3):
        charge(run.store, stage, run.record.training)
    assert not spent_by(run).doubts
    run.store.delete([numbered(charges(stage.key), 2)])
    assert spent_by(run).doubts == (lost_text("1 training has"),)


CHANGES: dict[str, Callable[[Charge], dict[str, object]]] = {
    "says num_samples": lambda each: {"num_samples": each.num_samples + 1},
    "says steps": lambda each: {"steps": each.steps - 1},
    "says noise_multiplier": lambda each: {"noise_multiplier": 2.0},
    "says epochs": lambda each: {"epochs": each.epochs + 1},
    "is of shard 7": lambda each: {"shard": 7},
}


@pytest.mark.parametrize("problem", CHANGES)
def test_a_charge_that_is_not_what_training_writes(problem: str, run: Run) -> None:
    each = first_charge(run)
    changed = each.model_copy(update=CHANGES[problem](each))
    run.store.put(each.path or "", changed.to_bytes())
    (found,) = check(run.store).findings
    assert found.path == each.path
    assert found.problem.startswith(problem)


def test_damage(run: Run) -> None:
    path = first_charge(run).path or ""
    run.store.put(path, run.store.get(path)[:-1])
    assert list(problems(check(run.store))) == [path]
    with pytest.raises(StoreError, match=path):
        run.privacy()


def test_charges_that_do_not_belong(run: Run, tmp_path: Path) -> None:
    each = first_charge(run)
    again = each.model_copy(update={"number": 2})
    strange, far = f"{SPENT}/notes.txt", numbered(charges(each.key), 4)
    run.store.put(again.path or "", again.to_bytes())
    run.store.put(far, each.model_copy(update={"number": 4}).to_bytes())
    run.store.put(strange, b"")
    assert problems(check(run.store)) == {
        again.path: "charges a stage again whose noise is the same each time",
        numbered(charges(each.key), 3): "is not there, and a later charge is",
        far: "charges a stage again whose noise is the same each time",
        strange: "is no object of a run",
    }
    other = make_run(tmp_path / "other", MLP)
    other.store.put(each.path or "", each.to_bytes())
    assert problems(check(other.store)) == {each.path: "is a charge, and the run is not differentially private"}


# Where it is told.


def test_status_tells_it_by_slice_with_all_that_it_assumes(run: Run) -> None:
    found = spent_by(run)
    text = CliRunner().invoke(app, ["status", run.store.uri])
    assert f"\nlargest {found.epsilon:.2f}\n" in text.stdout
    assert found.label in text.stdout
    for word in ("delta 0.001", "Poisson", "added or removed", "n 57 to 132", "steps 4 to 10", "prv", "reproducible"):
        assert word in found.label
    fields = json.loads(CliRunner().invoke(app, ["status", run.store.uri, "--json"]).stdout)["privacy"]
    assert fields["epsilon"] == found.epsilon
    assert fields["label"] == found.label
    assert [(each["shard"], each["slice"]) for each in fields["slices"]] == sorted(by_place(found))


def test_by_renyi_divergence_it_tells_the_order_and_the_orders(tmp_path: Path) -> None:
    rdp = {"dp": {"noise_multiplier": 1.0, "delta": DELTA, "accountant": "rdp", "max_grad_norm": 0.5}}
    run = make_run(tmp_path, PRIVATE_MLP | rdp)
    run.train(runner="local")
    found = spent_by(run)
    assert found.order is not None
    text = CliRunner().invoke(app, ["status", run.store.uri]).stdout
    for word in ("accountant rdp", f", order {found.order:g};", "orders from 1.01 to 1024", "clipped to 0.5", "q 0.2"):
        assert word in text


def test_large_numbers_are_told_whole(run: Run) -> None:
    found = spent_by(run)
    stage = replace(found.stages[0], num_samples=11_000, sampling_rate=32 / 11_000, steps=6_880, times=1)
    assert (
        "; 1 training of a stage charged, n 11,000, q 0.002909, steps 6,880;" in replace(found, stages=(stage,)).label
    )
    other = replace(stage, num_samples=12_345, times=2)
    assert "3 trainings of stages charged, n 11,000 to 12,345, q" in replace(found, stages=(stage, other)).label


def test_the_report_tells_it(run: Run, tmp_path: Path) -> None:
    write_report(run, tmp_path / "report.html")
    page = unescape((tmp_path / "report.html").read_text(encoding="utf-8"))
    found = spent_by(run)
    assert "Privacy spent" in page
    assert f"<strong>{found.epsilon:.2f}</strong>" in page
    assert found.label in page
    cells = re.findall(r"<th scope=\"row\">(\d+)</th><td>(\d+)</td>\s*<td>(?:<strong>)?([\d.]+)", page)
    told = {(int(shard), int(number)): epsilon for shard, number, epsilon in cells}
    assert told == {place: f"{epsilon:.2f}" for place, epsilon in by_place(found).items()}


@pytest.mark.parametrize("recipe", [PRIVATE_MLP, SECURE, MLP], ids=["reproducible", "secure", "none"])
def test_nothing_that_is_handed_out_tells_the_seed_of_a_private_run(recipe: dict[str, object], tmp_path: Path) -> None:
    run = make_run(tmp_path, recipe)
    run.train(runner="local")
    write_report(run, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert (str(SEED) in page) == ("dp" not in recipe)
    for command in ("status", "plan", "check"):
        for option in ([], ["--json"]):
            told = CliRunner().invoke(app, [command, run.store.uri, *option])
            assert told.exit_code == 0
            assert str(SEED) not in told.output


def test_others_are_told_as_before(tmp_path: Path) -> None:
    run = make_run(tmp_path, MLP)
    answer = CliRunner().invoke(app, ["status", run.store.uri, "--json"])
    assert "privacy" not in json.loads(answer.stdout)
    assert "epsilon" not in CliRunner().invoke(app, ["plan", run.store.uri, "--json"]).stdout


def test_a_plan_says_what_will_have_been_spent(run: Run) -> None:
    asked = run.sample_ids(1, 1)[:1]
    plan = planning.plan_forgetting(run, samples=asked)
    assert planning.plan_next(run).epsilon == spent_by(run).epsilon
    run.forget(samples=asked)
    assert planning.plan_next(run).epsilon == plan.epsilon
    run.unlearn(runner="local")
    assert spent_by(run).epsilon == plan.epsilon


def test_of_secure_noise_a_stage_cut_short_is_expected_to_be_charged_again(tmp_path: Path) -> None:
    run = make_run(tmp_path, SECURE)
    chains = run.live.chains(run.ledger())
    once = charge_of(chains[0].stages[0], run.record.training)
    none_yet, cut_short = (account(run.record, chains, set(), spent) for spent in ((), (once,)))
    assert none_yet is not None
    assert cut_short is not None
    assert by_place(cut_short)[0, 1] > 0
    assert cut_short.slices[0].epsilon_at_end > none_yet.slices[0].epsilon_at_end


def test_the_label_before_anything_is_charged(tmp_path: Path) -> None:
    found = spent_by(make_run(tmp_path))
    assert "no stage charged" in found.label
    assert found.unit == spending.UNIT
