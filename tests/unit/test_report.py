"""The page of a run, at each moment of a small run's life. Runs, stores and pictures are real; nothing is faked."""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import pytest
from html_pages import Page
from pydantic import TypeAdapter

from ray_sisa import charts
from ray_sisa.audit import Evaluation, read_evaluation
from ray_sisa.clock import now
from ray_sisa.config import RunConfig
from ray_sisa.config_values import make_config
from ray_sisa.costs import RequestRow
from ray_sisa.digests import seal
from ray_sisa.errors import StoreError
from ray_sisa.layout import PAGE, measurement, report
from ray_sisa.printing_measures import evaluated, no_attack
from ray_sisa.records import EpochMetrics, StageRecord
from ray_sisa.report import make_page, render, seconds, write_report
from ray_sisa.run import Run

SVG = "data:image/svg+xml;base64,"
KEY = "a-placement-key-that-nobody-may-read"


@dataclass(frozen=True, kw_only=True, slots=True)
class Story:
    """A run that forgot a block of samples, one more, and at last everything; its page at each moment."""

    run: Run
    pages: dict[str, str] = field(default_factory=dict)
    states: dict[str, tuple[charts.Measured, ...]] = field(default_factory=dict)


def config(folder: Path) -> RunConfig:
    return make_config(
        {
            "name": "story",
            "storage_path": str(folder),
            # The root is not used by this source; it is here to be escaped.
            "data": {"source": "digits", "root": "<script>alert(1)</script>"},
            "placement": {"shards": 2, "slices": 2, "key": KEY},
            "recipe": {
                "model": "mlp",
                "epochs_per_slice": 2,
                "batch_size": 64,
                "optimizer": {"name": "adam", "lr": 0.01},
            },
            "evaluation": {"test_during_training": "epoch"},
        }
    )


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    story = Story(run=Run.create(config(tmp_path_factory.mktemp("runs"))))
    run = story.run

    def page(moment: str) -> None:
        story.pages[moment] = Path(write_report(run)).read_text(encoding="utf-8")
        story.states[moment] = make_page(run).states

    page("created")
    run.train(runner="local")
    page("trained")
    block = [*run.sample_ids(0, 2), *run.sample_ids(1, 1)[:40]]
    run.evaluate(forget=block, runner="local")
    page("measured")
    run.forget(samples=block, reason=f"on behalf of {block[0]}")
    run.evaluate(forget=1, runner="local")
    page("pending")
    run.unlearn(runner="local")
    run.evaluate(forget=1, runner="local")
    page("complete")
    run.forget(samples=run.sample_ids(0, 1)[:1])
    page("a second request")
    run.unlearn(runner="local")
    run.evaluate(forget=2, runner="local")
    page("both requests")
    run.forget(samples=[sample for s in (0, 1) for r in (1, 2) for sample in run.sample_ids(s, r)])
    run.unlearn(runner="local")
    page("nothing left")
    return story


MOMENTS = [
    "created",
    "trained",
    "measured",
    "pending",
    "complete",
    "a second request",
    "both requests",
    "nothing left",
]


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_page_is_well_formed_and_stands_alone(story: Story, moment: str) -> None:
    page = Page(story.pages[moment])
    assert page.problems == []
    assert all(reference.startswith(SVG) for reference in page.references)
    assert not re.search(r"url\(|@import|<script|<link|<iframe", story.pages[moment])
    for picture in page.pictures:
        assert ElementTree.fromstring(svg(picture)).tag.endswith("}svg")


@pytest.mark.parametrize("moment", MOMENTS)
def test_it_names_no_sample_and_no_key(story: Story, moment: str) -> None:
    page = Page(story.pages[moment])
    for text in (story.pages[moment], *(svg(picture) for picture in page.pictures)):
        assert not re.search(r"digits/\d", text)
        assert KEY not in text


