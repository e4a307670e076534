"""Which prompts an iteration takes: its own, and held-out ones that never train."""

import io
import json
import pathlib

import pytest
import tiny_run

from tpmm_jax.data.codec import TextCodec, make_codec
from tpmm_jax.data.config import DataConfig
from tpmm_jax.errors import BadInput
from tpmm_jax.log.console import RunConsole
from tpmm_jax.loop.prompt_functions import kept_file, made_lines, prompt_file
from tpmm_jax.loop.prompts import MAIN, PromptSchedule, make_schedule


def codec_of(data: DataConfig) -> TextCodec:
    return make_codec(None, tiny_run.tokenizer(), data)


def schedule(
    folder: pathlib.Path, texts: list[str], eval_prompts: str | None = None
) -> PromptSchedule:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": t}) + "\n" for t in texts))
    data = DataConfig(prompts=str(path), eval_prompts=eval_prompts)
    config = tiny_run.get_config(data=data)
    console = RunConsole(io.StringIO(), io.StringIO())
    return make_schedule(config, codec_of(data), folder, console)


def test_held_out_prompts_never_train(tmp_path: pathlib.Path) -> None:
    # 40 different prompts, each twice; 12 an iteration: the pool is used up in 7.
    texts = [f"w{i % 20} w{i // 20 + 5}" for i in range(40)] * 2
    found = schedule(tmp_path, texts)
    assert len(found.train) + len(found.held_out) == 74
    assert len(found.held_out) == 23
    train, held, numbers = set(), set(), []
    for t in range(1, 20):
        prompts = found.iteration(t)
        assert sum(prompts.held_out) == round(0.3 * 12)
        for text, is_held in zip(prompts.texts, prompts.held_out):
            (held if is_held else train).add(text)
        numbers += prompts.numbers
    assert not train & held and len(train | held) == 40
    # Equal prompts, and those of later epochs, draw other samples.
    assert len(numbers) == len(set(numbers))


def test_the_first_iterations_do_not_depend_on_how_many_follow(
    tmp_path: pathlib.Path,
) -> None:
    texts = [f"w{i % 20} w{i // 20 + 5}" for i in range(60)]
    found = schedule(tmp_path, texts)
    first = found.iteration(1)
    found.iteration(5)
    assert found.iteration(1) == first and found.longest(3) == found.longest(1)


def test_prompts_that_cannot_be_encoded_are_refused_or_dropped_with_a_count(
    tmp_path: pathlib.Path,
) -> None:
    path, said = tmp_path / "prompts.jsonl", io.StringIO()
    rows = [{"prompt": [3 + i, 4, 5 + i % 3]} for i in range(26)]
    rows[4] = rows[17] = {"prompt": [1, 99999]}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(**fields: object) -> PromptSchedule:
        data = DataConfig(prompts=str(path), eval_prompts=str(path), **fields)  # type: ignore[arg-type]
        config = tiny_run.get_config(data=data)
        console = RunConsole(said, io.StringIO(), width=200)
        return make_schedule(config, codec_of(data), tmp_path, console)

    with pytest.raises(BadInput, match=r"2 problems in 2 rows(.|\n)*on_bad_rows=drop"):
        make()
    found = make(on_bad_rows="drop")
    assert len(found.train) + len(found.held_out) == 24
    assert "2 bad rows left out" in said.getvalue() and ":5:" in said.getvalue()
    longest = max(map(len, found.iteration(1).ids))
    assert found.longest(1) == longest == 3 and len(found.sets[MAIN].ids) == 6
    # What was left out was no part of the pool: a run without those rows is the same.
    path.write_text(
        "".join(json.dumps(r) + "\n" for r in rows if 99999 not in r["prompt"])
    )
    assert make().digest == found.digest


def test_too_few_to_hold_out(tmp_path: pathlib.Path) -> None:
    with pytest.raises(BadInput, match="holds 7 prompts"):
        schedule(tmp_path, [f"w{i}" for i in range(7)])


LIST: list[object] = []


def listed() -> object:
    if "raise" in LIST:
        raise ConnectionError("no route to host")
    return iter(LIST)


def test_a_function_must_return_the_list_that_a_run_began_with(
    tmp_path: pathlib.Path,
) -> None:
    source, cache, said = f"{__name__}:listed", tmp_path / "prompts.jsonl", []

    def start(prompts: list[object], *, began: bool) -> list[str]:
        LIST[:] = prompts
        where = (source, "data.prompts", DataConfig(prompts=source), cache)
        file, _ = kept_file(*where, said.append) if began else prompt_file(*where)
        return [json.loads(line)["prompt"] for line in open(file)]

    # Before theta_0 is stored nothing binds.
    assert start(["w1", "w2"], began=False) == ["w1", "w2"]
    assert start(["w1", [3, 4], "w5"], began=False) == ["w1", [3, 4], "w5"]
    assert start(["w1", [3, 4], "w5"], began=True) == ["w1", [3, 4], "w5"]
    for changed, wanted in (
        (["w1", "w5", [3, 4]], r"prompt 1 is 'w5', and was '\[3, 4\]'"),
        (["w1", [3, 4], "w5", "w6"], "4 prompts, which were 3"),
        ([], "returned no prompts"),
        (["w1", [3, 4], 7.5], "prompt 2"),
    ):
        with pytest.raises(BadInput, match=wanted):
            start(changed, began=True)
    assert not said
    assert start(["raise"], began=True) == ["w1", [3, 4], "w5"]
    assert "raised ConnectionError: no route to host" in said[0]
    with pytest.raises(BadInput, match=r"data\.prompts = .*raised ConnectionError"):
        start(["raise"], began=False)
    whole = cache.read_bytes()
    for damaged in (whole.replace(b'w1"', b"w1'"), whole.replace(b"w1", b"w\xff")):
        cache.write_bytes(damaged)
        with pytest.raises(BadInput, match=r"prompt 0 is|line 1 of that file is damag"):
            start(["w1", [3, 4], "w5"], began=True)


def test_a_generator_may_yield_one_object_that_changes(
    tmp_path: pathlib.Path,
) -> None:
    turn = {"role": "user", "content": ""}

    def prompts() -> object:
        for text in ("w1", "w2"):
            turn["content"] = text
            yield [turn]

    rows = [
        json.loads(line) for line in made_lines("x:y", "x", prompts, None).splitlines()
    ]
    assert [row["prompt"][0]["content"] for row in rows] == ["w1", "w2"]
