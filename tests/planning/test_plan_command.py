"""tpmm plan: on the devices at hand, for GPUs by arithmetic, for a TPU slice."""

import json
import math
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest

from tpmm_jax.commands import plan
from tpmm_jax.planning import measure
from tpmm_jax.planning.devices import Target

HERE = pathlib.Path(__file__).parent
MODEL = HERE.parent / "fixtures" / "gemma"
CONFIG = ["--config", str(HERE / "tiny_plan.py"), "--model", str(MODEL)]
REWARD = ["--config", str(HERE / "tiny_reward_plan.py")]
REWARD_MODEL = HERE.parent / "fixtures" / "reward_gemma"
PHASES = [
    "lay out",
    "sample",
    "sample to evaluate",
    "log-probs of answers",
    "fusion gradient",
    "merge, its largest leaf",
    "reference log-probs",
    "train",
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "tpmm_jax" / "plans"


def planned(
    capsys: pytest.CaptureFixture[str], *words: str, code: int = 0
) -> dict[str, Any]:
    assert plan.main([*words, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def error(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert plan.main([*words]) == 2
    return " ".join(capsys.readouterr().err.split())


def test_the_devices_at_hand(
    capsys: pytest.CaptureFixture[str],
    own_cache: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = planned(capsys, *CONFIG)
    assert [one["name"] for one in found["phases"]] == PHASES
    assert found["mesh"] == {"data": 1, "fsdp": 8, "tensor": 1, "expert": 1}
    assert found["drawing_mesh"] == found["mesh"] | {"data": 8, "fsdp": 1}
    assert found["lengths"] == {"prompt": 32, "pair": 32}
    assert found["fits"] is True and found["settings"] == []
    for one in found["phases"]:
        assert one["arguments"] > 0 and one["total"] >= one["arguments"]
        assert one["bytes_moved"] > 0
    by_name = {one["name"]: one for one in found["phases"]}
    assert "all-gather" in by_name["lay out"]["collectives"]
    # Of 64 prompts a quarter is held out: 48 pairs train, 32 at a time.
    assert by_name["train"]["calls"] == by_name["reference log-probs"]["calls"] == 2
    # A CPU's peak is not known, and so no time.
    assert found["seconds"] is None
    assert len(list(own_cache.iterdir())) == len(PHASES)

    def compiled_again(*args: Any) -> None:
        raise AssertionError("a program that was measured is compiled again")

    monkeypatch.setattr(measure, "read_traffic", compiled_again)
    assert planned(capsys, *CONFIG) == found


def test_words_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan.main([*CONFIG, "--topology", "h100:8"]) == 0
    text = capsys.readouterr().out
    assert "8 x NVIDIA H100, mesh fsdp 8, bfloat16" in text
    assert "whole on every device, mesh data 8" in text
    assert "reference log-probs" in text and "an iteration takes" in text
    assert max(map(len, text.splitlines())) <= 90


def test_gpus_by_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    found = planned(capsys, *CONFIG, "--topology", "h100:8")
    assert {one["temporary"] for one in found["phases"]} == {None}
    assert found["seconds"] > 0
    assert found["device_kind"] == "NVIDIA H100"


def test_a_mesh_of_other_devices_is_replaced(
    capsys: pytest.CaptureFixture[str],
) -> None:
    wanted = "--set", "mesh.fsdp=3", "--topology", "h100:8"
    found = planned(capsys, *CONFIG, *wanted)
    assert math.prod(found["mesh"].values()) == 8 and found["mesh"]["fsdp"] != 3
    assert found["settings"] == [f"mesh.{k}={n}" for k, n in found["mesh"].items()]
    assert found["notes"][0].startswith("a mesh of data=1, fsdp=3, tensor=1, expert=1")
    assert found["notes"][0].endswith(" is planned")


def test_what_does_not_fit_gets_a_suggestion(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    large = "--set", "train.batch_size=512", "--set", "model.remat=false"
    first = planned(capsys, *CONFIG, *large)
    train = first["phases"][-1]
    limit = train["arguments"] + train["temporary"] // 2
    monkeypatch.setattr(Target, "memory", property(lambda self: limit))
    found = planned(capsys, *CONFIG, *large, code=5)
    assert found["fits"] is False
    other = found["suggestion"]
    assert other is not None and other["fits"] is True
    assert "model.remat=true" in other["settings"]
    again = [x for setting in other["settings"] for x in ("--set", setting)]
    assert planned(capsys, *CONFIG, *large, *again)["fits"] is True
    assert plan.main([*CONFIG, *large]) == 5
    assert "it fits with: --set" in capsys.readouterr().out

    asks = "--set", f"scorer.name={JUDGE}", "--set", "judge.batch_size=512"
    monkeypatch.setattr(Target, "memory", property(lambda self: 2**60))
    limit = planned(capsys, *CONFIG, *asks)["phases"][-1]["total"] * 2 // 3
    monkeypatch.setattr(Target, "memory", property(lambda self: limit))
    settings = planned(capsys, *CONFIG, *asks, code=5)["suggestion"]["settings"]
    assert settings == ["judge.batch_size=256"]

    monkeypatch.setattr(Target, "memory", property(lambda self: 1000))
    assert planned(capsys, *CONFIG, code=5)["suggestion"] is None
    assert plan.main(CONFIG) == 5
    assert "nothing was found that fits" in capsys.readouterr().out


def test_a_reward_model_and_its_experts(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*REWARD, "--model", str(MODEL), "--pairs", "100"]
    found = planned(capsys, *words)
    names = [one["name"] for one in found["phases"]]
    assert names == ["train", "held-out rewards", "merge experts"]
    # 90 pairs train, 8 at a time.
    assert found["phases"][0]["calls"] == 12


JUDGE = f"judge:{MODEL}"
FOUR = "--set", "evaluation.samples_per_prompt=4"


def test_a_judge_that_labels(capsys: pytest.CaptureFixture[str]) -> None:
    plain = planned(capsys, *CONFIG, *FOUR)
    found = planned(capsys, *CONFIG, *FOUR, "--set", f"scorer.name={JUDGE}")
    laid, asked = found["phases"][-2:]
    assert [laid["name"], asked["name"]] == [f"lay out {JUDGE}", JUDGE]
    # Of 64 prompts, 16 at once, each answer with the three others, 16 questions at
    # once. Policies are not compared by it.
    assert laid["calls"] == 4 and asked["calls"] == 64 * 4 * 3 / 16
    # A prompt of 16 tokens, two answers of 16, and a question of 60.
    assert asked["tokens"] == 16 * (128 + 8)
    # Its weights lie there throughout, and once more while it draws.
    train = {one["name"]: one["total"] for one in plain["phases"]}["train"]
    more = {one["name"]: one["total"] for one in found["phases"]}["train"] - train
    assert 0 < more < asked["arguments"]


def test_a_judge_that_compares(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--set", f"evaluation.judges={json.dumps({'a': JUDGE, 'b': JUDGE})}"]
    words += ["--set", "judge.batch_size=7", "--set", "ship=mean"]
    laid, asked = planned(capsys, *CONFIG, *words)["phases"][-2:]
    # 16 answers meet those of theta_0 and of the policy before, and the mean's those
    # of theta_0 and of theta_t, in both orders; in the first of four iterations theta_0
    # is the policy before. 16 questions are three batches of 7.
    assert laid["calls"] == 2 * (1.75 + 2)
    assert asked["calls"] == 3 * laid["calls"]


@pytest.mark.parametrize(
    "given, calls",
    [
        # 64 prompts with four answers each.
        ((), 64 * 4 * 3 / 16),
        # 10 lines of an iteration, their two answers in both orders.
        (("data.prompts=null", "data.pairs=org/pairs", "scorer.name=null"), 2),
    ],
)
def test_a_judge_that_gives_margins(
    given: tuple[str, ...], calls: float, capsys: pytest.CaptureFixture[str]
) -> None:
    given += ("loss.name=madpo", f"madpo.margins={JUDGE}")
    words = [x for one in given for x in ("--set", one)]
    words += ["--pairs", "40"] if len(given) > 2 else []
    asked = planned(capsys, *CONFIG, *words)["phases"][-1]
    assert (asked["name"], asked["calls"]) == (JUDGE, calls)
    assert asked["total"] > asked["arguments"] > 0


def test_a_judge_without_room(capsys: pytest.CaptureFixture[str]) -> None:
    words = *CONFIG, "--set", f"scorer.name={JUDGE}", "--set"
    assert "leave no room for a question" in error(
        capsys, *words, "judge.max_new_tokens=300"
    )
    found = planned(capsys, *words, "judge.max_new_tokens=200")
    assert "a run in which one is so long is refused" in found["notes"][-1]
    assert found["phases"][-1]["tokens"] == 16 * 256


def test_meshes_alone(capsys: pytest.CaptureFixture[str]) -> None:
    words = "--mesh", "--topology", "h100:8", "--model", "gemma-2b"
    found = planned(capsys, *CONFIG[:2], *words)
    best = found["meshes"][0]
    assert best["faults"] == [] and best["shape"]["tensor"] == 1
    assert len(found["meshes"]) == 10
    assert plan.main([*CONFIG[:2], *words]) == 0
    text = capsys.readouterr().out
    assert "mesh.tensor=2 does not divide 1 key/value head" in text


@pytest.mark.parametrize(
    "words, wanted",
    [
        (["--topology", "v5"], "--topology v5: wanted local"),
        (["--topology", "h100:2x2"], "of GPUs their number alone"),
        (["--topology", "v5e:4y4"], "wanted local"),
        (["--topology", "h100:9"], "JAX was asked for its 8 before"),
        (["--model", "gemma-2c"], "--model = gemma-2c: no such file or directory (did"),
        (["--model", "google/gemma-9"], "the hub is not asked"),
        (["--model", "demo:build"], "is made when the run starts"),
        (["--pairs", "0"], "--pairs is 0; use at least 1"),
        (["--pairs", "9"], "this config samples its own"),
        (["--model", str(REWARD_MODEL)], "the model is a reward model"),
        (["--set", "scorer.name=reward:gemma-2b"], "which has no reward head"),
        (["--set", f"scorer.name=judge:{REWARD_MODEL}"], "a reward model cannot judge"),
    ],
)
def test_bad_input(
    words: list[str], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert wanted in error(capsys, *CONFIG, *words)


def test_a_tpu_slice(tmp_path: pathlib.Path) -> None:
    """In a process of its own, as on a machine without a TPU."""
    pytest.importorskip("libtpu")
    command = [sys.executable, "-m", "tpmm_jax", "plan", *CONFIG, "--json"]
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    run = subprocess.run(
        [*command, "--topology", "v5e:2x2"],
        capture_output=True,
        text=True,
        env=environment | {"JAX_PLATFORMS": ""},
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert [one["name"] for one in found["phases"]] == PHASES
    assert found["device_kind"] == "TPU v5 lite" and found["devices"] == 4
    by_name = {one["name"]: one for one in found["phases"]}
    # Weights are gathered before they are used, and not sent round while they are.
    kinds = set(by_name["reference log-probs"]["collectives"])
    assert "all-gather" in kinds and "collective-permute" not in kinds
    # While answers are drawn no weight moves.
    assert "all-gather" not in by_name["sample"]["collectives"]
    assert found["seconds"] > 0
    assert "libtpu_init_utils" not in run.stderr