def test_a_run_not_trained_says_so(story: Story) -> None:
    page = Page(story.pages["created"])
    assert "Not trained to the end: 0 of 4 stages are there, and nothing votes yet." in page.text
    assert "Nothing was measured yet" in page.text
    assert "missing" in page.text and "No stage is committed yet." in page.text
    assert page.pictures == []


def test_a_run_without_evaluation_says_so(story: Story) -> None:
    page = Page(story.pages["trained"])
    assert "Complete: every shard votes at its full depth. Nothing was to be forgotten." in page.text
    assert "no ensemble of this run was evaluated" in page.text
    assert len(page.pictures) == 1  # the training curves


def test_without_a_request_what_was_measured_is_now(story: Story) -> None:
    page = Page(story.pages["measured"])
    assert re.search(r"Right on the test set: [\d.]+ % now\.", page.text)
    assert len(page.pictures) == 3


def test_a_pending_request_is_no_success(story: Story) -> None:
    page = Page(story.pages["pending"])
    assert "Not complete: 1 of 1 requests pending, 2 of 3 stages to be trained." in page.text
    assert "complete: every" not in page.text.lower()
    assert "ray-sisa unlearn completes it" in page.text
    assert re.search(r"on the test set: [\d.]+ % rolled back\.", page.text)


def test_a_complete_run_says_what_it_took(story: Story) -> None:
    page = Page(story.pages["complete"])
    assert "Complete: every request is done" in page.text
    assert re.search(r"on the test set: [\d.]+ % rolled back, [\d.]+ % after\.", page.text)
    assert "Measurements removed, since they were of models that saw deleted samples: 1." in page.text
    assert re.search(r"retrained 2 stages: [\d,]+ sample passes instead of the [\d,]+ of .* \d+\.\dx fewer", page.text)
    assert "An attack that fails does not prove forgetting." in page.text
    assert len(page.pictures) == 3


def test_the_grid_tells_what_became_of_each_stage(story: Story) -> None:
    cells = re.findall(r'<td class="cell (\w+)">', story.pages["complete"])
    assert cells == ["kept", "emptied", "retrained", "retrained"]
    assert re.findall(r'<td class="cell (\w+)">', story.pages["pending"]) == ["kept", "emptied", "missing", "missing"]


def test_the_numbers_are_those_of_the_certificate(story: Story) -> None:
    page, certificate = Page(story.pages["complete"]), story.run.certificates()[0]
    assert f"{certificate.sample_passes:,} of {certificate.full_training_sample_passes:,} for everything" in page.text
    ratio = certificate.full_training_sample_passes / certificate.sample_passes
    assert f"{ratio:.1f}x fewer" in page.text


def test_of_several_requests_each_state_says_of_which(story: Story) -> None:
    text = Page(story.pages["both requests"]).text
    assert re.search(r"on the test set: [\d.]+ % after, request 2\.", text)
    assert "Measurements removed, since they were of models that saw deleted samples: 3." in text
    assert "too few members to attack: 1, not 20" in text  # request 2 named one sample
    assert "No single shard could be attacked after, request 2: too few members, or no vote." in text


def test_what_could_not_be_attacked_is_said_in_words(story: Story) -> None:
    found = story.states["both requests"][-1].evaluation
    assert found.ensemble_membership is None
    text = evaluated(found, with_roc=False, is_repeatable=True).text
    assert "membership  too few members to attack: 1, not 20" in text
    assert text.splitlines()[-1].endswith("too few members to attack: 0, not 20")
    few = dataclasses.replace(found.test, num_samples=39)
    enough = tuple(dataclasses.replace(s, num_held=20) for s in found.shard_memberships)
    assert no_attack(found, 7) == "no vote to attack"
    changed = dataclasses.replace(found, shard_memberships=enough)
    assert no_attack(changed, 0) == "too few members with a test sample of their class each: 1, not 20"
    matched = tuple(dataclasses.replace(s, num_held_matched=20) for s in enough)
    assert no_attack(dataclasses.replace(found, shard_memberships=matched), 0) == "losses that are not numbers"
    earlier = tuple(dataclasses.replace(s, num_held_matched=None) for s in enough)
    assert no_attack(dataclasses.replace(found, shard_memberships=earlier, test=few), 0) == (
        "too few test samples to attack: 39, not 40"
    )


