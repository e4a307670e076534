"""Commands in two real processes: the same run, the same end, whatever goes wrong."""

import pathlib
import signal
import sys
import time
from collections.abc import Sequence

import numpy as np
import pytest
from processes import (
    CONFIG,
    REWARD,
    ROOT,
    Process,
    differences,
    finish,
    rows,
    run,
    start,
)

from tpmm_jax.demo import toy
from tpmm_jax.log.console import RunConsole

# |a - b| <= this (|b| + 1e-3), between one process and two of as many devices.
CLOSE = 1e-4
HERE = pathlib.Path(__file__).parent
TRAINED = "tpmm_jax.train_reward"
QUICKSTART = ROOT / "configs" / "quickstart.py"
PLAIN = (
    *("--config", CONFIG, "--set", "reference.fit=margins"),
    *("--set", "reference.steps=100", "--set", "reference.batch_size=64"),
    *("--set", "train.learning_rate=3e-4"),
)
ROLLOUTS = "iterations/001/rollouts.jsonl"


def pairs_file(folder: pathlib.Path) -> pathlib.Path:
    path = folder / "pairs.jsonl"
    row = '{{"prompt": "w{} w{}", "chosen": "w{} w2 w4", "rejected": "w{} w{}"}}\n'
    path.write_text(
        "".join(
            row.format(i % 20, i * 7 % 20, i * 3 % 20, (i * 5 + 1) % 20, i * 11 % 20)
            for i in range(40)
        )
    )
    return path


def one_and_two(tmp_path: pathlib.Path, *words: object, **options: object) -> None:
    """Runs in two processes and in one; compares metrics and the first rollouts."""
    two, one = tmp_path / "two", tmp_path / "one"
    two_and_gloo(tmp_path, *words, **options)
    given = {"processes": 1, "devices": 8, "cache": tmp_path / "cache", **options}
    run(tmp_path, *words, "--workdir", one, **given)
    assert differences(two, one) <= CLOSE
    if (one / ROLLOUTS).exists():
        assert (two / ROLLOUTS).read_bytes() == (one / ROLLOUTS).read_bytes()


def two_and_gloo(
    tmp_path: pathlib.Path, *words: object, module: str = "tpmm_jax.train"
) -> None:
    """Compares two processes with one that adds up as they do, bit for bit."""
    two, gloo, given = (
        tmp_path / "two",
        tmp_path / "gloo",
        {"cache": tmp_path / "cache"},
    )
    run(tmp_path, *words, "--workdir", two, module=module, **given)
    given |= {"module": "by_gloo", "processes": 1, "devices": 8}
    run(tmp_path, module, *words, "--workdir", gloo, **given)
    files = [gloo / "metrics.jsonl", *gloo.glob("iterations/*/rollouts.jsonl")]
    for file in files:
        assert file.read_bytes() == (two / file.relative_to(gloo)).read_bytes(), file


@pytest.mark.loop
def test_two_processes_run_what_one_runs(tmp_path: pathlib.Path) -> None:
    one_and_two(tmp_path, *PLAIN)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lora", "trust_region", "offline", "adam"])
def test_two_processes_run_every_mode(tmp_path: pathlib.Path, mode: str) -> None:
    pairs = pairs_file(tmp_path)
    rate = ("--set", "train.learning_rate=3e-4")
    base = {
        "lora": (*PLAIN, "--set", "model.lora.rank=2", "--set", "model.lora.alpha=4"),
        "trust_region": (
            *("--config", CONFIG, *rate, "--set", "reference.rule=trust_region"),
            *("--set", "reference.trust_region_tau=2"),
        ),
        "offline": (
            *(*PLAIN, "--set", "data.prompts=null", "--set", f"data.pairs={pairs}"),
            *("--set", "scorer.name=null"),
        ),
        "adam": ("--config", CONFIG, *rate),
    }
    one_and_two(tmp_path, *base[mode])


@pytest.mark.slow
def test_two_processes_run_the_quickstart(tmp_path: pathlib.Path) -> None:
    """At its own rate, which makes last bits grow."""
    toy.build_model(tmp_path / "model", RunConsole())
    words = ("--config", QUICKSTART, "--set", f"model.source={tmp_path / 'model'}")
    two_and_gloo(tmp_path, *words)


@pytest.mark.slow
def test_two_processes_train_a_reward_model(tmp_path: pathlib.Path) -> None:
    words = [
        *("--config", REWARD, "--set", f"data.pairs={pairs_file(tmp_path)}"),
        *("--set", "evaluation.sets={}", "--set", "train.learning_rate=3e-4"),
    ]
    one_and_two(tmp_path, *words, module=TRAINED)


