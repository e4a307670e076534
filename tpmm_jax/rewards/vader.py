"""An example scorer: VADER sentiment (Hutto and Gilbert 2014), of the demo extra."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from tpmm_jax.errors import BadInput


def sentiment(
    prompts: Sequence[str],
    responses: Sequence[Sequence[str]],
    *,
    with_prompt: bool = False,
) -> np.ndarray:
    """Returns VADER's compound score of each response, in [-1, 1].

    >>> sentiment(["The film was"], [[" wonderful.", " awful."]])
    array([[ 0.5719, -0.4588]])

    Args:
      with_prompt: score prompt and response as one text.
    """
    analyzer = _analyzer()
    return np.asarray(
        [
            [
                analyzer.polarity_scores(prompt + text if with_prompt else text)[
                    "compound"
                ]
                for text in texts
            ]
            for prompt, texts in zip(prompts, responses)
        ]
    )


@functools.cache
def _analyzer() -> Any:
    """The analyzer, which reads its whole lexicon when it is made."""
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise BadInput(
            'the VADER scorer needs the demo extra: pip install "tpmm_jax[demo]"'
        ) from None
    return SentimentIntensityAnalyzer()
