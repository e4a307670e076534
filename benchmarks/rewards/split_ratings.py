"""Splits rated texts into train, test and a loop's prompts; no text is in two of them.

    python benchmarks/rewards/split_ratings.py --ratings movie_snippets.txt --out DIR \\
        --prompts 512 --test 4000

Reads lines of cells that tabs separate, or any file of texts with a rating, and writes
train.jsonl and test.jsonl ({"text", "rating"}, for data.ratings) and prompts.jsonl (the
first words of other texts, for data.prompts). The seed and the texts alone decide, not
their order in the file; texts that differ in case or white space only stay together.
"""

import argparse
import hashlib
import json
import pathlib
import sys
from collections.abc import Sequence

from tpmm_jax.data.answer_pairs import prompt_key
from tpmm_jax.data.problems import Problems
from tpmm_jax.data.ratings import Scored, read_ratings
from tpmm_jax.data.reward_config import RewardDataConfig
from tpmm_jax.errors import BadInput


def split_texts(
    answers: Sequence[Scored], prompts: int, test: int, seed: int
) -> dict[str, list[Scored]]:
    """Returns the texts of each part, those of one content together.

    Raises:
      BadInput: too few texts.
    """
    by_text: dict[object, list[Scored]] = {}
    for answer in answers:
        by_text.setdefault(prompt_key(answer), []).append(answer)

    def place(key: object) -> bytes:
        return hashlib.sha256(f"{seed} {key!r}".encode()).digest()

    order = sorted(by_text, key=place)
    if len(order) < prompts + test + 2:
        raise BadInput(
            f"{len(order):,} different texts; wanted {prompts:,} for prompts, {test:,} "
            "for the test and 2 or more to train on"
        )
    parts = {
        "prompts": order[:prompts],
        "test": order[prompts : prompts + test],
        "train": order[prompts + test :],
    }
    return {name: [a for k in keys for a in by_text[k]] for name, keys in parts.items()}


def first_words(text: str, words: int) -> str:
    """Returns the beginning of a text, as a prompt."""
    return " ".join(text.split()[:words])


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code of one command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--ratings", required=True, metavar="FILE")
    add("--columns", default="id,rating,text", help="of a .txt file (%(default)s)")
    add("--out", required=True, type=pathlib.Path, metavar="DIR")
    add("--prompts", type=int, required=True, metavar="N", help="texts for prompts")
    add("--test", type=int, default=4000, metavar="N", help="texts to test on")
    add("--words", type=int, default=6, help="of a prompt (%(default)s)")
    add("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    columns = args.columns.split(",") if ".txt" in args.ratings.lower() else ()
    data = RewardDataConfig(ratings=args.ratings, columns=columns)
    try:
        data.validate()
        problems = Problems(args.ratings)
        found = read_ratings(data, problems)
        problems.settle()
        parts = split_texts(found.answers, args.prompts, args.test, args.seed)
    except BadInput as error:
        print(error, file=sys.stderr)
        return error.exit_code
    args.out.mkdir(parents=True, exist_ok=True)
    for name, answers in parts.items():
        if name == "prompts":
            texts = [first_words(str(a.answer), args.words) for a in answers]
            rows: list[dict] = [{"prompt": text} for text in dict.fromkeys(texts)]
        else:
            rows = [{"text": a.answer, "rating": a.score} for a in answers]
        path = args.out / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"{path}: {len(rows):,} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
