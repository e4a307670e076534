"""Which prompts an iteration samples from: its own, drawn once from the seed."""

import json
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tpmm_jax.config import Config
from tpmm_jax.data.messages import as_dicts, written
from tpmm_jax.data.prompts import Prompt, load_prompts, parse_prompt
from tpmm_jax.data.tokens import encode_prompts
from tpmm_jax.errors import BadInput
from tpmm_jax.rewards import import_object
from tpmm_jax.store.files import write_text


@dataclass(frozen=True)
class EncodedPrompts:
    """Prompts ready to be sampled from.

    Attributes:
      numbers: each prompt's number in its source; random keys depend on it.
      texts: as a scorer sees them.
      ids: token ids.
    """

    numbers: list[int]
    texts: list[str]
    ids: list[list[int]]
    truncated: int


@dataclass(frozen=True)
class PromptSchedule:
    """The prompts of every iteration and of the evaluation."""

    pool: Sequence[Prompt]
    order: Callable[[int], np.ndarray]
    evaluation: EncodedPrompts
    per_iteration: int
    encode: Callable[[Sequence[int]], EncodedPrompts]

    def iteration(self, iteration: int) -> EncodedPrompts:
        """Returns the prompts of iteration 1, 2, ...; a used-up pool starts anew."""
        first = (iteration - 1) * self.per_iteration
        return self.encode([self._at(first + i) for i in range(self.per_iteration)])

    def _at(self, place: int) -> int:
        epoch, index = divmod(place, len(self.order(0)))
        return int(self.order(epoch)[index])

    def longest(self, iterations: int) -> int:
        """Returns the tokens of the longest prompt; encodes, and so checks, all."""
        used = [self.evaluation.ids]
        if self.pool:
            used += [self.iteration(t).ids for t in range(1, iterations + 1)]
        return max(len(ids) for prompts in used for ids in prompts)

    def uses(self, iterations: int) -> float:
        """Returns how often a prompt is used on average."""
        return iterations * self.per_iteration / max(len(self.order(0)), 1)


def read_prompts(
    source: str, config: Config, cache: pathlib.Path, field_name: str
) -> list[Prompt]:
    """Returns the prompts of a source; those of a function are kept in ``cache``."""
    data = config.data
    if ":" not in source or pathlib.Path(source).exists():
        return load_prompts(source, field=data.prompt_field, split=data.split)
    if not cache.exists():
        made = import_object(source, field_name)()
        lines = [json.dumps({"prompt": _plain(item)}) for item in made]
        write_text(cache, "".join(line + "\n" for line in lines))
    return load_prompts(str(cache))


def _plain(item: Any) -> Any:
    value = item if isinstance(item, str) else list(item)
    _, faults = parse_prompt(value, "prompt")
    if faults:
        raise BadInput(f"a prompt that the function made is no prompt: {faults[0]}")
    return value


def make_schedule(
    config: Config, tokenizer: Any, workdir: pathlib.Path
) -> PromptSchedule:
    """Returns the schedule of a run.

    Evaluation prompts are those of data.eval_prompts, else set aside from the pool.

    Raises:
      BadInput: too few prompts, or prompts that cannot be read or encoded.
    """
    data, wanted = config.data, config.evaluation.num_prompts
    pool: list[Prompt] = []
    if data.prompts is not None:
        pool = read_prompts(
            data.prompts, config, workdir / "prompts.jsonl", "data.prompts"
        )

    def encode(prompts: Sequence[Prompt], numbers: Sequence[int]) -> EncodedPrompts:
        chosen = [prompts[n] for n in numbers]
        encoded = encode_prompts(
            tokenizer,
            chosen,
            chat=data.chat,
            max_length=data.max_prompt_length,
            truncate=data.truncate_prompt,
        )
        ids = [e.ids for e in encoded]
        texts = [_text(tokenizer, p, i) for p, i in zip(chosen, ids)]
        cut = sum(e.truncated for e in encoded)
        return EncodedPrompts(list(numbers), texts, ids, cut)

    first = np.random.default_rng([config.seed, 0]).permutation(len(pool))
    if data.eval_prompts is not None:
        cache = workdir / "eval_prompts.jsonl"
        others = read_prompts(data.eval_prompts, config, cache, "data.eval_prompts")
        aside, rest = encode(others, range(min(wanted, len(others)))), first
    else:
        if len(pool) <= wanted:
            raise BadInput(
                f"data.prompts holds {len(pool)} prompts, of which {wanted} are set "
                "aside for evaluation; give more, set data.eval_prompts, or lower "
                "evaluation.num_prompts"
            )
        aside, rest = encode(pool, first[:wanted].tolist()), first[wanted:]

    def order(epoch: int) -> np.ndarray:
        if epoch == 0:
            return rest
        return np.random.default_rng([config.seed, epoch]).permutation(rest)

    return PromptSchedule(
        pool,
        order,
        aside,
        config.rollout.prompts_per_iteration,
        lambda numbers: encode(pool, numbers),
    )


def _text(tokenizer: Any, prompt: Prompt, ids: list[int]) -> str:
    """A text as it is; of messages, one line a turn; of ids, their text."""
    content = written(prompt.content)
    if isinstance(content, str):
        return content
    if content is None:
        return tokenizer.decode(ids, skip_special_tokens=True)
    return "\n".join(f"{m['role']}: {m['content']}" for m in as_dicts(content))
