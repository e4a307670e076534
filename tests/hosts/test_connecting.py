"""How processes find one another; mostly in threads, without JAX."""

import argparse
import concurrent.futures
import json
import pathlib
import signal
import socket
import sys
import time
from typing import Any

import pytest
from processes import finish, free_port, start

from tpmm_jax.errors import BadInput, TpmmError
from tpmm_jax.hosts import gathering
from tpmm_jax.hosts.connecting import add_options, find_place, refuse_many
from tpmm_jax.hosts.gathering import Place, meet


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_options(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--process-id", "0"], "--process-id without --coordinator, --num-processes"),
        (
            ["--coordinator", "h:1", "--num-processes", "2", "--process-id", "2"],
            "wanted 0 to 1",
        ),
        (
            ["--coordinator", "h", "--num-processes", "2", "--process-id", "1"],
            "wanted HOST:PORT",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        find_place(options(*words))


def test_a_process_is_alone_where_nothing_says_otherwise() -> None:
    assert find_place(options()) is None
    assert find_place(options("--num-processes", "1")) is None


def test_a_command_of_one_process_is_refused_where_many_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refuse_many("tpmm export")
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(BadInput, match=r"SLURM_STEP_NUM_TASKS is 4; .*--ntasks=1"):
        refuse_many("tpmm export")


SLICE = {"TPU_WORKER_HOSTNAMES": "a,b,c,d"}


@pytest.mark.parametrize(
    "environment, said",
    [
        (SLICE, r"TPU_WORKER_HOSTNAMES names 4: .*one host with JAX_PLATFORMS=cpu"),
        ({"TPU_PROCESS_ADDRESSES": "a:1,b:1"}, "TPU_PROCESS_ADDRESSES names 2"),
        (
            {"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"},
            "MEGASCALE_NUM_SLICES is 2",
        ),
        # Pods may have work of their own.
        ({"JOB_COMPLETION_INDEX": "1"}, None),
        (SLICE | {"JAX_PLATFORMS": "cpu"}, None),
        (SLICE | {"TPU_PROCESS_ADDRESSES": "a:1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "1"}, None),
        # The first pod may be the only one.
    ],
)
def test_a_command_of_one_process_is_refused_on_slices_and_in_jobs(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], said: str | None
) -> None:
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    if said is None:
        refuse_many("tpmm sample")
    else:
        with pytest.raises(
            BadInput, match=f"tpmm sample runs in one process, .*{said}"
        ):
            refuse_many("tpmm sample")


@pytest.mark.filterwarnings("ignore:Kubernetes environment")
def test_a_pod_of_an_indexed_job_does_not_go_on_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    assert find_place(options()) is None
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "0")
    with pytest.raises(BadInput, match=r'"jax\[k8s\]"\); or give --coordinator'):
        find_place(options())
    assert find_place(options("--num-processes", "1")) is None


def together(*places: tuple[int, int], timeout: float = 20.0) -> list[Any]:
    """Has processes of these (number, count) meet; returns what each raises."""
    port = free_port()

    def one(index: int, count: int) -> Any:
        try:
            meet(Place(f"localhost:{port}", index, count), timeout)
        except TpmmError as error:
            return str(error)
        return None

    with concurrent.futures.ThreadPoolExecutor(len(places)) as pool:
        return list(pool.map(one, *zip(*places)))


def test_all_meet() -> None:
    assert together((0, 3), (1, 3), (2, 3)) == [None, None, None]


def test_two_of_one_number_are_refused_on_every_process() -> None:
    said = together((0, 3), (1, 3), (1, 3))
    assert all("two processes have the number 1" in str(text) for text in said)


def test_processes_that_expect_others_are_refused() -> None:
    said = together((0, 2), (1, 3))
    assert all("expects 3 processes, process 0 expects 2" in str(text) for text in said)


def test_who_did_not_come_is_named() -> None:
    said = together((0, 4), (2, 4), timeout=1.0)
    assert all("4 processes were to come, and 1, 3 did not" in text for text in said)


@pytest.mark.slow
def test_who_did_not_come_is_named_where_process_0_came_late() -> None:
    """Whoever came first waits as long as process 0 does."""
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        made = [pool.submit(meet, Place(f"localhost:{port}", 1, 3), 8.0)]
        time.sleep(6.5)
        made.append(pool.submit(meet, Place(f"localhost:{port}", 0, 3), 8.0))
        for code, said in map(end_of, made):
            assert code == 134 and "3 processes were to come, and 2 did not" in said


def test_who_comes_a_little_later_hears_of_a_refusal() -> None:
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        made = [pool.submit(meet, Place(f"localhost:{port}", 0, 3), 60.0)]
        made.append(pool.submit(meet, Place(f"localhost:{port}", 1, 4), 60.0))
        time.sleep(0.7)
        made.append(pool.submit(meet, Place(f"localhost:{port}", 2, 3), 60.0))
        for code, said in map(end_of, made):
            assert code == 2 and "expects 4 processes, process 0 expects 3" in said


def test_a_stranger_on_the_port_is_passed_over() -> None:
    port = free_port()

    def stranger() -> None:
        while True:
            try:
                one = socket.create_connection(("localhost", port), 1.0)
            except OSError:
                continue
            one.sendall(b"GET / HTTP/1.1\r\n\r\n")
            return

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        first = pool.submit(meet, Place(f"localhost:{port}", 0, 2), 20.0)
        pool.submit(stranger).result()
        second = pool.submit(meet, Place(f"localhost:{port}", 1, 2), 20.0)
        assert first.result() is None and second.result() is None


def connect(port: int) -> socket.socket:
    """Connects with process 0, once it listens."""
    until = time.monotonic() + 20
    while True:
        try:
            return socket.create_connection(("localhost", port), 1.0)
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.05)


def come(port: int, index: int, count: int) -> socket.socket:
    """Has a process come, and returns its connection once process 0 knows of it."""
    one = connect(port)
    said = {"process": index, "count": count, "host": "there", "stopped": False}
    one.sendall(json.dumps({"hello": "tpmm_jax"} | said).encode() + b"\n")
    assert json.loads(one.recv(100)) == {"known": index}
    return one


def end_of(one: concurrent.futures.Future) -> tuple[int, str]:
    """Returns the code and the message of what a process raises."""
    error = one.exception(20)
    assert isinstance(error, TpmmError)
    return error.exit_code, str(error)


def test_a_process_that_came_and_died_ends_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gathering, "_AGAIN", 0.5)
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        made = [
            pool.submit(meet, Place(f"localhost:{port}", i, 4), 60.0) for i in (0, 1)
        ]
        come(port, 2, 4).close()
        for code, said in map(end_of, made):
            assert code == 134
            assert "process 2 on there came, and ended before all were there" in said


