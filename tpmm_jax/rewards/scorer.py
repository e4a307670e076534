"""Scorers: any function of prompts and responses, named "module:function".

A function that a user wrote gets its own copy of every list, and what it returns is
copied: what it does with either changes no text and no number of a run.
"""

import copy
import functools
import importlib
import inspect
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from tpmm_jax.errors import BadInput, refuse_address, user_lines
from tpmm_jax.hosts import once
from tpmm_jax.rewards.surroundings import left_alone
from tpmm_jax.stopping import TIMEOUT, call_user

_log = logging.getLogger(__name__)
# Seconds before a call that raised is repeated; it doubles, to at most the second.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0


@runtime_checkable
class Scorer(Protocol):
    """Rates responses; higher is better.

    The lists are the function's own: it may sort, empty or keep them.

    Args:
      prompts: B texts.
      responses: for each prompt its R responses, as text.

    Returns:
      rewards_BR, finite numbers.

    Example:
      >>> def brevity(prompts, responses):
      ...     return [[-len(text) for text in some] for some in responses]
      >>> NamedScorer("brevity", brevity)(["Hi"], [["Hello!", "Good morning!"]])
      array([[ -6., -13.]])
    """

    def __call__(
        self, prompts: Sequence[str], responses: Sequence[Sequence[str]]
    ) -> Any: ...


@dataclass(frozen=True)
class Known:
    """What is known of answers beside their texts, a row for each of B prompts.

    Attributes:
      asked: the prompts as any model can read them: texts, or messages of a chat.
      ended: [B, R], whether an answer came to its end, or was cut.
      columns: by name the values of columns of the prompts' file.
      tokens: [B, R], of an answer by the policy's tokenizer, its end included; None:
        not known.
    """

    asked: Sequence[Any]
    ended: Sequence[Sequence[bool]]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    tokens: Sequence[Sequence[int]] | None = None

    def twice(self, num_responses: int) -> "Known":
        """Returns the same of the first prompt, twice, with answers that ended.

        They are made up: no policy wrote them, and they have no tokens.
        """
        ended, tokens = [[True] * num_responses] * 2, [[0] * num_responses] * 2
        columns = {name: list(some[:1]) * 2 for name, some in self.columns.items()}
        return Known(list(self.asked[:1]) * 2, ended, columns, tokens)


def import_object(name: str, field_name: str) -> Any:
    """Returns what "module:attribute" names.

    Only names from a user's own config or command line may come here.

    >>> import_object("math:sqrt", "scorer.name")(9)
    3.0

    Raises:
      BadInput: not of that form, no such module, no such attribute.
    """
    module_name, _, attribute = name.partition(":")
    refuse_address(name, f"{field_name} =")
    if not module_name or not attribute:
        raise BadInput(f'{field_name} is {name!r}; wanted "module:function"')
    try:
        what = f"the import of {module_name}"
        with left_alone(what):
            module = call_user(what, lambda: importlib.import_module(module_name))
    except BadInput:
        raise
    except ImportError as error:
        raise BadInput(
            f"{field_name} = {name!r}: {module_name} cannot be imported ({error}); is "
            "its folder on PYTHONPATH, and is its package installed?"
            f"{_copied(attribute)}{user_lines(error)}"
        ) from None
    except Exception as error:
        raise BadInput(
            f"{field_name} = {name!r}: importing {module_name} raised "
            f"{type(error).__name__}: {error}{user_lines(error)}"
        ) from error
    if not callable(getattr(module, attribute, None)):
        found = [
            n for n in vars(module) if callable(getattr(module, n)) and n[0] != "_"
        ]
        raise BadInput(
            f"{field_name} = {name!r}: {module_name} has no function {attribute} (it "
            f"has {', '.join(found[:10]) or 'none'})"
        )
    return getattr(module, attribute)


def _copied(attribute: str) -> str:
    """Returns a hint where the config itself has the function: it was copied."""
    for name, module in list(sys.modules.items()):
        own = vars(module)
        if "get_config" in own and callable(own.get(attribute)):
            return f" The config has a function {attribute} itself: {name}:{attribute}"
    return ""


