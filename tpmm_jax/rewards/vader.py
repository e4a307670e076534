"""An example scorer: VADER sentiment (Hutto and Gilbert 2014), of the demo extra."""

from collections.abc import Sequence

import numpy as np

from tpmm_jax.errors import BadInput


def sentiment(
    prompts: Sequence[str],
    responses: Sequence[Sequence[str]],
    *,
    with_prompt: bool = False,
) -> np.ndarray:
    """Returns VADER's compound score of each response, in [-1, 1].

    Args:
      with_prompt: score prompt and response as one text.
    """
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise BadInput(
            'the VADER scorer needs the demo extra: pip install "tpmm_jax[demo]"'
        ) from None
    analyzer = SentimentIntensityAnalyzer()
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