def test_a_process_that_died_may_come_again() -> None:
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        made = [pool.submit(meet, Place(f"localhost:{port}", 0, 3), 60.0)]
        come(port, 2, 3).close()
        # All have come, but one is gone.
        made.append(pool.submit(meet, Place(f"localhost:{port}", 1, 3), 60.0))
        time.sleep(0.5)
        assert not any(one.done() for one in made)
        made.append(pool.submit(meet, Place(f"localhost:{port}", 2, 3), 60.0))
        assert [one.result(20) for one in made] == [None] * 3


def serve(port: int) -> socket.socket:
    """Stands for process 0: knows one process, and ends."""
    with socket.create_server(("localhost", port)) as listener:
        one, _ = listener.accept()
        with one:
            one.recv(1000)
            one.sendall(b'{"known": 1}\n')


def test_process_0_that_was_there_and_died_ends_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gathering, "_AGAIN", 0.5)
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        made = pool.submit(meet, Place(f"localhost:{port}", 1, 2), 60.0)
        serve(port)
        code, said = end_of(made)
    assert code == 134 and f"process 0 at localhost:{port} ended before all" in said


def test_process_0_that_died_may_come_again() -> None:
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        made = [pool.submit(meet, Place(f"localhost:{port}", 1, 2), 60.0)]
        serve(port)
        made.append(pool.submit(meet, Place(f"localhost:{port}", 0, 2), 60.0))
        assert [one.result(20) for one in made] == [None] * 2


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stop_while_another_has_not_come_stops_all(
    tmp_path: pathlib.Path, stopped: int
) -> None:
    *made, absent = start(tmp_path, module="only_meets", processes=3, own=[()] * 3)
    absent.popen.kill()
    absent.popen.wait()
    for one in made:
        one.wait_for("started")
    time.sleep(0.5)
    began = time.monotonic()
    made[stopped].popen.send_signal(signal.SIGTERM)
    assert finish(made, 60) == [75, 75], "\n".join(one.said for one in made)
    assert time.monotonic() - began < 10
    said = " ".join(made[1 - stopped].said.split())
    assert f"process {stopped} on " in said and "was stopped while it waited" in said


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stop_once_all_have_met_stops_all(
    tmp_path: pathlib.Path, stopped: int
) -> None:
    made = start(tmp_path, module="only_meets")
    made[0].wait_for("all are there")
    began = time.monotonic()
    made[stopped].popen.send_signal(signal.SIGTERM)
    assert finish(made, 60) == [75, 75], "\n".join(one.said for one in made)
    assert time.monotonic() - began < 10
    assert "error" not in made[0].said


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stop_while_jax_connects_stops_all(
    tmp_path: pathlib.Path, stopped: int, delay: float
) -> None:
    made = start(tmp_path, module="only_meets")
    made[stopped].wait_for("started")
    time.sleep(delay)
    began = time.monotonic()
    made[stopped].popen.send_signal(signal.SIGTERM)
    assert finish(made, 60) == [75, 75], "\n".join(one.said for one in made)
    assert time.monotonic() - began < 10