@pytest.mark.slow
@pytest.mark.parametrize("first, then", [((2, 4), (1, 8)), ((1, 8), (2, 4))])
def test_another_number_of_processes_continues(
    tmp_path: pathlib.Path, first: tuple[int, int], then: tuple[int, int]
) -> None:
    cache, mixed, whole = (tmp_path / name for name in ("cache", "mixed", "whole"))
    given = {"cache": cache}
    run(
        tmp_path, *PLAIN, "--set", "iterations=1", "--workdir", mixed,
        processes=first[0], devices=first[1], **given,
    )  # fmt: skip
    run(
        tmp_path, *PLAIN, "--workdir", mixed,
        processes=then[0], devices=then[1], **given,
    )  # fmt: skip
    run(tmp_path, *PLAIN, "--workdir", whole, processes=1, devices=8, **given)
    assert differences(mixed, whole) <= CLOSE


# What process 0 says when a phase begins, and how long after that the signal comes.
MOMENTS = [
    (text, delay)
    for text, delays in {
        "load theta_0": (0.0, 1.0),
        "evaluate theta_0": (0.0, 0.7, 1.5),
        "iteration 1: sample and score": (0.0, 0.5),
        "iteration 1: reference log-probs": (0.0, 0.5),
        "iteration 1: DPO": (0.0, 0.3, 1.0),
        "iteration 1: log-probs of policy": (0.0,),
        "iteration 2: sample and score": (0.0, 0.3),
        "iteration 2: learned reference": (0.0, 0.2),
        "iteration 2: DPO": (0.0, 0.2, 0.5),
    }.items()
    for delay in delays
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    run(folder, *PLAIN, "--workdir", folder / "run", cache=folder / "cache")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("place", range(len(MOMENTS)), ids=lambda n: f"{n}")
def test_a_signal_to_one_process_stops_both_and_nothing_is_lost(
    tmp_path: pathlib.Path, undisturbed: pathlib.Path, place: int
) -> None:
    (text, delay), words = MOMENTS[place], (*PLAIN, "--workdir", tmp_path / "run")
    # Half of them compile, so that signals come in compilations too.
    cache = undisturbed / "cache" if place % 2 else None
    made = start(tmp_path, *words, cache=cache)
    made[0].wait_for(text)
    time.sleep(delay)
    began = time.monotonic()
    made[1 - place % 3 // 2].popen.send_signal(signal.SIGTERM)
    codes = finish(made, 60)
    if codes != [0, 0]:  # it may have come at the very end
        assert codes == [75, 75], "\n".join(one.said for one in made)
    assert time.monotonic() - began < 10
    run(tmp_path, *words, cache=undisturbed / "cache")
    whole = (undisturbed / "run" / "metrics.jsonl").read_bytes()
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == whole


@pytest.mark.slow
def test_a_stop_waits_for_a_save_that_takes_long(tmp_path: pathlib.Path) -> None:
    words = [
        "--config",
        HERE / "slow_save.py",
        *PLAIN[2:],
        "--set",
        "train.checkpoint_every=0",
    ]
    words += ["--set", "train.epochs=1000", "--workdir", tmp_path / "run"]
    made = start(tmp_path, *words)
    made[0].wait_for("iteration 1: DPO")
    rows_of = tmp_path / "run/iterations/001/metrics.jsonl"
    while '"train"' not in rows_of.read_text():  # it compiles
        assert made[0].popen.poll() is None, made[0].said
    made[1].popen.send_signal(signal.SIGTERM)
    assert finish(made, 60) == [75, 75]
    assert "its state is saved" in made[0].said
    assert [x for x in (tmp_path / "run" / "work").iterdir() if x.name.isdecimal()]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("which", [0, 1])
def test_a_process_that_is_gone_ends_the_other(
    tmp_path: pathlib.Path,
    undisturbed: pathlib.Path,
    number: signal.Signals,
    which: int,
) -> None:
    words = (*PLAIN, "--workdir", tmp_path / "run")
    for text in ("evaluate theta_0", "iteration 1: DPO", "iteration 2: sample"):
        made = start(tmp_path, *words, cache=undisturbed / "cache")
        made[0].wait_for(text)
        began = time.monotonic()
        made[which].popen.send_signal(number)
        other = made[1 - which]
        code = other.popen.wait(60)
        assert time.monotonic() - began < 35
        made[which].popen.kill()
        finish(made)
        assert code in (134, -signal.SIGABRT), other.said
        assert "another task died" in other.said
    run(tmp_path, *words, cache=undisturbed / "cache")
    whole = (undisturbed / "run" / "metrics.jsonl").read_bytes()
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == whole


@pytest.mark.slow
def test_a_scorer_that_raises_ends_both_with_one_message(
    tmp_path: pathlib.Path,
) -> None:
    words = (*PLAIN, "--set", "scorer.name=user_code:raises")
    made = start(tmp_path, *words, "--workdir", tmp_path / "run")
    assert finish(made) == [2, 2]
    said = "".join(one.said for one in made)
    # Once; the line that raised it is quoted below it.
    wanted = "error: scorer user_code:raises raised RuntimeError: the scorer's database"
    assert said.count("error: ") == made[0].said.count(wanted) == 1


@pytest.mark.slow
@pytest.mark.parametrize("file", ["rollouts.jsonl", "trajectory.jsonl"])
def test_a_full_disk_ends_both_with_one_message(
    tmp_path: pathlib.Path, undisturbed: pathlib.Path, file: str
) -> None:
    """Once it has room again the same command goes on."""
    full, words = tmp_path / "FULL", ["--config", HERE / "full_disk.py", *PLAIN[2:]]
    words += ["--workdir", tmp_path / "run"]
    given = {"cache": undisturbed / "cache", "folders": [tmp_path, tmp_path]}
    full.write_text(file)
    made = start(tmp_path, *words, **given)
    assert finish(made) == [4, 4], "\n".join(one.said for one in made)
    said = "".join(one.said for one in made)
    assert said.count("No space left on device") == 1
    full.unlink()
    run(tmp_path, *words, **given)
    whole = (undisturbed / "run" / "metrics.jsonl").read_bytes()
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == whole


@pytest.mark.slow
def test_a_slow_scorer_is_waited_for(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLOW", "40")
    words = (*PLAIN, "--set", "scorer.name=user_code:slow", "--set", "iterations=1")
    run(tmp_path, *words, "--workdir", tmp_path / "run")
    assert rows(tmp_path / "run")[-1]["kind"] == "iteration"


@pytest.mark.slow
def test_a_scorer_computes_on_the_devices_of_its_process(
    tmp_path: pathlib.Path,
) -> None:
    words = (*PLAIN, "--set", "scorer.name=user_code:on_a_mesh", "--set")
    run(tmp_path, *words, "iterations=1", "--workdir", tmp_path / "run")
    assert rows(tmp_path / "run")[-1]["kind"] == "iteration"


def end_alike(made: Sequence[Process], code: int, what: str) -> None:
    """Both end with a code, and one message that they differ."""
    assert finish(made) == [code, code]
    said = " ".join("".join(one.said for one in made).split())
    assert said.count(f"process 1 differs from process 0: {what}") == 1


@pytest.mark.loop
def test_unequal_configs_end_both_with_one_message(tmp_path: pathlib.Path) -> None:
    own = ((), ("--set", "loss.beta=0.3"))
    made = start(tmp_path, *PLAIN, "--workdir", tmp_path / "run", own=own)
    assert finish(made) == [2, 2]
    said = "".join(one.said for one in made)
    assert said.count("process 1 differs from process 0: loss.beta is 0.3 there") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.loop
def test_another_copy_of_the_weights_ends_both(tmp_path: pathlib.Path) -> None:
    """Each host has a copy of the model, and one has an older one."""
    hosts = [tmp_path / "host0", tmp_path / "host1"]
    sys.path.insert(0, str(CONFIG.parent))
    import tiny_run

    for host in hosts:
        tiny_run.build_model(host / "copied")
    file = hosts[1] / "copied" / "model.safetensors"
    held = bytearray(file.read_bytes())
    held[-4:] = np.float32(0.5).tobytes()
    file.write_bytes(held)
    words = (*PLAIN, "--set", "model.source=copied", "--workdir", tmp_path / "run")
    made = start(tmp_path, *words, folders=hosts)
    end_alike(made, 2, "the weights of copied")


@pytest.mark.slow
def test_other_pairs_in_one_end_both(tmp_path: pathlib.Path) -> None:
    """Each host has a file of its own."""
    hosts = [tmp_path / "host0", tmp_path / "host1"]
    for host in hosts:
        host.mkdir()
        pairs_file(host)
    with (hosts[1] / "pairs.jsonl").open("a") as file:
        file.write('{"prompt": "w1", "chosen": "w2", "rejected": "w3"}\n')
    words = [*PLAIN, "--workdir", tmp_path / "run", "--set", "data.pairs=pairs.jsonl"]
    words += ["--set", "data.prompts=null", "--set", "scorer.name=null"]
    made = start(tmp_path, *words, folders=hosts)
    end_alike(made, 2, "data is")


@pytest.mark.slow
def test_another_state_of_the_folder_ends_both(tmp_path: pathlib.Path) -> None:
    words = ["--config", HERE / "stale_disk.py", *PLAIN[2:]]
    made = start(tmp_path, *words, "--workdir", tmp_path / "run")
    # Started again it may have caught up.
    end_alike(made, 134, "the next iteration of")


@pytest.mark.loop
def test_a_process_that_does_not_come_is_named(tmp_path: pathlib.Path) -> None:
    words = (*PLAIN, "--workdir", tmp_path / "run", "--connect-timeout", "2")
    made = start(tmp_path, *words)
    made[1].popen.kill()
    assert finish(made)[0] == 134
    assert "2 processes were to come, and 1 did not within 2 s" in made[0].said
    assert not (tmp_path / "run").exists()
