"""Rows and messages in the shapes of other tools: each golden row and its pair."""

import json

import datasets
import pytest
import tokenizers_for_tests as small
from reading import load_pairs, load_prompts

from tpmm_jax.data.config import DataConfig
from tpmm_jax.data.messages import Message
from tpmm_jax.data.prepare import load_rows, prepare_pairs, prepare_prompts
from tpmm_jax.data.problems import Problems
from tpmm_jax.errors import BadInput

CHATML = small.byte_level(small.CHATML)
SYSTEM, USER = Message("system", "Be kind."), Message("user", "Why?")
YES, NO = Message("assistant", "yes"), Message("assistant", "no")
WHOLE = ((SYSTEM, USER), (YES,), (NO,))
SHORT = ((USER,), (YES,), (NO,))


def said(role, text):
    return {"role": role, "content": text}


def share(speaker, text):
    return {"from": speaker, "value": text}


def parts(*texts):
    return [{"type": "text", "text": text} for text in texts]


ASKED = [said("system", "Be kind."), said("user", "Why?")]
SIDES = {"chosen": [said("assistant", "yes")], "rejected": [said("assistant", "no")]}
OPENAI = {
    "input": {"messages": ASKED, "tools": [], "parallel_tool_calls": True},
    "preferred_output": [said("assistant", "yes")],
    "non_preferred_output": [said("assistant", "no")],
}
SHAREGPT = {
    "conversations": [share("system", "Be kind."), share("human", "Why?")],
    "chosen": share("gpt", "yes"),
    "rejected": share("gpt", "no"),
}
SCORED = {"prompt": "q", "responses": ["a", "b", "c"], "scores": [2, 3.5, 1]}
ULTRAFEEDBACK = {
    "instruction": "q",
    "completions": [
        {"response": "a", "overall_score": 7.5, "model": "m"},
        {"response": "b", "overall_score": 8, "model": "n"},
    ],
}
NECTAR = {
    "prompt": "q",
    "answers": [{"answer": "a", "rank": 2.0}, {"answer": "b", "rank": 1.0}],
}

# Row, and its (prompt, chosen, rejected).
GOLDEN = {
    "ShareGPT": (SHAREGPT, WHOLE),
    "ShareGPT with a system column": (
        SHAREGPT | {"conversations": [share("human", "Why?")], "system": "Be kind."},
        WHOLE,
    ),
    "ShareGPT in full": (
        {
            "chosen": [share("human", "Why?"), share("gpt", "yes")],
            "rejected": [share("user", "Why?"), share("assistant", "no")],
        },
        SHORT,
    ),
    "ShareGPT as a prompt column": (
        {"prompt": [share("human", "Why?")], **SIDES}, SHORT),
    "OpenAI": (OPENAI, WHOLE),
    "OpenAI with a text as input": (OPENAI | {"input": "Why?"}, SHORT),
    "OpenAI with messages as input": (OPENAI | {"input": ASKED}, WHOLE),
    "input beside chosen": ({"input": {"messages": ASKED}, **SIDES}, WHOLE),
    "messages beside message lists": ({"messages": ASKED, **SIDES}, WHOLE),
    "messages beside texts": (
        {"messages": ASKED, "chosen": "yes", "rejected": "no"}, WHOLE),
    "messages that the sides repeat": (
        {"messages": ASKED, **{k: ASKED + v for k, v in SIDES.items()}}, WHOLE),
    "single messages": (
        {"prompt": said("user", "Why?"), **{k: v[0] for k, v in SIDES.items()}}, SHORT),
    "developer and model": (
        {
            "prompt": [said("developer", "Be kind."), said("user", "Why?")],
            "chosen": said("model", "yes"),
            "rejected": said("model", "no"),
        },
        WHOLE,
    ),
    "text parts": (
        {
            "prompt": [said("user", parts("Wh", "y?"))],
            "chosen": [said("assistant", parts("yes"))],
            "rejected": [said("assistant", [{"type": "output_text", "text": "no"}])],
        },
        SHORT,
    ),
    "scores beside answers": (SCORED, ("q", "b", "c")),
    "scored objects": (ULTRAFEEDBACK, ("q", "b", "a")),
    "ranks": (NECTAR, ("q", "b", "a")),
    "our own rollouts": (
        {"prompt": "q", "responses": ["a", "b"], "rewards": [0, 1.5]}, ("q", "b", "a")),
    "scored messages": (
        {"prompt": [said("user", "Why?")], "scores": [1, 0],
         "completions": [SIDES["chosen"], SIDES["rejected"]]}, SHORT),
    "prefill": (
        {"prompt": [*ASKED, said("assistant", "It")], **SIDES},
        ((SYSTEM, USER, Message("assistant", "It")), (YES,), (NO,)),
    ),
    "prefill and texts": (
        {"prompt": [*ASKED, said("model", "It")], "chosen": "yes", "rejected": "no"},
        ((SYSTEM, USER, Message("assistant", "It")), (YES,), (NO,)),
    ),
}  # fmt: skip