def test_an_evaluation_of_an_earlier_version_is_read_and_shown(story: Story) -> None:
    """Its attacks were against test samples of all classes, and it does not say how many could be matched."""
    made = story.states["complete"][-1].evaluation
    fields = TypeAdapter(Evaluation).dump_python(made, mode="json")
    fields["measured_at"] = now()  # the page shows the last of an ensemble
    # What a later request taints is not shown.
    fields["ledger"] = story.run.ledger().position
    del fields["num_matched"]
    for shard in fields["shard_memberships"]:
        del shard["num_held_matched"]
    attacks = [fields["ensemble_membership"], *(s[of] for s in fields["shard_memberships"] for of in ("held", "whole"))]
    for attack in attacks:
        if attack is not None:
            del attack["unmatched"], attack["num_left_out"]
    content = seal(json.dumps(fields, indent=1).encode())
    path = measurement("evaluation", made.head, content)
    story.run.store.create(path, content)
    earlier = read_evaluation(story.run.store, path)
    assert earlier.num_matched is None and earlier.ensemble_membership.unmatched is None
    assert "against all classes" not in evaluated(earlier, with_roc=False, is_repeatable=True).text
    assert "members, against all classes" in Page(render(make_page(story.run))).text
    story.run.store.delete([path])


def test_requests_of_one_batch_are_counted_once(tmp_path: Path) -> None:
    run = Run.create(config(tmp_path))
    run.train(runner="local")
    first, second = run.sample_ids(0, 1)[:2], run.sample_ids(0, 2)[:3]
    run.forget(samples=first)
    run.forget(samples=[*second, first[0], *run.sample_ids(1, 2)[:1]])  # one of them is gone already
    done = run.unlearn(runner="local")
    run.forget(samples=run.sample_ids(0, 1)[2:3])  # retires what the batch retrained in shard 0
    later = run.unlearn(runner="local")
    page = make_page(run)

    one, two, three = run.certificates()
    assert set(one.retrained_stages) < set(two.retrained_stages)  # both shards of the second, one of the first
    stages, passes = done.stages_trained + later.stages_trained, done.sample_passes + later.sample_passes
    assert one.sample_passes + two.sample_passes + three.sample_passes > passes
    assert f"Forgetting 7 samples (3 requests) retrained {stages} stages: {passes:,} sample passes" in page.verdict[1]
    assert [row.together for row in page.requests] == ["together with request 2", "together with request 1", ""]
    text = Page(render(page)).text
    assert "together with request 2" in text and "counted once at the top" in text


def test_a_batch_in_different_shards_shares_nothing(tmp_path: Path) -> None:
    run = Run.create(config(tmp_path))
    run.train(runner="local")
    for shard in (0, 1):
        run.forget(samples=run.sample_ids(shard, 2)[:1])
    done = run.unlearn(runner="local")
    page = make_page(run)
    assert [row.together for row in page.requests] == ["", ""]
    assert f"retrained 2 stages: {done.sample_passes:,} sample passes" in page.verdict[1]
    assert "counted once" not in render(page)


def test_many_requests_of_one_batch_are_not_all_named() -> None:
    row = RequestRow(
        number=1,
        num_samples=1,
        shards=(0,),
        certificate=None,
        shared_with=(2, 3),
        seconds_to_effective=None,
        seconds_to_complete=None,
    )
    assert row.together == "together with requests 2, 3"
    many = dataclasses.replace(row, shared_with=tuple(range(2, 52)))
    assert many.together == "together with 50 other requests"


def test_a_run_that_forgot_everything_has_a_page(story: Story) -> None:
    content = story.pages["nothing left"]
    assert re.findall(r'<td class="cell (\w+)">', content) == ["emptied"] * 4
    assert "0 of 0" in Page(content).text


