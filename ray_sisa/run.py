"""Run: the object a user holds. Everything else is reached through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ray_sisa import approximations, data, heads, ids, local_path, model_code, siting, stored_sources
from ray_sisa.approximate.methods import AnyMethod
from ray_sisa.census import Census, Found
from ray_sisa.certificates import read_certificates
from ray_sisa.config import DataConfig, OnDivergence, PurgeConfig, RunConfig, Scaling
from ray_sisa.engine.runner import OpenRunner, Runner, RunnerName, open_runner
from ray_sisa.engine.work import Event
from ray_sisa.ensemble import Ensemble
from ray_sisa.errors import ConfigError, RequestError, StoreError
from ray_sisa.forgetting import Forgotten, acknowledge
from ray_sisa.ingest import differing_fields, ingest
from ray_sisa.layout import NO_RUN, RUN, stage_record
from ray_sisa.ledger import EMPTY, Ledger, read_ledger
from ray_sisa.live import LiveSet
from ray_sisa.location import join_run
from ray_sisa.reconcile import Reconciler, Reconciliation
from ray_sisa.records import Approximation, Certificate, Constituent, Head, RunRecord, StageRecord
from ray_sisa.samples import Samples
from ray_sisa.spending import PrivacySpent, privacy_spent
from ray_sisa.status import Status, read_status
from ray_sisa.store import Store
from ray_sisa.voting import Rule

if TYPE_CHECKING:
    from ray_sisa.audit import Evaluation
    from ray_sisa.check import Checked
    from ray_sisa.inversion.attack import AttackEpoch
    from ray_sisa.inverting import AttackerConfig, InversionReport, Targets
    from ray_sisa.splitting import ActivationNoise
    from ray_sisa.verify import Verification


class Run:
    """A run in a store: train it, make it forget, ask it, check it."""

    def __init__(self, store: Store, record: RunRecord) -> None:
        """Takes a run that exists; see `create` and `open`."""
        self.store, self.record = store, record
        self.live = LiveSet(store, record)
        self._ledger = EMPTY

    @classmethod
    def create(cls, config: RunConfig, dataset: data.Dataset | None = None) -> Run:
        """Creates a run, or opens the one that is there under the same name and configuration.

        Args:
            config: of the run. Scaling, evaluation, purge and `recipe.on_divergence` may differ from those of an
                existing run, and hold from then on in this object.
            dataset: samples in memory, in place of those that `config.data` names.

        Raises:
            ConfigError: another configuration holds the name; the differing fields are listed.
            DataError: the samples break a rule.
        """
        model_code.allow([config.recipe.model])
        stored_sources.name(config.data)
        store = Store(join_run(config.storage_path, config.name), config.storage_mode)
        if (record := store.find_record(RUN, RunRecord)) is None:
            local_path.check_written_out(config)
            siting.check(store, config.name)
            record = ingest(store, config, dataset or data.load(config.data))
        if differing := differing_fields(record.config, config):
            rule = "is there with another configuration; these differ: " + ", ".join(differing)
            raise ConfigError("name", config.name, rule, "Choose another name, or give the configuration of that run")
        changed = {name: getattr(config, name) for name in ("scaling", "evaluation", "purge")}
        return cls(store, record.changed(config.recipe.on_divergence, changed))

    @classmethod
    def open(
        cls,
        uri: str,
        scaling: Scaling | None = None,
        purge: PurgeConfig | None = None,
        on_divergence: OnDivergence | None = None,
        allow_models: Iterable[str] = (),
    ) -> Run:
        """Opens the run at `storage_path/name`.

        Args:
            uri: a folder or URI.
            scaling, purge, on_divergence: in place of what the run was made with; hold in this object alone.
            allow_models: `package.module:function` networks that this process may import where a run names them.

        Raises:
            StoreError: there is none.
        """
        model_code.allow(allow_models)
        store = Store(uri)
        if (record := store.find_record(RUN, RunRecord)) is None:
            raise StoreError("run", store.uri, "has no run", NO_RUN)
        return cls(store, record.changed(on_divergence, {"scaling": scaling, "purge": purge}))

    def train(
        self,
        *,
        runner: RunnerName | Runner = "ray",
        tell: Callable[[Event], None] = lambda event: None,
        wait_s: float | None = None,
    ) -> Reconciliation:
        """Trains what is missing; a second time, or after a crash, goes on where the store says.

        Args:
            runner: `ray`, `local` for this process, or a runner that is open and stays so.
            tell: hears of every epoch and every committed stage.
            wait_s: how long to wait for another process that works on the run, in seconds; None is as long as a lease
                lasts, which is what one that has died has it for, at most.

        Raises:
            BusyError, ResourcesError, StoreError, TrainingError: what was committed stays.
        """
        return Reconciler(self.store, self.record, tell, self._ledger).run(self._runner(runner), wait_s)

    unlearn = train
    """Completes all pending requests: training and unlearning are one operation, see `reconcile`."""

    def forget(
        self,
        *,
        samples: ids.Ids = (),
        subjects: ids.Ids = (),
        reason: str = "",
        key: str | None = None,
        ignore_unknown: bool = False,
        requester: str = "",
        with_duplicates: bool = False,
    ) -> Forgotten:
        """Acknowledges a deletion request: once this returns it is kept, and no reader is served the samples' models.

        Args:
            samples: ids of samples; taken once, so that a generator over a long file needs no list.
            subjects: ids of subjects, all of whose samples are deleted; likewise.
            reason: free text, kept with the request.
            key: idempotency key; a request sent again under its key is the same request.
            ignore_unknown: pass over names that the run never had.
            requester: who asks, kept with the request; nobody's identity is checked, but keys of one are not another's.
            with_duplicates: delete live samples with the very content of one that is named, too.

        Raises:
            RequestError: nothing is named, or names are unknown; nothing was written.
        """
        return acknowledge(self, samples, subjects, reason, key, ignore_unknown, requester, with_duplicates)

    def locate(self, *, samples: ids.Ids = (), subjects: ids.Ids = ()) -> Found:
        """Sample ids by (shard, slice) of samples and subjects, and how many names the run never had.

        Raises:
            RequestError: a name that can be no id.
        """
        return Census(self.live, self.record).find(samples=samples, subjects=subjects)

    def sample_ids(self, shard: int, slice_number: int) -> list[str]:
        """Ids that a slice was given at ingest, deleted ones among them, sorted; tombstones where ids are keyed."""
        return self.live.index(shard).sample_ids(slice_number)

    def status(self) -> Status:
        """The run as its store says it is; one listing, no weights."""
        head = heads.latest_head(self.store)  # before the ledger, see `heads.check_respected`
        return read_status(self.store, self.record, self.live, self.ledger(), head)

    def privacy(self) -> PrivacySpent | None:
        """What training has spent of the privacy of live samples; None where it is not differentially private.

        Raises:
            StoreError: a charge is damaged.
        """
        return privacy_spent(self.store, self.record, self.live, self.ledger())

    def in_force(self, ledger: Ledger | None = None, head: Head | None = None) -> tuple[Constituent, ...]:
        """Who votes now: the head, less what requests that it does not know of yet have tainted."""
        head = head or heads.latest_head(self.store)
        return heads.in_force(self.store, ledger or self.ledger(), head)

    def ensemble(self, device: str = "cpu") -> Ensemble:
        """The ensemble in force, loaded; from the instant `forget` returns it is clean of the request.

        Raises:
            StoreError: nothing is trained yet, or a stage is damaged.
        """
        return Ensemble(self.store, self.record, device)

    def verify(
        self, *, shards: Iterable[int] | None = None, sample: int | None = None, runner: RunnerName | Runner = "ray"
    ) -> Verification:
        """Trains stages again and compares them bit for bit with the store.

        Args:
            shards: which shards; all by default.
            sample: how many stages, drawn at random, to train again from their parents; by default all are trained
                again from scratch.
            runner: where.
        """
        wanted = sorted(set(shards)) if shards is not None else list(range(len(self.record.slices)))
        if unknown := [shard for shard in wanted if not 0 <= shard < len(self.record.slices)]:
            raise RequestError("shards", unknown, f"must be 0 to {len(self.record.slices) - 1}", "Correct the list")
        from ray_sisa.verify import verify  # needs torch, which most of what a run is asked does not

        return verify(self.store, self.record, self.live, wanted, sample, self._runner(runner))

    def evaluate(
        self,
        *,
        forget: int | Iterable[str] | None = None,
        source: DataConfig | None = None,
        aggregation: Rule = "mean",
        runner: RunnerName | Runner = "ray",
        approximation: str | None = None,
    ) -> Evaluation:
        """Accuracies and membership inference of the ensemble in force.

        Args:
            forget: a forget set: the number of a request, or sample ids. It is read from the source, since the store
                has forgotten it. Without one the attack is on training samples.
            source: where to read the forget and retained sets; by default what the run was made from.
            aggregation: how the constituents vote.
            runner: where the constituents run.
            approximation: what to evaluate in place of the ensemble: the key of an approximation, the beginning of
                one, or the name of a method; of several, the one made for this forget set.

        Raises:
            RequestError: no such request or approximation, samples that the source does not have, or a source that says
                other mean and std than the run was trained with.
            DataError: the run has no test set, or no constituent.
        """
        from ray_sisa.audit import evaluate  # needs scikit-learn, which is slow to load

        return evaluate(
            self, forget=forget, source=source, aggregation=aggregation, runner=runner, approximation=approximation
        )

    def approximate(
        self,
        method: AnyMethod,
        *,
        forget: ids.Ids = (),
        subjects: ids.Ids = (),
        runner: RunnerName | Runner = "ray",
        wait_s: float | None = 60.0,
    ) -> Approximation:
        """A model that an approximate method made of the run's one model; the same call again finds it.

        Nothing is deleted, and nothing is certified: it is there to be compared with what `forget` and `unlearn` do.

        Args:
            method: which, and its dials.
            forget: ids of live samples that the model is to forget.
            subjects: ids of subjects, all of whose samples it is to forget.
            runner: where it is made.
            wait_s: how long to wait with the commit for another process that works on the run, in seconds.

        Raises:
            RequestError: a run of more than one shard or slice, or samples that are not there or not live.
            BusyError, ResourcesError, StoreError, TrainingError: nothing was written.
        """
        return self.approximate_all([method], forget=forget, subjects=subjects, runner=runner, wait_s=wait_s)[0]

    def approximate_all(
        self,
        methods: Sequence[AnyMethod],
        *,
        forget: ids.Ids = (),
        subjects: ids.Ids = (),
        runner: RunnerName | Runner = "ray",
        wait_s: float | None = 60.0,
    ) -> list[Approximation]:
        """What several methods make of the run's one model, side by side: see `approximate`."""
        from ray_sisa.approximating import approximate_all  # needs torch

        self.store.prove()  # before hours of work, not at its commit
        ledger = self.ledger()
        stage = approximations.the_one_stage(self.store, self.record, self.live, ledger)
        found = self.locate(samples=forget, subjects=subjects)
        found.refuse_unknown("forget", "Correct the ids")
        named = approximations.check_live(found.places, ledger.deleted())
        with self._runner(runner)() as opened:
            return approximate_all(self.store, self.record, stage, named, methods, opened, wait_s)

    def approximations(self) -> tuple[Approximation, ...]:
        """What approximate methods made of models that the run still has, the oldest first.

        Raises:
            StoreError: the record of one is damaged.
        """
        return approximations.find_all(self.store, self.live.chains(self.ledger()), self.record.training)

    def attack_inversion(
        self,
        layer: str,
        public: Samples,
        victims: Samples,
        *,
        clusters: Sequence[str] | None = None,
        public_clusters: Sequence[str] | None = None,
        targets: Targets = "constituents",
        noise: ActivationNoise | None = None,
        decoder: AttackerConfig | None = None,
        white_box: bool = False,
        pictures: Path | None = None,
        runner: RunnerName | Runner = "ray",
        tell: Callable[[str, AttackEpoch], None] = lambda target, epoch: None,
    ) -> InversionReport:
        """Reconstructs images from what the networks in force send from a device to a server; changes no model.

        Args:
            layer: whose output leaves the device.
            public: images that the attacker has.
            victims: images to reconstruct; those that are public too are left out.
            clusters: of each victim, what intervals resample; by default its label.
            public_clusters: of each public image; those of one cluster are left out together where an attacker of
                `KernelConfig` is regularised. By default the label. Decoders use neither.
            targets: each constituent alone, or what all of them send together.
            noise: a defence, on what leaves the device.
            decoder: the attacker: a `DecoderConfig`, by default `wide`, or a `KernelConfig`.
            white_box: whether to attack with the weights at hand as well.
            pictures: folder of this machine for a picture of each target. They show victims, so the run keeps none.
            runner: where the targets are attacked.
            tell: hears each epoch of the attacker, with the name of its target.

        Raises:
            ConfigError: a layer at which the network cannot be cut, or networks that read features.
            DataError: images of another shape, victims that are all public, or too few clusters of public images.
        """
        from ray_sisa.inverting import invert  # needs torch

        return invert(
            self,
            layer,
            public,
            victims,
            clusters=clusters,
            public_clusters=public_clusters,
            targets=targets,
            noise=noise,
            decoder=decoder,
            white_box=white_box,
            pictures=pictures,
            runner=runner,
            tell=tell,
        )

    def evaluations(self) -> list[Evaluation]:
        """What was evaluated of this run and no request has tainted since, the oldest first; they name no sample."""
        from ray_sisa.audit import read_evaluations

        return read_evaluations(self.store, self.ledger())

    def check(self, tell: Callable[[int, int], None] = lambda done, of: None) -> Checked:
        """Reads every object of the run and says what is damaged, missing, or must not exist; writes nothing.

        Args:
            tell: hears how many objects have been looked at, of how many.
        """
        from ray_sisa.check import check  # reads weights, so it needs torch

        return check(self.store, tell)

    def repair(
        self,
        found: Checked,
        *,
        runner: RunnerName | Runner = "ray",
        tell: Callable[[Event], None] = lambda event: None,
        wait_s: float | None = None,
    ) -> None:
        """Deletes what a check found removable, and makes again what should be there.

        Raises:
            BusyError, ResourcesError, StoreError, TrainingError: what cannot be made again is missing, for one.
        """
        from ray_sisa.check import repair

        repair(self.store, found, wait_s)
        self.train(runner=runner, tell=tell, wait_s=wait_s)

    def ledger(self) -> Ledger:
        """All requests up to now; those that this object has read before are not read again."""
        self._ledger = read_ledger(self.store, self._ledger)
        return self._ledger

    def certificates(self) -> list[Certificate]:
        """What was done for each completed request.

        Raises:
            StoreError: one is damaged, or is not of the request that the ledger has.
        """
        return read_certificates(self.store, self.ledger())

    def stages(self) -> list[StageRecord]:
        """Records of the committed stages that should exist, by shard and slice."""
        present = self.store.committed_stages()
        chains = self.live.chains(self.ledger())
        keys = [key for chain in chains for key in chain.keys if key in present]
        return [self.store.read(stage_record(key), StageRecord) for key in keys]

    def _runner(self, runner: RunnerName | Runner) -> OpenRunner:
        config = self.record.config
        return lambda: open_runner(runner, config.scaling, config.recipe.model)
