"""A directory's tokenizer, which splits texts as its tokenizer.json says.

transformers 5 builds some classes (LlamaTokenizer, Qwen2Tokenizer, GemmaTokenizer)
from the vocabulary and the merges alone, with rules of their own for the rest. A
Llama 2 tokenizer then puts no space marker behind BOS, and a Llama 3 tokenizer of a
model of type qwen2 reads digits one by one, other than in training and without a word.
"""

import importlib.util
import json
import pathlib
import warnings
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tpmm_jax.data.pointers import refuse_pointer
from tpmm_jax.errors import BadInput

TOKENIZER = "tokenizer.json"
SENTENCES = "tokenizer.model"
TOKENIZER_FILES = (TOKENIZER, SENTENCES, "vocab.json")

# Where rules of splitting differ: numbers, contractions, spaces and line ends,
# accents in one code or two, wide forms, scripts without spaces, code.
PROBES = (
    "Hello world, it's 12 345 67890!\n\n  twice  spaced \r\n\n\n\tend ",
    "I'll WE'VE don't na\u00efve e\u0301t\u00e9 \uff46\uff55\uff4c\uff4c \u2460",
    "  def f(x_1):\n    return x*2 # a.b/c-d",
    " \u65e5\u672c\u8a9e\u306e \u043f\u0440\u0438\u0432\u0435\u0442 \U0001f642",
    "\nx",
)


def read_tokenizer(directory: pathlib.Path) -> Any:
    """Returns the directory's tokenizer, or None where there is none.

    Warns (UserWarning) where transformers' own choice of a class splits texts otherwise
    than tokenizer.json, which is then taken as it stands.

    Raises:
      BadInput: files that transformers cannot read.
    """
    there = [name for name in TOKENIZER_FILES if (directory / name).exists()]
    if not there:
        return None
    for name in there:
        refuse_pointer(directory / name)
    if there == [SENTENCES] and importlib.util.find_spec("sentencepiece") is None:
        raise BadInput(
            f"{directory} holds {SENTENCES} and no {TOKENIZER}: reading it takes "
            "SentencePiece (pip install sentencepiece), or copy the model's "
            f"{TOKENIZER} beside it"
        )
    try:
        found = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        taken, wrong = _as_written(found, directory)
    except Exception as error:
        raise BadInput(f"{directory}: its tokenizer cannot be read: {error}") from None
    if taken is not found:
        warnings.warn(
            f"{directory}: transformers reads this tokenizer as "
            f"{type(found).__name__}, which splits {wrong!r} otherwise than "
            f"{TOKENIZER} does; {TOKENIZER} is used. With transformers 5, other "
            "programs read it so with PreTrainedTokenizerFast.from_pretrained",
            stacklevel=3,
        )
    return taken


def write_tokenizer(tokenizer: Any, directory: pathlib.Path) -> None:
    """Writes a tokenizer's files so that transformers 4 reads them as well as 5.

    The newer one names its class and keeps further special tokens under names that the
    older one does not know; it reads the older names itself.
    """
    tokenizer.save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    if not path.exists():
        return
    fields = json.loads(path.read_text(encoding="utf-8"))
    if fields.get("tokenizer_class") == "TokenizersBackend":
        fields["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(fields.get("extra_special_tokens"), list):
        fields["additional_special_tokens"] = fields.pop("extra_special_tokens")
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n")


def _as_written(found: Any, directory: pathlib.Path) -> tuple[Any, str]:
    """Returns the tokenizer itself, or one that splits as tokenizer.json says.

    With it stands a text that they split otherwise, or "".
    """
    path = directory / TOKENIZER
    if type(found) is PreTrainedTokenizerFast or not path.exists():
        return found, ""
    file = Tokenizer.from_file(str(path))
    file.no_truncation()
    file.no_padding()
    named = found.special_tokens_map
    held: dict[str, Any] = {
        name: token
        for name, token in named.items()
        if isinstance(token, str) and file.token_to_id(token) is not None
    }
    texts = (*PROBES, *(f"a{x}b {x} c" for x in dict.fromkeys(held.values())))

    def written(text: str) -> tuple[list[int], str]:
        ids = file.encode(text, add_special_tokens=False).ids
        return ids, file.decode(ids, skip_special_tokens=False)

    wrong = [text for text in texts if _split(found, text) != written(text)]
    if not wrong:
        return found, ""
    # Special tokens that only the class names, not the directory's files.
    plain = PreTrainedTokenizerFast.from_pretrained(directory, **held)
    # Alike where the directory's other files ask for it.
    alike = all(_split(plain, text) == _split(found, text) for text in wrong)
    return (found, "") if alike else (plain, wrong[0])


def _split(tokenizer: Any, text: str) -> tuple[list[int], str] | None:
    """Returns a text's ids and what they are read back as; None where it fails."""
    try:
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids, tokenizer.decode(ids)
    # tokenizers raises Exception itself: an unknown token that its vocabulary lacks.
    except Exception:
        return None
