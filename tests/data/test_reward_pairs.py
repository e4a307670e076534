"""A reward model's pairs: from preference sets, ratings and scored answers."""

import json

import numpy as np
import pytest
import tokenizers_for_tests as small

from tpmm_jax.data.answer_tokens import encode_answers
from tpmm_jax.data.batches import collate
from tpmm_jax.data.ratings import Scored
from tpmm_jax.data.reward_config import RewardDataConfig
from tpmm_jax.data.reward_pairs import (
    choose_held_out,
    load_reward_pairs,
    prepare_reward_pairs,
)
from tpmm_jax.errors import BadInput

GPT, LLAMA = small.byte_level(), small.metaspace()
TEXT = "sky blue green grass dog little time once upon hello world answer"
WORDS = TEXT.split()


def codec(tokenizer, data):
    # The unlimited codec of a run, which cuts nothing.
    reading = data.reading()
    return small.codec(
        tokenizer,
        chat=reading.chat,
        max_prompt_length=reading.max_prompt_length,
        max_completion_length=reading.max_completion_length,
    )


def prepare(data, tokenizer=LLAMA, **options):
    data.validate()
    made = None if tokenizer is None else codec(tokenizer, data)
    found = prepare_reward_pairs(data, made, **options)
    found.problems.settle()
    return found


@pytest.fixture
def save(tmp_path):
    def write(*rows, name="rows.jsonl"):
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(line + "\n" for line in lines))
        return str(path)

    return write


