"""Servers that fail, lose replies, cut them off, are slow, or go away: the same models in the end, or a clear error.

Real are the S3 server, the programs and the kills; the faults come from a proxy between them on loopback.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import programs
import pytest
from places import config_in, storage_on, use_keys
from servers import FaultProxy, Faults, SeaweedFS
from small_runs import block_over_two_shards

from ray_sisa.config_values import load_config
from ray_sisa.errors import BusyError, StoreError
from ray_sisa.layout import numbered
from ray_sisa.lease import hold_lease
from ray_sisa.location import join_run
from ray_sisa.run import Run
from ray_sisa.store import Store

pytestmark = pytest.mark.slow

PATIENT = {"RAY_SISA_STORE_TIMEOUT_S": "36"}  # a reply that does not come is given up after 6 s
HASTY = {"RAY_SISA_STORE_TIMEOUT_S": "4", "RAY_SISA_LEASE_S": "2"}
BOUND_S = 30.0  # what is promised is one and a half of the timeout; the rest is for a machine under load


def whole(config: str) -> None:
    """Trains, forgets and unlearns; prints the digests of the ensembles."""
    run = Run.create(load_config(Path(config)))
    trained = run.train(runner="local").ensemble_digest
    if run.ledger().position == 0:
        run.forget(samples=block_over_two_shards(run), key="the block")
    print(json.dumps([trained, run.unlearn(runner="local").ensemble_digest]))


def assert_done(storage_path: str, expected: tuple[str, str]) -> None:
    """The run is complete, as if nothing had happened, and nothing is left over."""
    run = Run.open(join_run(storage_path, "run"))
    status, checked = run.status(), run.check()
    assert (status.complete, status.requests, status.ensemble_digest) == (True, 1, expected[1])
    assert (checked.findings, checked.notes) == ((), ())
    assert [certificate.request for certificate in run.certificates()] == [1]


# --- a share of all requests fails

SHARES = {
    "error": Faults(error=0.2),
    "drop": Faults(drop=0.2),
    "lose": Faults(lose=0.2),
    "cut": Faults(cut=0.2),
    "hang": Faults(hang=0.01),
    "stall": Faults(stall=0.02),
    "all": Faults(error=0.1, drop=0.05, lose=0.05, cut=0.05, delay=0.005),
    "slow": Faults(delay=0.1),
    "lose every create": Faults(where=r"^PUT .*(ledger|heads|lease|run\.json|stage\.json|certificates)", lose=0.5),
}


@pytest.fixture(scope="module")
def disturbed(
    server: SeaweedFS, tmp_path_factory: pytest.TempPathFactory, parquet: dict[str, str]
) -> Iterator[dict[str, tuple[programs.Program, FaultProxy, str]]]:
    """One program for each kind of fault, all at the same time, since most of it is waiting."""
    with pytest.MonkeyPatch.context() as environment:
        use_keys(environment, server)
        started, proxies = {}, []
        try:
            for name, faults in SHARES.items():
                proxy = FaultProxy(server.address, seed=11).__enter__()
                proxies.append(proxy)
                proxy.faults = faults
                storage_path = storage_on(server, through=proxy)
                config = tmp_path_factory.mktemp("config") / "config.yaml"
                config.write_text(config_in(storage_path, parquet).model_dump_json())
                started[name] = (programs.start(whole, str(config), environment=PATIENT), proxy, storage_path)
            yield started
        finally:
            for program, _, _ in started.values():
                program.end()
            for proxy in proxies:
                proxy.__exit__()


@pytest.mark.parametrize("fault", SHARES)
def test_a_share_of_requests_fails(
    fault: str, disturbed: dict[str, tuple[programs.Program, FaultProxy, str]], keys: None, expected: tuple[str, str]
) -> None:
    program, proxy, storage_path = disturbed[fault]
    ended = program.wait()
    assert ended.code == 0, ended.err
    assert tuple(json.loads(ended.out)) == expected
    assert proxy.injected or fault == "slow"
    proxy.faults = Faults()
    assert_done(storage_path, expected)


# --- the server goes away and comes back


def stopped_at(point: str, config: str) -> programs.Program:
    """`whole`, which stops itself (SIGSTOP) at a crash point."""
    program = programs.start(whole, config, environment=PATIENT | {"RAY_SISA_CRASH_AT": f"stop {point}"})
    programs.wait_until(lambda: programs.state_of(program) == "T", program)
    return program


POINTS = (
    "before create run.json",
    "before put stages/weights 2",
    "before create stages/stage 3",
    "before create ledger",
    "before create heads 2",
    "before delete stages/stage",
    "before create certificates",
)


def test_a_server_is_killed_and_comes_back(
    own_server: SeaweedFS,
    no_credentials: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    parquet: dict[str, str],
    expected: tuple[str, str],
) -> None:
    """In the midst of training, of a forget and of an unlearning; each meets it and goes on."""
    use_keys(monkeypatch, own_server)
    places, running = [storage_on(own_server) for _ in POINTS], []
    for number, (point, place) in enumerate(zip(POINTS, places, strict=True)):
        config = tmp_path / f"{number}.yaml"
        config.write_text(config_in(place, parquet).model_dump_json())
        running.append(stopped_at(point, str(config)))
    own_server.kill()
    for program in running:
        os.kill(program.pid, signal.SIGCONT)
    programs.wait_until(lambda: all("waiting up to 36 s for a server" in program.err for program in running), *running)
    own_server.start()
    for program, place in zip(running, places, strict=True):
        ended = program.wait()
        assert ended.code == 0, ended.err
        assert tuple(json.loads(ended.out)) == expected
        assert_done(place, expected)


COMMANDS = {
    "train": ["train", "CONFIG", "--runner", "local", "--wait", "60"],
    "forget": ["forget", "RUN", "--samples", "digit-0001"],
    "unlearn": ["unlearn", "RUN", "--runner", "local", "--wait", "60"],
    "status": ["status", "RUN"],
    "check": ["check", "RUN"],
    "verify": ["verify", "RUN", "--runner", "local"],
    "evaluate": ["evaluate", "RUN", "--runner", "local"],
}


@pytest.mark.parametrize(("kind", "commands"), [("stopped", list(COMMANDS)), ("black hole", ["train", "status"])])
def test_a_server_that_stays_away(
    kind: str,
    commands: list[str],
    own_server: SeaweedFS,
    no_credentials: None,
    monkeypatch: pytest.MonkeyPatch,
    config_file: Callable[..., str],
    expected: tuple[str, str],
) -> None:
    """Each command ends in time and says which server, and the same command completes once it is back."""
    use_keys(monkeypatch, own_server)
    with FaultProxy(own_server.address) as proxy:
        storage_path = storage_on(own_server, through=proxy if kind == "black hole" else None)
        config, run = config_file(storage_path), join_run(storage_path, "run")
        asked = {
            n: [{"CONFIG": config, "RUN": run}.get(a, a) for a in command]
            for n, command in COMMANDS.items()
            if n in commands
        }
        halfway = programs.ray_sisa(
            *asked["train"], environment=HASTY | {"RAY_SISA_CRASH_AT": "stop before put stages/weights 2"}
        )
        programs.wait_until(lambda: programs.state_of(halfway) == "T", halfway)
        if kind == "stopped":
            own_server.kill()
        else:
            proxy.faults = Faults(hang=1)
        began = time.monotonic()
        os.kill(halfway.pid, signal.SIGCONT)
        running = {n: programs.ray_sisa(*command, "--json", environment=HASTY) for n, command in asked.items()}
        for name, program in ({"halfway": halfway} | running).items():
            ended = program.wait()
            assert ended.code == 1, name
            assert time.monotonic() - began < BOUND_S
            address = (proxy if kind == "black hole" else own_server).endpoint
            for part in (f"error: s3://{own_server.bucket}/", address, "RAY_SISA_STORE_TIMEOUT_S", "server runs"):
                assert part in ended.err, (name, part)
            assert "Traceback" not in ended.err
            if name != "halfway":
                assert "See that the server runs" in ended.answer["error"]["remedy"]
        if kind == "stopped":
            own_server.start()
        proxy.faults = Faults()
        for name in ("train", "forget", "unlearn"):
            if name in asked:
                ended = programs.ray_sisa(*asked[name], environment=PATIENT).wait()
                assert ended.code == 0, (name, ended.err)
        opened = Run.open(run)
        assert opened.check().ok
        assert opened.record.config.name == "run"


# --- one reply at a time


@pytest.mark.parametrize("fault", ["cut", "stall", "lose"])
def test_a_truncated_object_is_never_taken_for_whole(
    fault: str, proxy: FaultProxy, server: SeaweedFS, impatient: None
) -> None:
    path = storage_on(server)
    data = bytes(range(256)) * 4000
    Store(path).put("object", data)
    for i in range(30):
        Store(path).put(numbered("ledger", i + 1), b"x" * i)
    through = Store(path.replace(server.endpoint[7:], proxy.endpoint[7:]))
    for share in (0.5, 1.0):
        proxy.faults = Faults(**{fault: share})
        for _ in range(2):
            for ask, whole_answer in (
                (lambda: through.find("object"), data),
                (lambda: through.numbers("ledger"), list(range(1, 31))),
                (lambda: len(through.sizes("")), 31),
            ):
                try:
                    assert ask() == whole_answer
                except StoreError as error:
                    assert "cannot" in error.rule
    assert proxy.injected[fault] > 10


@pytest.mark.parametrize("fault", ["lose", "cut"])
def test_every_reply_to_a_write_is_lost_once(fault: str, proxy: FaultProxy, server: SeaweedFS) -> None:
    """A create whose reply was lost finds itself there; one that came second does not take it for its own."""
    path = storage_on(server, through=proxy)
    store = Store(path)
    for i in range(5):
        proxy.faults = Faults(where="^PUT", limit=1, **{fault: 1})
        assert store.create(f"a/{i}", b"mine")
        assert not Store(path).create(f"a/{i}", b"another's")
        assert store.get(f"a/{i}") == b"mine"
    proxy.faults = Faults(where="^POST", limit=1, **{fault: 1})
    store.delete([f"a/{i}" for i in range(5)])
    assert store.sizes("") == {}
    assert proxy.injected[fault] == 6


# --- the lease


def test_an_outage_longer_than_the_lease(proxy: FaultProxy, server: SeaweedFS) -> None:
    """The holder goes on after it if nobody else came; else it is told."""
    path = storage_on(server)
    holders = Store(path.replace(server.endpoint[7:], proxy.endpoint[7:]))
    with hold_lease(holders, duration_s=0.5) as lease:
        proxy.faults = Faults(drop=1)
        expires_at = lease.record.expires_at
        programs.wait_until(lambda: time.time() > expires_at + 0.5)
        proxy.faults = Faults()
        lease.check()
        programs.wait_until(lambda: lease.record.expires_at > time.time())  # it is renewed
        with pytest.raises(BusyError), hold_lease(Store(path), wait_s=0):
            pass
        lease.check()


def test_an_outage_in_which_another_takes_over(proxy: FaultProxy, server: SeaweedFS) -> None:
    path = storage_on(server)
    holders = Store(path.replace(server.endpoint[7:], proxy.endpoint[7:]))
    with hold_lease(holders, duration_s=0.5) as lease:
        proxy.faults = Faults(drop=1)  # of the holder alone: the other reaches the server
        with hold_lease(Store(path), wait_s=60, duration_s=600) as other:
            proxy.faults = Faults()
            with pytest.raises(BusyError, match="took over this run"):
                lease.check()
            other.check()


def test_the_server_is_away_while_nobody_else_can_take_the_lease(proxy: FaultProxy, impatient: None) -> None:
    """No answer is not the same as no lease: nobody takes a run that it cannot see."""
    store = Store(f"s3://runs/x?endpoint_override={proxy.endpoint[7:]}&scheme=http")
    proxy.faults = Faults(error=1)
    with pytest.raises(StoreError, match="cannot list it"), hold_lease(store, wait_s=0):
        raise AssertionError("it was taken")
