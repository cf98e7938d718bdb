"""What is concluded from the CIFAR-100 study: sentences follow numbers, both ways; its paper has no hole."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from study_records import accuracy, attack, make_record, unlearning, without_time

from ray_sisa.study import conclusions, original
from ray_sisa.study.comparison import targets
from ray_sisa.study.evidence import evidence
from ray_sisa.study.paper import answer, dials, main, open_questions, settings, write_paper
from ray_sisa.study.presets import PRESETS
from ray_sisa.study.results import MethodResult, StudyRecord, Unlearning
from ray_sisa.study.summary import between_retrained, method_row

RECORD = make_record(3)


def with_method(
    method: str, change: Callable[[MethodResult], MethodResult], record: StudyRecord = RECORD
) -> StudyRecord:
    """The record with every result of a method changed."""
    return replace(record, methods=tuple(change(r) if r.method == method else r for r in record.methods))


def valued(forget: float, found: float, test: float = 0.57) -> Callable[[MethodResult], MethodResult]:
    """Other accuracies on forget set and test set, and another attack."""

    def change(result: MethodResult) -> MethodResult:
        measured = replace(result.measured, forget=accuracy(forget, 1200), attack=attack(found), test=accuracy(test))
        return replace(result, measured=measured)

    return change


def with_unlearnings(*found: Unlearning) -> StudyRecord:
    return replace(RECORD, unlearnings=found, placements=())


def test_what_is_computed_of_the_original_follows_its_layout() -> None:
    assert original.block_saving() == pytest.approx(10)
    assert original.slicing_saving(5) == pytest.approx(15 / 11)  # 3R / (2R + 1)
    assert original.slicing_saving(original.MANY) == pytest.approx(1.5, abs=1e-3)
    assert [original.missing(p) for p in original.PUBLISHED] == pytest.approx([0.1536, 0.1663])


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("preset", ["smoke", "cpu", "gpu"])
def test_a_paper_has_no_hole(seeds: int, preset: str) -> None:
    paper = write_paper(make_record(seeds, preset=preset), "results/a/result.json")
    assert re.findall(r"\b(?:nan|None|inf|Undefined)\b|\{\{|\}\}", paper) == []
    tables = re.findall(r"(?:^\|.*\n)+", paper, flags=re.MULTILINE)
    assert len(tables) >= 3
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
    for mistake in original.MISTAKES:
        assert mistake.title in paper


def test_a_paper_is_written_without_methods_or_unlearnings() -> None:
    bare = replace(RECORD, methods=(), unlearnings=(), placements=(), grid=(), normalisations=())
    paper = write_paper(bare, "results/a/result.json")
    assert "Fine-tuning was not part of this study." in paper
    assert "None" not in paper


def test_a_request_that_was_resumed_has_no_time() -> None:
    found = unlearning("scratch", "block")
    said = str(conclusions.effect(with_unlearnings(found, without_time(found))))
    assert "All 2 requests took effect within 4 ms; completing one took 24.0 s to 24.0 s." in said
    none = with_unlearnings(without_time(found))
    assert str(conclusions.effect(none)).endswith("within 4 ms.")
    assert "None" not in write_paper(none, "results/a/result.json")


def test_the_command_writes_the_paper(tmp_path: Path) -> None:
    from pydantic import TypeAdapter

    folder = tmp_path / "results" / "2026-11-22-study-cifar100-cpu"
    folder.mkdir(parents=True)
    (folder / "result.json").write_bytes(TypeAdapter(StudyRecord).dump_json(RECORD))
    main([str(folder / "result.json"), str(tmp_path / "paper.md")])
    written = (tmp_path / "paper.md").read_text(encoding="utf-8")
    assert written == write_paper(RECORD, "results/2026-11-22-study-cifar100-cpu/result.json")
    assert str(tmp_path) not in written
    with pytest.raises(SystemExit, match="usage"):
        main([])
    with pytest.raises(SystemExit, match="error"):
        main([str(tmp_path / "absent.json"), str(tmp_path / "paper.md")])


@pytest.mark.parametrize(
    ("forget", "found", "said"),
    [
        (0.60, 0.53, "forgets too little"),
        (0.40, 0.44, "on the other side"),
        (0.55, 0.50, "cannot be told from retraining"),
        (0.40, 0.57, "with both signs"),
    ],
)
def test_the_answer_follows_the_distance_to_the_retrained_models(forget: float, found: float, said: str) -> None:
    assert said in answer(with_method("fine_tune", valued(forget, found)))


def test_measures_that_cannot_tell_the_original_model_are_called_weak() -> None:
    assert "too weak" not in answer(RECORD) + str(conclusions.approximations(RECORD))
    weak = with_method("original", valued(0.55, 0.5))
    assert "too weak" in answer(weak)
    assert "too weak" in str(conclusions.approximations(weak))


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        (({"name": "fine_tune"}, {"name": "scrub"}), "their default dials"),
        (({"name": "fine_tune", "epochs": 3}, {"name": "scrub"}), "their default dials, but fine-tuning with epochs 3"),
    ],
)
def test_dials_are_those_of_the_preset(methods: tuple[dict[str, object], ...], said: str) -> None:
    assert dials(replace(PRESETS["cpu"], methods=methods)) == said


def test_a_model_that_is_better_on_all_samples_does_not_remember() -> None:
    assert "cannot be told" in answer(with_method("fine_tune", valued(0.65, 0.5, test=0.67)))
    assert "forgets too little" in answer(with_method("fine_tune", valued(0.65, 0.5, test=0.57)))
    assert "on the other side" in answer(with_method("fine_tune", valued(0.55, 0.5, test=0.67)))


def test_settings_are_counted_by_method() -> None:
    one = settings(replace(PRESETS["cpu"], methods=({"name": "fine_tune"}, {"name": "scrub"})))
    assert one.startswith("Each method ran with one setting.")
    assert "one setting each, but NegGrad+ with 2 and Selective Synaptic Dampening with 2, of" in settings(
        PRESETS["cpu"]
    )


def test_methods_that_took_more_than_retraining_are_named() -> None:
    assert "More sample passes" not in conclusions.longer(RECORD)
    dear = with_method("scrub", lambda result: replace(result, sample_passes=2 * 57_600))
    assert "More sample passes than retraining took SCRUB (2.0 times as many)." in conclusions.longer(dear)
    assert "to the 12 of the original model" in conclusions.longer(dear)


def test_a_pair_of_retrained_models_is_taken_once() -> None:
    retrained = method_row(RECORD, "retrain")
    assert retrained is not None
    assert [pair.top1 for pair in between_retrained(retrained.results)] == pytest.approx([0.67, 0.68, 0.69])


def test_slices_are_compared_under_the_same_seeds() -> None:
    assert "equal sample passes and one seed" in str(evidence(RECORD, "slices"))
    other = tuple(replace(p, seed=9) if p.trained.slices == 1 else p for p in RECORD.grid)
    assert evidence(replace(RECORD, grid=other), "slices") is None


def test_methods_are_judged_both_ways() -> None:
    said = conclusions.approximations(RECORD)
    assert said is not None
    inside, little, much = said.split("; ")
    assert "SCRUB and sparsity-aided fine-tuning are inside" in inside
    assert "fine-tuning and Selective Synaptic Dampening are" in little
    assert "too little forgotten" in little
    assert "NegGrad+, NegGrad+ (beta 0.9) and random labels" in much
    assert "too much forgotten" in much
    none = conclusions.approximations(with_method("sparse", valued(0.3, 0.5), with_method("scrub", valued(0.3, 0.5))))
    assert none is not None
    assert "none of the 7 approximate methods is inside" in none


def test_one_seed_is_called_one() -> None:
    said = conclusions.approximations(make_record(1))
    assert said is not None
    assert "what the one retrained model gives" in said
    assert "seed" not in said


def test_retrained_models_are_not_judged_by_themselves() -> None:
    row = method_row(RECORD, "retrain")
    assert row is not None
    assert (row.attack, row.gap, row.forget, row.test) == (None,) * 4


@pytest.mark.parametrize(
    ("passes", "said"),
    [
        (0, "SISA from scratch none."),
        (72_000, "SISA from scratch no fewer."),
        (7_200, "SISA from scratch 10.0 times fewer."),
    ],
)
def test_savings_are_those_counted(passes: int, said: str) -> None:
    found = conclusions.cost(with_unlearnings(unlearning("scratch", "block", passes=passes)))
    assert found is not None
    assert found.endswith(said)


def test_predictions_that_failed_are_counted() -> None:
    right = unlearning("scratch", "block")
    wrong = replace(right, requested=replace(right.requested, predicted_stages=1))
    assert "For each of the 2 requests the stages trained were exactly those predicted" in str(
        conclusions.predictions(with_unlearnings(right, right))
    )
    assert "1 of 2 requests cost something else" in str(conclusions.predictions(with_unlearnings(right, wrong)))


def test_a_placement_that_saves_nothing_is_said_to() -> None:
    assert "is expected to cost 75.0" in str(conclusions.placements(RECORD))
    first, second = RECORD.placements
    noisy = replace(second, points=tuple(replace(p, sd_sample_passes=1e7) for p in second.points))
    said = conclusions.placements(replace(RECORD, placements=(first, noisy)))
    assert "no placement is expected to cost clearly less" in str(said)
    dear = replace(second, points=tuple(replace(p, mean_sample_passes=1e9) for p in second.points))
    said = conclusions.placements(replace(RECORD, placements=(first, dear)))
    assert "no placement is expected to cost clearly less than 'hash'" in str(said)


def test_a_difference_in_accuracy_within_chance_is_not_named() -> None:
    assert "accuracy" not in str(conclusions.placements(RECORD))
    first, second = RECORD.placements
    worse = replace(second, test=accuracy(0.60))
    said = str(conclusions.placements(replace(RECORD, placements=(first, worse))))
    assert "its accuracy is 8.0 points below that of 'hash', with a standard error of 1.5 points." in said


def test_subjects_placed_whole_may_save_nothing() -> None:
    one, other = (
        unlearning("placed-by-sample", "subjects", passes=5),
        unlearning("placed-by-subject", "subjects", passes=9),
    )
    assert "does not save" in str(conclusions.patterns(with_unlearnings(one, other)))
    cheap = replace(other, completed=replace(other.completed, sample_passes=4))
    assert "whole saves" in str(conclusions.patterns(with_unlearnings(one, cheap)))


def test_sharding_may_help() -> None:
    falling = str(conclusions.sharding(RECORD))
    assert falling.count("falls") == 2
    better = tuple(
        replace(p, votes=replace(p.votes, mean=accuracy(0.9))) if p.trained.shards == 20 else p for p in RECORD.grid
    )
    assert str(conclusions.sharding(replace(RECORD, grid=better))).count("rises") == 2


def test_what_each_wrong_normalisation_costs_is_said() -> None:
    said = str(conclusions.normalisation(RECORD))
    assert "imagenet -3.0 points and none (pixels in [0, 1]) -40.0 points" in said
    assert "start 15.4 and 16.6 points below what is published" in said
    assert "imagenet comes nearest" in said
    own, other, worst = RECORD.normalisations
    near = replace(RECORD, normalisations=(own, other, replace(worst, test=accuracy(0.45))))
    assert "none (pixels in [0, 1]) comes nearest" in str(conclusions.normalisation(near))


def test_targets_are_for_the_whole_data_set_alone() -> None:
    assert targets(RECORD) == ()
    assert any(question.startswith("All of CIFAR-100") for question in open_questions(RECORD))
    whole = replace(RECORD, facts=replace(RECORD.facts, num_train=50_000))
    assert [target.is_met for target in targets(whole)] == [False] * 4
    assert not any(question.startswith("All of CIFAR-100") for question in open_questions(whole))
    assert sum("is short of" in question for question in open_questions(whole)) == 4
    block = next(u for u in RECORD.unlearnings if u.arm == "transfer")
    good = replace(
        block, before=replace(block.before, test=accuracy(0.83)), after=replace(block.after, test=accuracy(0.82))
    )
    assert [target.is_met for target in targets(replace(whole, unlearnings=(good,)))] == [True, True, True, False]