@dataclass(frozen=True)
class NamedScorer:
    """A scorer whose every answer is checked.

    Attributes:
      name: as messages give it.
      timeout: seconds that one call may take; None: for ever.
      option: the field or option that sets the timeout, for messages.
      retries: see ``ScorerConfig``.
      digest: of a model of ours, which is called with the prompts as they were asked,
        the responses, and which of them ended; None of a user's function.
      columns: of the prompts' file, whose values the function is called with, by name.
      filled: parameters that would be columns, had no option filled them.
      members: of a combination, which is called as this is: the scorers in it.
      averaged: of a model whose weights are a mean: the digests of the models in it.
    """

    name: str
    function: Callable[..., Any]
    timeout: float | None = TIMEOUT
    option: str = ""
    retries: int = 0
    digest: str | None = None
    columns: Sequence[str] = ()
    filled: Sequence[str] = ()
    members: "tuple[NamedScorer, ...]" = ()
    averaged: Sequence[str] = ()

    @property
    def parts(self) -> "tuple[NamedScorer, ...]":
        """The scorers that it is made of, or itself."""
        return self.members or (self,)

    @property
    def models(self) -> list[str]:
        """The digest of every model in it, those of a mean too."""
        found = [(one.digest, *one.averaged) for one in self.parts]
        return [digest for some in found for digest in some if digest is not None]

    def __call__(
        self,
        prompts: Sequence[str],
        responses: Sequence[Sequence[str]],
        known: Known | None = None,
    ) -> np.ndarray:
        """Returns rewards_BR, float64.

        Args:
          known: of the same answers; None: the prompts are all there is, and every
            answer ended.

        Raises:
          BadInput: the scorer raised, or returned another shape or a number that is
            not finite; the message names the scorer and the first prompt concerned.
        """
        if self.members:
            return self.function(prompts, responses, known)
        if self.digest is not None:
            given = (prompts, None) if known is None else (known.asked, known.ended)
            return self.function(given[0], responses, given[1])
        beside = self._beside(known)
        rewards_BR = call_checked(
            f"scorer {self.name}",
            lambda: self.function(
                list(prompts),
                [list(some) for some in responses],
                **copy.deepcopy(beside),
            ),
            prompts,
            shape=(len(prompts), len(responses[0])),
            meaning="one number for each prompt and response",
            timeout=self.timeout,
            option=self.option,
            retries=self.retries,
        )
        if not np.isfinite(rewards_BR).all():
            b, r = np.argwhere(~np.isfinite(rewards_BR))[0]
            raise BadInput(
                f"scorer {self.name} returned {rewards_BR[b, r]} for response {r} of "
                f"prompt {prompts[b][:60]!r}; every reward must be finite"
            )
        return rewards_BR

    def _beside(self, known: Known | None) -> dict[str, list[Any]]:
        """Returns the values of the columns that the function asks for."""
        there = {} if known is None else known.columns
        for column in self.columns:
            if column not in there:
                raise BadInput(
                    f"scorer {self.name} has a parameter {column!r} without a default, "
                    "which is a column of the prompts' file, and there is none here; "
                    "give it in scorer.options, or a default"
                )
        return {column: list(there[column]) for column in self.columns}

    def probe(
        self, prompt: str, num_responses: int, known: Known | None = None
    ) -> np.ndarray:
        """Returns what it gives to made-up responses, before anything expensive.

        Args:
          known: of the prompt.
        """
        responses = [f"This is response number {r}." for r in range(num_responses)]
        twice = None if known is None else known.twice(num_responses)
        return self([prompt, prompt], [responses] * 2, twice)


@dataclass(frozen=True)
class Limits:
    """How long a call may take, and how often it is tried.

    Attributes:
      timeout: seconds; None: for ever.
      option: the field or option that sets it, for messages.
      retries: see ``ScorerConfig``.
    """

    timeout: float | None = TIMEOUT
    option: str = ""
    retries: int = 0


# Makes a scorer of (its name, the field that names it, options, limits).
Find = Callable[[str, str, Mapping[str, Any], Limits], NamedScorer]