@pytest.fixture
def save(tmp_path):
    def write(*rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.mark.parametrize("shape", GOLDEN)
@pytest.mark.parametrize("table", [False, True], ids=["jsonl", "table"])
def test_golden_rows_of_pairs(shape, table, save, tmp_path):
    row, wanted = GOLDEN[shape]
    source = save(row, row)
    if table:
        source = str(tmp_path / "rows.parquet")
        datasets.Dataset.from_list([row, row]).to_parquet(source)
    codec = small.codec(CHATML, chat=True)
    found = prepare_pairs(source, DataConfig(chat=True), codec)
    found.problems.settle()
    pair = found.pairs[1]
    assert (pair.prompt, pair.chosen, pair.rejected) == wanted
    assert pair.origin == source + (" row 1" if table else ":2")
    assert len(found.rows) == found.counts["rows_read"] == 2
    # What the sides say themselves is their prompt.
    assert found.unread == (["messages"] if "repeat" in shape else [])


def test_prompts_of_the_same_shapes(save):
    for row, wanted in (
        ({"conversations": SHAREGPT["conversations"]}, (SYSTEM, USER)),
        ({"input": OPENAI["input"]}, (SYSTEM, USER)),
        (OPENAI, (SYSTEM, USER)),
        (SHAREGPT, (SYSTEM, USER)),
        ({"prompt": said("user", "Why?")}, (USER,)),
        ({"prompt": share("human", "Why?")}, (USER,)),
        ({"messages": [said("developer", parts("Be kind.")), ASKED[1]]}, WHOLE[0]),
        ({"messages": None, "conversations": SHAREGPT["conversations"]}, WHOLE[0]),
    ):
        assert load_prompts(save(row))[0].content == wanted, row
    begun = [*ASKED, said("assistant", "It")]
    found = prepare_prompts(
        save({"prompt": begun}, {"prompt": begun}),
        DataConfig(chat=True),
        small.codec(CHATML, chat=True),
    )
    assert found.counts["continued"] == 2
    text = small.codec(CHATML).tokenizer.decode(found.encoded[0].ids)
    assert text.endswith("<|im_start|>assistant\nIt")
    # An answered conversation is no prompt, unless somebody says that it is one.
    with pytest.raises(BadInput, match=r"answered conversation.*prompt_field=messages"):
        load_prompts(save({"messages": begun}))
    assert load_prompts(save({"messages": begun}), field="messages")


@pytest.mark.parametrize("make", [small.byte_level, small.metaspace])
def test_completions_go_on_with_a_begun_answer(make, save, tmp_path):
    tokenizer = make(small.CHATML if make is small.byte_level else small.TURNS)
    texts = {"prompt": "the sky", "chosen": " is blue", "rejected": " is green"}
    row = {
        "prompt": [said("user", "hello"), said("assistant", texts["prompt"])],
        "chosen": [said("assistant", texts["chosen"])],
        "rejected": [said("assistant", texts["rejected"])],
    }
    whole = [row["prompt"][0], said("assistant", "the sky is blue")]
    codec = small.codec(tokenizer, chat=True)
    found = prepare_pairs(save(row), DataConfig(chat=True), codec)
    found.problems.settle()
    assert found.counts["continued"] == 1 and found.counts["several_turns"] == 0
    ids = tokenizer.apply_chat_template(whole, return_dict=False)
    kept = found.rows[0].prompt_ids + found.rows[0].chosen_ids
    assert (
        kept[: len(found.rows[0].prompt_ids)]
        == ids[: len(kept)][: len(found.rows[0].prompt_ids)]
    )
    text = tokenizer.decode(kept, skip_special_tokens=True)
    assert text.count("the sky is blue") == 1
    plain = small.codec(tokenizer)
    with pytest.raises(BadInput, match="needs a chat template"):
        found = prepare_pairs(str(tmp_path / "rows.jsonl"), DataConfig(), plain)
        found.problems.settle()


def test_several_scored_answers_give_one_pair_or_all(save):
    same = SCORED | {"scores": [1, 1, 1]}
    tied = SCORED | {"scores": [2, 1, 2]}
    found = load_pairs(save(SCORED, same, tied))
    assert [(p.chosen, p.rejected) for p in found.pairs] == [("b", "c"), ("a", "b")]
    counts = found.counts
    assert counts["rows_read"] == 3 and counts["scored_rows"] == 2
    assert counts["no_preference"] == 1 and found.unread == []
    found = load_pairs(save(SCORED, same, tied), scored_pairs="all")
    sides = [(p.chosen, p.rejected) for p in found.pairs]
    assert sides == [("b", "a"), ("b", "c"), ("a", "c"), ("a", "b"), ("c", "b")]
    assert [p.origin[-2:] for p in found.pairs] == [":1"] * 3 + [":3"] * 2
    # Columns that have names of their own are read, and no others.
    row = SCORED | {"chosen": "x", "rejected": "y"}
    found = load_pairs(save(row))
    assert found.pairs[0].chosen == "x" and found.unread == ["responses", "scores"]


def test_answers_that_hold_their_prefill_again_are_counted(save):
    begun = [said("user", "q"), said("assistant", "Sure,")]
    for sides, count in ((("Sure, a", "Sure, b"), 1), ((" a", "Sure, b"), 0)):
        row = {"prompt": begun, "chosen": sides[0], "rejected": sides[1]}
        assert load_pairs(save(row)).counts["begins_with_prompt"] == count


TOOL = {"tools": [{"type": "function"}]}
IMAGE = {"type": "image_url", "image_url": {"url": "x"}}


@pytest.mark.parametrize(
    "row, field, wanted",
    [
        (SCORED | {"scores": [1, 2]}, "scores", "'scores' has 2 items for the 3 answ"),
        (SCORED | {"scores": 3}, "scores", "'scores' has no list for the 3 answers"),
        (SCORED | {"scores": [1, None, 2]}, "scores", "'scores[1]' is None; wanted"),
        (SCORED | {"scores": [1, True, 2]}, "scores", "'scores[1]' is True"),
        (SCORED | {"scores": None}, "responses", "answers without scores; wanted one"),
        (
            {"answers": [{"text": "a", "score": 5}, {"text": "b", "rank": 1}]},
            "answers",
            "objects that all have one of score",
        ),
        (SCORED | {"responses": ["a"]}, "responses", "holds 1 answers; wanted 2"),
        (SCORED | {"responses": '["a"]'}, "responses", "is a text; wanted a list"),
        (SCORED | {"answers": ["a"]}, "answers", "both may hold the answers"),
        (SCORED | {"responses": ["a", "", 3]}, "responses", "'responses[2]' is a numb"),
        (SCORED | {"responses": ["a", "b", ""]}, "responses", "'responses[2]' is em"),
        (NECTAR | {"answers": [{"rank": 1}, {"rank": 2}]}, "answers", "keys rank"),
        (SHAREGPT | {"messages": ASKED}, "messages", "both may be the prompt"),
        (OPENAI | {"input": {"messages": ASKED, "n": 2}}, "input", "holds n beside"),
        (OPENAI | {"input": {"messages": ASKED, **TOOL}}, "tools", "list these tools"),
        (OPENAI | {"preferred_output": []}, "preferred_output", "an empty message"),
        (SHAREGPT | {"chosen": share("tool", "x")}, "chosen", "unknown role 'tool'"),
        (SHAREGPT | {"chosen": share("gpt", None)}, "chosen", "lacks content"),
        (SHAREGPT | {"chosen": said("assistant", [IMAGE])}, "chosen",
         "content[0] has the type 'image_url'; only text can be read"),
        (SHAREGPT | {"chosen": said("assistant", [])}, "chosen", "content is an empty"),
        (SHAREGPT | {"chosen": said("assistant", parts(" "))}, "chosen", "is empty"),
        (SIDES | {"prompt": [*ASKED, *SIDES["chosen"]], "chosen": ASKED}, "prompt",
         "the last role is 'assistant'; wanted 'user'"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named_with_its_column(row, field, wanted, save):
    problems = prepare_pairs(save(row), DataConfig(chat=True), None).problems
    assert any(wanted in d.reason and d.field == field for d in problems.found), (
        problems.found
    )


def test_a_conversation_with_its_answer_is_no_prompt_of_another(save):
    answered = [*SHAREGPT["conversations"], share("gpt", "perhaps")]
    with pytest.raises(BadInput, match="'conversations': is not in what chosen"):
        load_pairs(save(SHAREGPT | {"conversations": answered}))
    # A column that is ignored is none either.
    row = {"chosen": "the sky is blue", "rejected": "the sky is red", "messages": ASKED}
    found = load_pairs(save(row), ignore_columns=("messages",))
    assert found.pairs[0].prompt == "the sky is" and found.unread == ["messages"]
    # The whole of chosen beside both sides says nothing new.
    row = {"messages": ASKED + SIDES["chosen"], **SIDES}
    row |= {side: ASKED + row[side] for side in ("chosen", "rejected")}
    assert load_pairs(save(row)).pairs[0].prompt == WHOLE[0]


def test_keys_of_parts_and_sharegpt_messages_are_counted(save):
    odd = [
        SHAREGPT | {"chosen": share("gpt", "yes") | {"weight": 1}},
        SHAREGPT | {"chosen": said("assistant", [*parts("yes"), *parts("!")])},
        SHAREGPT
        | {
            "chosen": said("assistant", [parts("yes")[0] | {"cache_control": {"a": 1}}])
        },
        SHAREGPT | {"chosen": said("assistant", [parts("yes")[0] | {"image": None}])},
    ]
    assert load_pairs(save(*odd)).counts["keys_left_out"] == 2


TEXT = {"prompt": "q", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    "ratings, note",
    [
        ({"score_chosen": 2, "score_rejected": 1}, ""),
        ({"score_chosen": 1, "score_rejected": 2}, "score_rejected 2 is above"),
        ({"chosen_score": 1, "rejected_score": 2}, "rejected_score 2 is above"),
        ({"chosen_rating": 1.5, "rejected_rating": 4}, "4 is above chosen_rating 1.5"),
        ({"chosen-rating": 1, "rejected-rating": 4}, "rejected-rating 4 is above"),
        ({"chosen_avg_rating": 1, "rejected_avg_rating": 4}, "is above"),
        ({"chosen_reward": -1, "rejected_reward": 0}, "0 is above chosen_reward -1"),
        ({"score_chosen": "3", "score_rejected": "10"}, "score_rejected 10 is above"),
        ({"margin": -0.5}, "margin -0.5 is below 0"),
        ({"margin": 0.5, "chosen_score": 3, "rejected_score": 3}, "tied"),
        ({"margin": 0}, "tied"),
        ({"chosen_score": None, "rejected_score": 2, "margin": "n/a"}, ""),
        ({"score_chosen": True, "score_rejected": 2}, ""),
    ],
)
def test_ratings_are_held_against_the_label(ratings, note, save):
    source = save(TEXT, TEXT | ratings)
    problems = Problems(source)
    found = prepare_pairs(source, DataConfig(), None)
    counts = (found.counts["tied"], found.counts["scored_otherwise"])
    assert counts == ((1, 0) if note == "tied" else (0, int(bool(note))))
    named = [(d.origin, note in d.reason) for d in found.problems.remarks]
    assert named == ([(f"{source}:2", True)] if counts[1] else [])
    assert found.unread == [] and len(found.pairs) == 2 and not problems.found


def test_a_run_names_the_rows_that_are_rated_otherwise(save):
    source = save(TEXT, TEXT | {"margin": -1}, TEXT | {"margin": -1, "chosen": ""})
    warned = []
    data, codec = DataConfig(on_bad_rows="drop"), small.codec(CHATML)
    rows = load_rows(source, data, codec, note=str, warn=warned.append)
    assert len(rows) == 2
    assert warned[1] == (
        f"{source}: ratings prefer rejected in 1 pair, trained on as labelled\n"
        f"  {source}:2: margin -1 is below 0"
    )
