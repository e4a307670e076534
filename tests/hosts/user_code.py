"""Scorers that go wrong in one way each."""

import os
import time

import tiny_run


def raises(prompts, responses):
    """Raises where it is asked about answers of a policy."""
    if "This is response" in responses[0][0]:
        return tiny_run.score(prompts, responses)
    raise RuntimeError("the scorer's database is gone")


def slow(prompts, responses):
    """Takes longer, once, than a collective of the CPU would wait."""
    if "This is response" not in responses[0][0]:
        time.sleep(float(os.environ.pop("SLOW", "0")))
    return tiny_run.score(prompts, responses)
