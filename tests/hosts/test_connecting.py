"""How processes find one another; in threads, without JAX."""

import argparse
import concurrent.futures
import socket
from typing import Any

import pytest
from processes import free_port

from tpmm_jax.errors import BadInput, TpmmError
from tpmm_jax.hosts.connecting import (
    Place,
    add_options,
    find_place,
    meet,
    refuse_many,
)


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