@pytest.mark.parametrize("tokenizer", [GPT, LLAMA], ids=["no BOS", "BOS"])
def test_texts_that_share_no_beginning_are_whole_texts(tokenizer, save):
    row = {"chosen": "the sky is blue", "rejected": "hello world"}
    found = prepare(RewardDataConfig(pairs=save(row)), tokenizer)
    (one,) = found.train
    bos = [] if tokenizer is GPT else [tokenizer.bos_token_id]
    assert one.prompt_ids == bos
    for ids, text in (
        (one.chosen_ids, row["chosen"]),
        (one.rejected_ids, row["rejected"]),
    ):
        assert bos + ids == [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    batch = collate([one], length=32, pad_id=0, whole=True)
    lengths = [len(bos) + len(x) for x in (one.chosen_ids, one.rejected_ids)]
    assert batch["mask_BNT"].sum(-1).tolist() == [lengths]
    if tokenizer is GPT:
        with pytest.raises(BadInput, match="the prompt and both completions need"):
            collate([one], length=32, pad_id=0)


def test_over_long_pairs_are_dropped_with_a_count_and_never_cut(save):
    long = "sky " * 40
    rows = [
        {"prompt": "the", "chosen": " sky", "rejected": " dog"},
        {"prompt": "the", "chosen": " sky", "rejected": " " + long},
        {"prompt": long, "chosen": "sky", "rejected": "dog"},
    ]
    found = prepare(RewardDataConfig(pairs=save(*rows), max_length=20))
    assert [row.origin[-2:] for row in found.train] == [":1"]
    assert found.counts["over_long"] == 2 and found.counts["rows"] == 1
    assert found.counts["prompt_truncated"] == found.counts["chosen_truncated"] == 0
    whole = prepare(RewardDataConfig(pairs=save(*rows)))
    assert len(whole.train) == 3 and whole.counts["over_long"] == 0


def test_scored_answers_give_all_ordered_pairs_of_one_group(save):
    row = {"prompt": "the", "responses": [" sky", " dog", " grass", " time"]}
    found = prepare(RewardDataConfig(pairs=save(row | {"scores": [3, 1, 2, 0]})))
    assert [r.margin for r in found.train] == [1, 2, 3, 1, 2, 1]
    assert len({r.group for r in found.train}) == 1


def test_no_group_is_on_both_sides_and_the_split_does_not_follow_the_order(save):
    rows = [
        {"prompt": p, "chosen": f" {w}", "rejected": " x"}
        for w in WORDS
        for p in (f"about {w}", f" About  {w}")
    ]
    one = prepare(RewardDataConfig(pairs=save(*rows)), holdout_fraction=0.25, seed=3)
    assert len(one.held_out) == 6 and len(one.train) == 18
    groups = {r.group for r in one.held_out}
    assert groups.isdisjoint(r.group for r in one.train)
    # Case and white space make no other prompt.
    assert len(groups) == 3
    data = RewardDataConfig(pairs=save(*reversed(rows)))
    other = prepare(data, holdout_fraction=0.25, seed=3)
    assert {r.group for r in other.held_out} == groups
    some = choose_held_out(map(str, range(100)), 0.3, 1)
    assert len(some) == 30 and some != choose_held_out(map(str, range(100)), 0.3, 2)


LINES = [f"{n}\t{n / 4 - 1}\tthe {w} is green" for n, w in enumerate(WORDS)]
TAB = {"columns": ("id", "rating", "text")}


def test_golden_ratings_of_tab_separated_lines(save):
    source = save(*LINES, name="snippets.txt")
    data = RewardDataConfig(ratings=source, **TAB, pairs_per_text=1)
    found = prepare(data)
    assert len(found.train) == 6 and found.unread == ["id"]
    for row in found.train:
        texts = [LLAMA.decode(x[:-1]) for x in (row.chosen_ids, row.rejected_ids)]
        one, other = (WORDS.index(text.split()[1]) for text in texts)
        assert row.margin == pytest.approx((one - other) / 4) and row.margin > 0
        assert row.prompt_ids == [LLAMA.bos_token_id]
        assert row.origin == f"{source}:{one + 1} over {source}:{other + 1}"
    used = [row.origin.split(" over ") for row in found.train]
    assert len({place for both in used for place in both}) == 12


@pytest.mark.parametrize("per_text", [1, 2, 3, 5])
def test_a_text_is_in_so_many_pairs_and_in_one_group(per_text, save):
    data = RewardDataConfig(
        ratings=save(*LINES, name="s.txt"), **TAB, pairs_per_text=per_text
    )
    found = prepare(data, holdout_fraction=0.5)
    places = {}
    for side in (found.train, found.held_out):
        for row in side:
            for place in row.origin.split(" over "):
                places.setdefault(place, []).append((row.group, side is found.train))
    assert max(map(len, places.values())) == per_text
    # Groups share no text, and neither do the two sides.
    assert all(len(set(where)) == 1 for where in places.values())
    again = prepare(data, holdout_fraction=0.5)
    assert again.train == found.train
    assert prepare(data, holdout_fraction=0.5, seed=1).train != found.train


def test_ties_small_differences_repeats_and_loners_are_counted(save):
    def rated(prompt, text, rating):
        return {"prompt": prompt, "response": text, "score": rating}

    rows = [
        *(rated("a", f" {w}", n) for n, w in zip((1, 1, 1.2, 4), WORDS)),
        rated("a", f" {WORDS[0]}", 1),
        rated("b", " sky", 1),
    ]
    data = RewardDataConfig(ratings=save(*rows), min_margin=0.5)
    found = prepare(data)
    wanted = {"answers": 6, "equal_scores": 1, "below_min_margin": 2, "rows": 3}
    wanted |= {"repeated_answers": 1, "without_partner": 1, "pairs": 3}
    assert {name: found.counts[name] for name in wanted} == wanted
    assert [row.margin for row in found.train] == [pytest.approx(2.8), 3, 3]
    best = RewardDataConfig(ratings=save(*rows), scored_pairs="best_worst")
    assert [row.margin for row in prepare(best).train] == [3]
    # The same pairs of texts without a tokenizer.
    assert [pair.margin for pair in prepare(data, None).pairs] == [
        pytest.approx(2.8), 3, 3]  # fmt: skip


def test_conversations_are_rated_under_a_chat_template(save):
    def told(text):
        return [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": text},
        ]

    tokenizer = small.byte_level(small.CHATML)
    rows = [
        {"text": told("the sky"), "rating": "2"}, {"text": told("a dog"), "rating": 1}
    ]  # fmt: skip
    found = prepare(RewardDataConfig(ratings=save(*rows), chat=True), tokenizer)
    (row,) = found.train
    text = tokenizer.decode(row.prompt_ids + row.chosen_ids)
    # Only the last turn's end counts: nothing of the template stands behind it.
    assert text == tokenizer.apply_chat_template(told("the sky"), tokenize=False)[:-1]
    bare = {"text": "the sky", "rating": 1}
    with pytest.raises(BadInput, match="texts without a prompt, which a chat template"):
        prepare(RewardDataConfig(ratings=save(bare, bare), chat=True), tokenizer)


@pytest.mark.parametrize(
    "row, said",
    [
        ({"text": "a", "rating": "n/a"}, "field 'rating' is 'n/a'; wanted a finite"),
        ({"text": "a", "rating": None}, "field 'rating' is None"),
        ({"text": "a"}, "field 'rating' is missing"),
        ({"text": " ", "rating": 1}, "field 'text' is empty"),
        ({"text": 3, "rating": 1}, "field 'text' is a number"),
        ({"text": "a", "rating": 1, "prompt": "q"}, "mixed formats: this row has a p"),
        ({"text": "a", "rating": 1, "images": ["x"]}, "field 'images': is nothing"),
    ],
)
def test_a_bad_rating_is_named_with_its_line(row, said, save):
    good = {"text": "the sky", "rating": 1}
    source = save(good, row, good)
    with pytest.raises(BadInput, match="nothing was used") as caught:
        prepare(RewardDataConfig(ratings=source))
    assert f"{source}:2: {said}" in str(caught.value)


def test_lines_of_text_need_names_for_their_cells(save):
    source = save(*LINES, "13\t2", name="s.txt")
    with pytest.raises(BadInput, match="name the cells that tabs separate"):
        prepare(RewardDataConfig(ratings=source))
    with pytest.raises(BadInput, match=r"s.txt:13: 2 cells .* wanted 3 \(id, rating"):
        prepare(RewardDataConfig(ratings=source, **TAB))
    with pytest.raises(BadInput, match="is none; its columns have names"):
        prepare(RewardDataConfig(ratings=save({"text": "a"}), **TAB))


def test_scored_answers_of_a_run_keep_its_held_out_prompts_apart():
    answers = [
        Scored(f"about {w}", f" {a}", n, f"{unit}:{w} {n}", unit, w == "dog")
        for unit in ("001", "002")
        for w in WORDS[:5]
        for n, a in enumerate(WORDS[:3])
    ]
    data = RewardDataConfig(rollouts="run")
    found = prepare(data, answers=answers, holdout_fraction=0.5)
    assert len(found.held_out) == 6 and len(found.train) == 24
    assert len({row.group for row in found.held_out}) == 1
    # Answers of two iterations are not compared.
    assert all(
        row.origin[:3] == row.origin.split("over ")[1][:3] for row in found.train
    )


@pytest.mark.parametrize("chat", [False, True])
def test_an_answer_that_was_cut_is_read_as_a_scorer_reads_it(chat):
    tokenizer = small.byte_level(small.CHATML) if chat else LLAMA
    texts = [" the sky", " a dog"]
    ended = [False, True]
    answers = [
        Scored("hello", text, -n, str(n), ended=end)
        for n, (text, end) in enumerate(zip(texts, ended))
    ]
    data = RewardDataConfig(rollouts="run", chat=chat)
    found = prepare(data, tokenizer, answers=answers)
    (row,) = found.train
    rows = encode_answers(codec(tokenizer, data), ["hello"], [texts], [ended])
    assert [row.prompt_ids + x for x in (row.chosen_ids, row.rejected_ids)] == rows[0]
    assert found.counts["cut_answers"] == 1


def test_what_is_read_and_dropped_is_said(save):
    notes = []
    data = RewardDataConfig(ratings=save(*LINES, name="s.txt"), **TAB, min_margin=0.3)
    train, held = load_reward_pairs(
        data, codec(LLAMA, data), seed=0, holdout_fraction=0.25, margins=True,
        note=notes.append, warn=notes.append,
    )  # fmt: skip
    said = "\n".join(notes)
    assert "12 scored answers" in said and "a margin below data.min_margin" in said
    assert "not read: id" in said and train
    assert np.isfinite([row.margin for row in train + held]).all()


@pytest.mark.parametrize(
    "fields, said",
    [
        ({}, "exactly one of data.pairs"),
        ({"pairs": "a", "ratings": "b"}, "exactly one of data.pairs"),
        ({"pairs": "a", "pairs_per_text": 2}, "concerns data.ratings, not data.pairs"),
        ({"ratings": "a", "fields": {"chosen": "x"}}, "'chosen' is not a part"),
        ({"rollouts": "a", "fields": {"text": "x"}}, "its files have fixed columns"),
        (
            {"ratings": "a", "fields": {"text": "x", "rating": "x"}},
            "used for two parts",
        ),
        ({"ratings": "a", "columns": ("x", "x")}, "each column its own name"),
        ({"ratings": "a", "pairs_per_text": 0}, "use at least 1"),
        ({"ratings": "a", "min_margin": -1.0}, "use 0 or more"),
        ({"pairs": "a", "max_length": 1}, "use 2 tokens or more"),
    ],
)
def test_settings_that_mean_nothing_are_refused(fields, said):
    with pytest.raises(BadInput, match=said):
        RewardDataConfig(**fields).validate()