def find_function(
    name: str, field_name: str, options: Mapping[str, Any], limits: Limits
) -> NamedScorer:
    """Returns the scorer that a "module:function" is, with its options bound."""
    function = import_object(name, field_name)

    def bound(prompts: Any, responses: Any, **beside: Any) -> Any:
        return function(prompts, responses, **beside, **copy.deepcopy(dict(options)))

    columns = asked_columns(function, options)
    filled = [x for x in asked_columns(function, {}) if x in options]
    given = limits.timeout, limits.option, limits.retries
    return NamedScorer(name, bound, *given, columns=columns, filled=filled)


def asked_columns(function: Any, options: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the parameters behind prompts and responses that nothing fills.

    >>> asked_columns(lambda prompts, responses, answer, scale=1: 0, {})
    ('answer',)
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())[2:]
    except (TypeError, ValueError):  # a function of C, which does not say
        return ()
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return tuple(
        p.name
        for p in parameters
        if p.kind in named and p.default is p.empty and p.name not in options
    )


def call_checked(
    name: str,
    call: Callable[[], Any],
    prompts: Sequence[str],
    *,
    shape: tuple[int, ...],
    meaning: str,
    timeout: float | None,
    option: str,
    retries: int = 0,
) -> np.ndarray:
    """Returns a copy of what a user's function gives, float64, of the wanted shape.

    Of several processes the first calls it; the others wait as long as it takes.

    Args:
      name: "scorer ..." or "judge ...", for messages.
      call: calls it on the prompts.
      meaning: of the shape, for messages.
      timeout: seconds that it may take; None: for ever.
      option: what sets the timeout, for messages.
      retries: how often a call that raises is repeated.

    Raises:
      BadInput: it raised, did not return in time, or returned another shape or values
        that are not numbers.
    """
    on = f" (on {len(prompts)} prompts, the first {prompts[0][:60]!r})"

    def called() -> Any:
        with left_alone(name):
            return call_user(name, call, timeout=timeout, option=option, on=on)

    def checked() -> list[Any]:
        raw = _repeated(name, called, on, retries)
        return _as_array(name, raw, shape, meaning).tolist()

    return np.asarray(once(checked, name), np.float64).reshape(shape)


def _as_array(name: str, raw: Any, shape: tuple[int, ...], meaning: str) -> np.ndarray:
    """Returns a function's numbers; raises BadInput where they are none."""
    try:
        # Always a copy: the function may keep its array, and change it.
        found = np.array(_real(raw), np.float64)
    except Exception as error:  # an array of another library may raise its own
        raise BadInput(
            f"{name} returned a {type(raw).__name__} that is not an array of numbers "
            f"({error}); wanted a list or array of shape {shape}"
        ) from None
    if found.shape != shape:
        raise BadInput(
            f"{name} returned shape {found.shape}; wanted {shape}: {meaning}"
        )
    return found


def _repeated(name: str, called: Callable[[], Any], on: str, retries: int) -> Any:
    """Returns what a call gives; one that raises is repeated after a pause."""
    for tried in range(retries + 1):
        try:
            return called()
        except BadInput:
            raise
        except Exception as error:
            said = f"{name} raised {type(error).__name__}: {error}{on}"
            if tried == retries:
                times = f" in each of {retries + 1} calls" if retries else ""
                raise BadInput(said + times + user_lines(error)) from error
        pause = min(FIRST_PAUSE * 2**tried, LONGEST_PAUSE)
        _log.warning("%s; it is called again in %g s", said, pause)
        # As a call of the user's, so that Ctrl-C ends it.
        call_user(f"the next call of {name}", functools.partial(time.sleep, pause))
    raise AssertionError("unreachable")


def _real(raw: Any) -> Any:
    """Returns what a function gave; raises TypeError where NumPy would drop a part."""
    if isinstance(raw, np.ma.MaskedArray) and np.ma.is_masked(raw):
        raise TypeError("some of it is masked")
    if np.iscomplexobj(raw):
        raise TypeError("its numbers are complex")
    return raw
