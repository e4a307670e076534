"""Small templates that behave as published ones do, and tokenizers with their tokens.

Each keeps only what decides where a completion begins and ends.
"""

from tokenizers import AddedToken
from tokenizers_for_tests import CHATML, byte_level

_CHATML_TURN = (
    "{{ '<|im_start|>' + m.role + '\n' }}{{ said }}{{ '<|im_end|>\n' }}{% endfor %}"
)
_ASKS = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n"
_PARTS = (
    "{% for m in messages %}{% set said = m.content %}"
    "{% if m.role == 'assistant' %}{% set thought = '' %}"
    "{% if '</think>' in said %}"
    "{% set thought = said.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{% set said = said.split('</think>')[-1].lstrip() %}{% endif %}"
)
# The last answer always gets a thought, an empty one if it has none.
QWEN3 = (
    f"{_PARTS}{{% if loop.last %}}"
    "{% set said = '<think>\n' + thought + '\n</think>\n\n' + said %}{% endif %}"
    f"{{% endif %}}{_CHATML_TURN}{_ASKS}' }}}}{{% endif %}}"
)
QWEN3_WITHOUT = QWEN3.replace(_ASKS + "'", _ASKS + "<think>\n\n</think>\n\n'")
QWEN3_THINKING = QWEN3.replace(_ASKS + "'", _ASKS + "<think>\n'")
# Opens a thought, and drops it from every answer.
QWQ = f"{_PARTS}{{% endif %}}{_CHATML_TURN}{_ASKS}<think>\n' }}}}{{% endif %}}"
R1 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<|User|>' + m.content }}"
    "{% else %}{{ '<|Assistant|>' + m.content.split('</think>')[-1] }}"
    "{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
GEMMA = (
    "{% for m in messages %}{{ '<start_of_turn>' }}"
    "{{ 'model' if m.role == 'assistant' else m.role }}{{ '\n' }}"
    "{{ m.content | trim }}{{ '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>' }}"
    "{{ '\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# EOS behind the last end of turn, and a line break on both sides of it.
PHI = (
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}"
    "{% else %}{{ eos_token + '\n' }}{% endif %}"
)
CHATML_EOS = CHATML + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
COMMAND = (
    "{% for m in messages %}{{ '<|START_OF_TURN|><|' + m.role + '|>' }}"
    "{{ m.content.split('<|END_THINKING|>')[-1] + '<|END_OF_TURN|>' }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|START_OF_TURN|><|assistant|><|START_THINKING|>' }}{% endif %}"
)
_TOKENS = (
    *("<think>", "</think>", "<|User|>", "<|Assistant|>", "<|eot_id|>", "<|end|>"),
    *("<start_of_turn>", "<end_of_turn>", "<|end_of_text|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|END_OF_TURN|>"),
)


def tokenizer_of(template, eos="<|im_end|>"):
    """A tokenizer that knows all their tokens, and writes with one of them."""
    made = byte_level(template)
    made.add_tokens([AddedToken(t, special=True, normalized=False) for t in _TOKENS])
    made.eos_token = eos
    return made