def test_it_replaces_the_page_in_the_store(story: Story) -> None:
    uri = write_report(story.run)
    assert uri == f"{story.run.store.uri}/reports/{PAGE}"
    assert write_report(story.run) == uri
    assert [path for path in story.run.store.sizes("reports") if path.endswith(".html")] == [report(PAGE)]


def test_a_path_gets_the_page_and_the_store_does_not(story: Story, tmp_path: Path) -> None:
    before = story.run.store.get(report(PAGE))
    path = tmp_path / "folder" / "page.html"
    assert write_report(story.run, path) == str(path)
    assert Page(path.read_text(encoding="utf-8")).problems == []
    assert story.run.store.get(report(PAGE)) == before


def test_a_path_that_cannot_be_written_is_named(story: Story, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        write_report(story.run, tmp_path / "file" / "page.html")


def test_states_are_labelled_by_what_voted(story: Story) -> None:
    moments = ("measured", "pending", "complete", "both requests")
    assert [[state.phase for state in story.states[moment]] for moment in moments] == [[0], [1], [1, 2], [2]]
    states = [story.states[moment][-1] for moment in moments]
    assert [state.evaluation.complete for state in states] == [True, False, True, True]


@pytest.mark.parametrize("whom", ["the ensemble", "the shards of the second state"])
def test_pictures_of_what_was_attacked_in_part_are_drawn_without_a_warning(story: Story, whom: str) -> None:
    """As where a constituent gives no numbers: then the ensemble has no attack, and other shards have theirs."""
    first, second = story.states["complete"]
    if whom == "the ensemble":
        without = [
            dataclasses.replace(state, evaluation=dataclasses.replace(state.evaluation, ensemble_membership=None))
            for state in (first, second)
        ]
    else:
        without = [
            first,
            dataclasses.replace(second, evaluation=dataclasses.replace(second.evaluation, shard_memberships=())),
        ]
    points, rocs = svg(charts.attack_points(without)), svg(charts.attack_rocs(without))  # warnings are errors here
    assert f">{first.label}<" in points
    assert ("not attacked" in rocs) == (whom == "the ensemble")


def test_where_no_cache_can_be_kept_the_terminal_stays_clean(tmp_path: Path) -> None:
    run = Run.create(config(tmp_path))
    command = [sys.executable, "-m", "ray_sisa.cli", "report", run.store.uri, "--output", str(tmp_path / "page.html")]
    environment = {name: value for name, value in os.environ.items() if name not in {"MPLCONFIGDIR", "XDG_CONFIG_HOME"}}
    environment |= {"HOME": "/dev/null", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stderr == ""
    assert done.stdout == f"{tmp_path / 'page.html'}\n"


def test_drawing_and_rendering_load_neither_torch_nor_ray() -> None:
    code = "import sys, ray_sisa.report; print(sorted({'torch', 'ray', 'matplotlib.pyplot'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_of_many_shards_the_affected_come_first() -> None:
    metrics = tuple(EpochMetrics(epoch=epoch, loss=1.0, train_top1=0.5, test_top1=0.25) for epoch in range(2))
    one = StageRecord.model_construct(slice=1, epochs=2, metrics=metrics)
    stages = [one.model_copy(update={"shard": shard, "key": str(shard)}) for shard in range(40)]
    drawn = re.findall(r">shard (\d+)<", svg(charts.accuracy_curves(stages, set(), preferred=[33, 39])))
    assert drawn == [str(shard) for shard in (*range(10), 33, 39)]


@pytest.mark.parametrize(
    ("duration", "words"),
    [(None, "—"), (0.004, "0.00 s"), (12.34, "12.3 s"), (59.99, "60.0 s"), (125, "2 min 5 s"), (7260, "2 h 1 min")],
)
def test_durations_are_in_units_of_people(duration: float | None, words: str) -> None:
    assert seconds(duration) == words


def svg(uri: str) -> str:
    return base64.b64decode(uri.removeprefix(SVG)).decode()
