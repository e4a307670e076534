"""A chat template that would fill the memory or never end is stopped, anywhere."""

import os
import warnings

import psutil
import pytest
import tokenizers_for_tests as small
from published import GEMMA, LLAMA3, QWEN3, R1, tokenizer_of
from reading import encode

from tpmm_jax.data import _rendering
from tpmm_jax.data.pairs import PreferencePair
from tpmm_jax.data.prompt_tokens import encode_prompts
from tpmm_jax.errors import BadInput, TpmmError

MANY = "{% for i in range(99999) %}{% for j in range(99999) %}"
ENDS = "{% endfor %}{% endfor %}"
# Only conversations of this word go wrong; the probes of a tokenizer do not.
IF = "{% if messages[0].content == 'hello' %}"
# What Jinja could work out when it reads the template is hidden from it.
ONE = "messages | length"
BOMBS = [
    (f"{{{{ 'x' * (500000000 * {ONE}) }}}}", "MiB of memory|characters"),
    (f"{{{{ 'x' * (30000000 * {ONE}) }}}}", "more than 16,777,216 characters"),
    ("{% set n = namespace(x='x') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}"
     "{% endfor %}", "512 MiB of memory"),
    (f"{MANY}{ENDS}", "it worked for 4 seconds"),
    (f"{{{{ (6 + {ONE}) ** (10 ** 10) }}}}", "it worked for 4 seconds"),
]  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def short():
    """Less work is enough here; a process takes its limits when it starts."""
    _rendering._CHILD.close()
    with pytest.MonkeyPatch.context() as patch:
        # Not one: a slow machine needs that long to fill the memory.
        patch.setattr(_rendering, "SECONDS", 4)
        patch.setitem(_rendering._LIMITS, "time", "it worked for 4 seconds")
        yield
    _rendering._CHILD.close()


@pytest.mark.parametrize("bomb, wanted", BOMBS)
def test_a_template_without_measure_is_stopped_and_named(bomb, wanted):
    template = f"{IF}{bomb}{{% endif %}}{small.CHATML}"
    codec = small.codec(small.byte_level(template), chat=True)
    taken = psutil.Process().memory_info().rss
    said = (
        rf"f:3: the chat template was stopped: .*({wanted}) for one conversation; put"
    )
    good = PreferencePair("a dog", "b", "c", "f:2")
    with pytest.raises(BadInput, match=said):
        encode(codec, [good, PreferencePair("hello", "b", "c", "f:3"), good])
    assert psutil.Process().memory_info().rss - taken < 2**28


def test_a_prompt_is_named_and_the_program_goes_on():
    template = f"{IF}{BOMBS[2][0]}{{% endif %}}{small.CHATML}"
    codec = small.codec(small.byte_level(template), chat=True)
    with pytest.raises(BadInput, match="prompt 1: the chat template was stopped"):
        encode_prompts(codec, ["a dog", "hello"])
    assert len(encode_prompts(codec, ["a dog"])) == 1


@pytest.mark.parametrize("template", [GEMMA, LLAMA3, QWEN3, R1, small.CHATML])
def test_the_process_writes_what_the_tokenizer_writes(template):
    tokenizer = tokenizer_of(template)
    said = ("a\u2028b", "\ud83d", "🙂 <|im_end|>", "x" * 2**20)
    for text in said:
        turns = [{"role": r, "content": text} for r in ("user", "assistant")]
        for opens in (True, False):
            assert _rendering.render(
                template, turns, opens=opens, variables=tokenizer.special_tokens_map
            ) == tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=opens
            )


TURNS = [{"role": "user", "content": "a"}]


def _render():
    return _rendering.render(small.CHATML, TURNS, opens=True, variables={})


def test_a_process_that_was_killed_is_named_and_started_again():
    first = _render()
    (child,) = (c for c in psutil.Process().children() if "-P" in c.cmdline())
    # It is not its business that the whole group is asked to stop.
    child.terminate()
    assert _render() == first
    child.kill()
    with pytest.raises(TpmmError, match="ended with code -9"):
        _render()
    assert _render() == first


def test_a_forked_process_renders_in_one_of_its_own():
    first = _render()
    with warnings.catch_warnings(action="ignore"):
        pid = os.fork()
    if pid == 0:
        same = _render() == first
        _rendering._CHILD.close()
        os._exit(0 if same else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert _render() == first
