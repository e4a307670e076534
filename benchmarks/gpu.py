"""On one GPU: agreement with transformers, a DPO step and sampling against peers.

    python benchmarks/gpu.py                          # every part, one after another
    python benchmarks/gpu.py step trl generate        # some of them

Each part runs in a fresh process and prints one JSON object. The model of the timed
parts has the shape of Llama 3.2 1B (1.24 B parameters, random weights); --small takes
one of 5 M, to try the script itself on a CPU.

    parity     float32 logits of every family's fixture against transformers' on the CPU
    bfloat16   log-probs in bfloat16, ours and transformers', against our float32
    attention  cuDNN's and its gradients against XLA's, both in bfloat16: 8 rows of 256
               tokens, heads of 256, padded on either side or of several sequences, with
               and without a window of 37; of each the error over the norm
    step       a DPO step: 8 pairs of 1,024 tokens, bfloat16, float32 weights and Adam;
               with layers recomputed and without, by cuDNN's attention and by XLA's
    gemma      the same of Gemma 2B's shape: 64 pairs of 96 tokens, by both attentions
    trl        the same step by TRL's DPOTrainer (bfloat16 autocast, sdpa, fused Adam)
    generate   64 prompts of 128 tokens, 256 new ones each, bfloat16
    hf         the same by transformers' generate (sdpa, dynamic cache)
    experts    a Mixtral of 4 layers, 2 of 8 experts active: log-probs of 16 rows of 512
               tokens in bfloat16, against float32 and transformers'; a DPO step; both
               again of a dense model with as many active weights

Steps and sampling are timed after two of them, by the median of what follows; both
sides recompute layers in the backward pass, or neither ("remat").
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np

FIXTURES = pathlib.Path(__file__).parent.parent / "tests" / "fixtures"
SHAPES = {
    "1b": {
        "vocab_size": 128_256, "width": 2048, "mlp_width": 8192, "num_layers": 16,
        "num_heads": 32, "num_kv_heads": 8,
    },
    "small": {
        "vocab_size": 4096, "width": 256, "mlp_width": 1024, "num_layers": 4,
        "num_heads": 4, "num_kv_heads": 1,
    },
}  # fmt: skip
# A Mixtral of few layers, and the dense model of the same active weights.
EXPERTS, ACTIVE = 8, 2
MIXTURES = {
    "1b": {
        "vocab_size": 32_000, "width": 2048, "mlp_width": 4096, "num_layers": 4,
        "num_heads": 16, "num_kv_heads": 8,
    },
    "small": SHAPES["small"],
}  # fmt: skip
PAIRS, PROMPT, COMPLETION = 8, 512, 512
ROWS, ROW_PROMPT, NEW = 64, 128, 256
WARM, TIMED = 2, 8


def decoder(name: str, dtype: str, remat: bool = False, attention: str = "auto") -> Any:
    """Returns a model of the Llama architecture."""
    from tpmm_jax.models import Decoder, RopeConfig
    from tpmm_jax.models.families import make_config

    config = make_config(
        "llama", **SHAPES[name], max_positions=2048, norm_eps=1e-5, tie_embeddings=True,
        rope=RopeConfig(theta=500_000.0), bos_id=2, eos_ids=(1,), pad_id=0,
    )  # fmt: skip
    return Decoder(config, dtype, remat, attention=attention)


def hf_config(name: str) -> Any:
    """Returns the same shape for transformers."""
    from transformers import LlamaConfig

    shape = SHAPES[name]
    return LlamaConfig(
        vocab_size=shape["vocab_size"], hidden_size=shape["width"],
        intermediate_size=shape["mlp_width"], num_hidden_layers=shape["num_layers"],
        num_attention_heads=shape["num_heads"],
        num_key_value_heads=shape["num_kv_heads"], max_position_embeddings=2048,
        rms_norm_eps=1e-5, tie_word_embeddings=True, pad_token_id=0, bos_token_id=2,
        eos_token_id=1,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
    )  # fmt: skip


def jax_report(**values: Any) -> dict[str, Any]:
    """Returns the values with the peak of device memory and the versions."""
    import jax
    from measure import versions

    device = jax.devices()[0]
    peak = (device.memory_stats() or {}).get("peak_bytes_in_use", 0)
    told = {"peak_gib": round(peak / 2**30, 2), "device": device.device_kind}
    return {**values, **told, "versions": versions()}


def torch_report(**values: Any) -> dict[str, Any]:
    """Returns the same of torch."""
    from importlib.metadata import version

    import torch

    cuda = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if cuda else 0
    device = torch.cuda.get_device_name() if cuda else "cpu"
    names = ("torch", "transformers", "trl") if "trl" in sys.modules else (
        "torch", "transformers"
    )  # fmt: skip
    found = ", ".join(f"{name} {version(name)}" for name in names)
    told = {"peak_gib": round(peak / 2**30, 2), "device": device}
    return {**values, **told, "versions": found}


def timed(act: Callable[[], Any], repeats: int = TIMED) -> tuple[float, float]:
    """Returns the median of an act's seconds, and those of its first call."""
    seconds = []
    for _ in range(WARM + repeats):
        started = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[WARM:]), seconds[0]


def parity(name: str) -> dict[str, Any]:
    """Largest difference of float32 logits from transformers' golden ones."""
    import tpmm_jax as tpmm

    found = {}
    for path in sorted(FIXTURES.glob("*/golden.npz")):
        golden, model = np.load(path), tpmm.load(str(path.parent))
        mask = golden["attention_mask"]
        logp = np.asarray(tpmm.log_probs(model, golden["input_ids"], mask))
        real = mask[:, 1:] * mask[:, :-1]
        wrong = np.abs(logp - golden["logps"]) * real
        found[path.parent.name] = float(f"{wrong.max():.1e}")
    return jax_report(part="parity", worst_log_prob=found)


def bfloat16(name: str) -> dict[str, Any]:
    """Errors of log-probs in bfloat16, per token, against float32."""
    import jax

    import tpmm_jax as tpmm
    from tpmm_jax.weights.saving import save
    from tpmm_jax.weights.source import Model

    exact = decoder(name, "float32")
    params = jax.jit(exact.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    tokens = rng.integers(4, exact.config.vocab_size, (8, 512)).astype(np.int32)
    mask = np.ones_like(tokens)
    want = np.asarray(tpmm.log_probs(Model(exact, params), tokens, mask))
    ours = tpmm.log_probs(Model(decoder(name, "bfloat16"), params), tokens, mask)
    errors = {"ours": np.asarray(ours) - want}
    with tempfile.TemporaryDirectory() as folder:
        save(Model(exact, params), folder)
        errors |= _hf_errors(folder, tokens, want)
    return jax_report(
        part="bfloat16",
        **rms(errors),
        **{f"{k}_max": float(f"{np.abs(v).max():.2e}") for k, v in errors.items()},
    )


def rms(errors: dict[str, np.ndarray]) -> dict[str, float]:
    """Returns the root of the mean square of each."""
    return {
        f"{k}_rms": float(f"{np.sqrt((v**2).mean()):.2e}") for k, v in errors.items()
    }


def _hf_errors(folder: str, tokens: np.ndarray, want: np.ndarray) -> dict[str, Any]:
    found = {}
    for title, dtype in (("hf_float32", "float32"), ("hf", "bfloat16")):
        log_probs = _hf_log_probs(folder, dtype)
        rows = [log_probs(two) for two in np.split(tokens, len(tokens) // 2)]
        found[title] = np.concatenate(rows) - want
    return found


def _hf_log_probs(folder: str, dtype: str) -> Callable[[np.ndarray], np.ndarray]:
    """Returns what gives log p of every next token by transformers' model."""
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device)

    def log_probs(tokens: np.ndarray) -> np.ndarray:
        ids = torch.from_numpy(tokens).long().to(device)
        with torch.no_grad():
            logp = torch.log_softmax(model(ids).logits[:, :-1].float(), -1)
            return logp.gather(-1, ids[:, 1:, None])[..., 0].cpu().numpy()

    return log_probs


def attention(name: str) -> dict[str, Any]:
    """Relative errors of cuDNN's attention and its gradients, by kind of rows."""
    import jax
    import jax.numpy as jnp

    from tpmm_jax.models.families import make_config
    from tpmm_jax.models.flash import attend_flash
    from tpmm_jax.models.layers import EVERYTHING, attend
    from tpmm_jax.models.sequences import Sequences, from_mask, may_attend

    B, T, H, E = 8, 256, 8, 256
    config = make_config(
        "llama", vocab_size=64, width=H * E, mlp_width=64, num_layers=1, num_heads=H,
        num_kv_heads=1, bos_id=2, eos_ids=(1,), pad_id=0,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    right = (np.arange(T) < rng.integers(3, T, B)[:, None]).astype(np.int32)
    segments = np.sort(rng.integers(0, 4, (B, T)), axis=1).astype(np.int32)
    first = np.array([np.searchsorted(row, row) for row in segments])
    places = (np.arange(T) - first).astype(np.int32)
    kinds = {
        "right": from_mask(right, right),
        "left": from_mask(right[:, ::-1], right[:, ::-1]),
        "several": Sequences(segments, places, segments + 1),
    }
    q, k, v, g = (
        jax.random.normal(key, (B, T, heads, E), jnp.bfloat16)
        for key, heads in zip(jax.random.split(jax.random.key(0), 4), (H, 1, 1, H))
    )
    kernel = "cudnn" if jax.default_backend() == "gpu" else "xla"

    def both(rows: Any, reach: Any, by_kernel: bool) -> Any:
        def loss(*x: Any) -> Any:
            if by_kernel:
                out = attend_flash(*x, rows, reach, config, None, kernel)
            else:
                allowed = may_attend(rows, rows, reach)
                out = attend(*x, allowed, config, jnp.bfloat16)
            real = (rows.segments_BT > 0)[..., None, None]
            return jnp.sum(jnp.where(real, out * g, 0).astype(jnp.float32)), out * real

        (_, out), gradients = jax.value_and_grad(loss, (0, 1, 2), has_aux=True)(q, k, v)
        return out, *gradients

    def far(found: Any, want: Any) -> float:
        return float(f"{jnp.linalg.norm(found - want) / jnp.linalg.norm(want):.1e}")

    run, errors = jax.jit(both, static_argnums=2), {}
    for kind, rows in kinds.items():
        for reach in (EVERYTHING, 37):
            rows = jax.tree.map(jnp.asarray, rows)
            pairs = zip(*(run(rows, jnp.int32(reach), by) for by in (True, False)))
            errors[f"{kind}, {'window' if reach == 37 else 'no window'}"] = [
                far(found.astype(jnp.float32), want.astype(jnp.float32))
                for found, want in pairs
            ]
    return jax_report(part="attention", kernel=kernel, output_and_gradients=errors)


def step(name: str, remat: bool, attention: str = "auto") -> dict[str, Any]:
    """Our DPO step."""
    seconds, first, loss = time_step(decoder(name, "bfloat16", remat, attention))
    return jax_report(
        part="step",
        remat=remat,
        attention=attention,
        loss=loss,
        first_s=round(first, 1),
        **_rates(name, seconds),
    )


def gemma(name: str, attention: str) -> dict[str, Any]:
    """Our DPO step of Gemma 2B's shape on short pairs."""
    from tpmm_jax.models import Decoder
    from tpmm_jax.models.published import SIZES

    if name != "1b":
        return step(name, True, attention) | {"part": "gemma"}
    pairs, prompt, completion = 64, 32, 64
    model = Decoder(
        SIZES["gemma-2b"], "bfloat16", chunk_bytes=2**29, attention=attention
    )
    seconds, first, loss = time_step(model, pairs, prompt, completion)
    return jax_report(
        part="gemma",
        attention=attention,
        loss=loss,
        first_s=round(first, 1),
        seconds=round(seconds, 4),
        tokens_per_s=round(2 * pairs * (prompt + completion) / seconds),
    )


def time_step(
    model: Any, pairs: int = PAIRS, prompt: int = PROMPT, completion: int = COMPLETION
) -> tuple[float, float, float]:
    """Returns the median of a DPO step's seconds, those of the first, and the loss."""
    import jax
    import jax.numpy as jnp

    from tpmm_jax.losses import LossConfig
    from tpmm_jax.steps import TrainConfig, init_state, preference_step

    train = TrainConfig(learning_rate=1e-6, batch_size=pairs)
    take_step = preference_step(model, LossConfig(), train)
    state = init_state(jax.jit(model.init)(jax.random.key(0)), train)
    rng, shape = np.random.default_rng(0), (pairs, 2, prompt + completion)
    mask = np.zeros(shape, np.int32)
    mask[..., prompt:] = 1
    batch = {
        "tokens_BNT": rng.integers(4, model.config.vocab_size, shape, np.int32),
        "mask_BNT": np.ones(shape, np.int32),
        "completion_mask_BNT": mask,
        "reference_BN": np.full((pairs, 2), -6000, np.float32),
        "weight_B": np.ones(pairs, np.float32),
    }
    batch, loss = jax.device_put(batch), 0.0

    def act() -> None:
        nonlocal state, loss
        state, metrics = take_step(state, batch, jnp.float32(1e-6))
        loss = float(metrics["loss"])

    return *timed(act), loss


def _rates(name: str, seconds: float) -> dict[str, float]:
    """Seconds, tokens and model FLOPs (6 N per token and attention) of a step."""
    shape, length = SHAPES[name], PROMPT + COMPLETION
    d, layers, kv = shape["width"], shape["num_layers"], shape["num_kv_heads"]
    head = d // shape["num_heads"]
    weights = layers * (2 * d * d + 2 * d * kv * head + 3 * d * shape["mlp_width"])
    weights += shape["vocab_size"] * d
    tokens = 2 * PAIRS * length
    # Causal: half of the scores count.
    flops = 6 * weights * tokens + 6 * layers * tokens * length * d
    return {
        "seconds": round(seconds, 4),
        "tokens_per_s": round(tokens / seconds),
        "model_tflops": round(flops / seconds / 1e12, 1),
    }


def trl(name: str, remat: bool) -> dict[str, Any]:
    """TRL's DPO step."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    cuda, vocab = torch.cuda.is_available(), SHAPES[name]["vocab_size"]
    with torch.device("cuda" if cuda else "cpu"):
        model = AutoModelForCausalLM.from_config(
            hf_config(name), dtype=torch.float32, attn_implementation="sdpa"
        )
    rng, steps, ticks = np.random.default_rng(0), WARM + TIMED, list[float]()

    def text(count: int) -> str:
        return "".join(f" t{i}" for i in rng.integers(4, vocab, count))

    columns = {
        "prompt": PROMPT, "chosen": COMPLETION - 1, "rejected": COMPLETION - 1
    }  # fmt: skip
    data = Dataset.from_dict(
        {k: [text(n) for _ in range(steps * PAIRS)] for k, n in columns.items()}
    )

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if cuda:
                torch.cuda.synchronize()
            ticks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        config = DPOConfig(
            output_dir=folder, per_device_train_batch_size=PAIRS, max_steps=steps,
            learning_rate=1e-6, lr_scheduler_type="constant", bf16=cuda,
            gradient_checkpointing=remat, precompute_ref_log_probs=True,
            max_length=PROMPT + COMPLETION, optim="adamw_torch_fused", use_cpu=not cuda,
            save_strategy="no", report_to="none", disable_tqdm=True, logging_steps=1,
        )  # fmt: skip
        trainer = DPOTrainer(
            model=model, args=config, train_dataset=data,
            processing_class=make_tokenizer(vocab), callbacks=[Clock()],
        )  # fmt: skip
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
    seconds = statistics.median(np.diff(ticks)[WARM - 1 :])
    loss = trainer.state.log_history[0]["loss"]
    return torch_report(part="trl", remat=remat, loss=loss, **_rates(name, seconds))


def make_tokenizer(vocab: int) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"t{i}" for i in range(4, vocab))]
    made = Tokenizer(
        models.WordLevel({s: i for i, s in enumerate(names)}, unk_token="<unk>")
    )
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )


def generate(name: str) -> dict[str, Any]:
    """Our sampling."""
    import jax

    from tpmm_jax.sampling import SamplingConfig, generate_batches

    model = decoder(name, "bfloat16")
    params = jax.jit(model.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    prompts = rng.integers(4, model.config.vocab_size, (ROWS, ROW_PROMPT)).tolist()

    def act() -> None:
        made = generate_batches(
            model, params, prompts, key=jax.random.key(1), eos_ids=(),
            config=SamplingConfig(max_new_tokens=NEW), batch_size=ROWS,
        )  # fmt: skip
        for _, rows in made:
            assert all(len(row[0]) == NEW for row in rows)

    seconds, first = timed(act, 3)
    return jax_report(
        part="generate", seconds=round(seconds, 3), first_s=round(first, 1),
        tokens_per_s=round(ROWS * NEW / seconds),
    )  # fmt: skip


def hf(name: str) -> dict[str, Any]:
    """transformers' sampling."""
    import torch
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            hf_config(name), dtype=torch.bfloat16, attn_implementation="sdpa"
        ).eval()
        ids = torch.randint(4, SHAPES[name]["vocab_size"], (ROWS, ROW_PROMPT))

    def act() -> None:
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0,
            max_new_tokens=NEW, min_new_tokens=NEW, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
        assert made.shape == (ROWS, ROW_PROMPT + NEW)
        made.cpu()

    seconds, first = timed(act, 3)
    return torch_report(
        part="hf", seconds=round(seconds, 3), first_s=round(first, 1),
        tokens_per_s=round(ROWS * NEW / seconds),
    )  # fmt: skip


def experts(name: str, routed: bool) -> dict[str, Any]:
    """Our Mixtral, or the dense model of the same active weights."""
    import jax

    import tpmm_jax as tpmm
    from tpmm_jax.models import Decoder, ExpertsConfig
    from tpmm_jax.models.families import make_config
    from tpmm_jax.weights.saving import save
    from tpmm_jax.weights.source import Model

    shape: dict[str, Any] = dict(MIXTURES[name])
    if routed:
        shape["experts"] = ExpertsConfig(count=EXPERTS, top_k=ACTIVE)
    else:
        shape["mlp_width"] *= ACTIVE
    config = make_config(
        "mixtral" if routed else "llama", **shape, max_positions=2048, norm_eps=1e-5,
        tie_embeddings=True, bos_id=2, eos_ids=(1,), pad_id=0,
    )  # fmt: skip
    exact = Decoder(config, "float32", True)
    params = jax.jit(exact.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    tokens = rng.integers(4, config.vocab_size, (ROWS // 4, 512)).astype(np.int32)
    mask = np.ones_like(tokens)
    want = np.asarray(tpmm.log_probs(Model(exact, params), tokens, mask))
    half = Model(Decoder(config, "bfloat16", True), params)
    errors = {"ours": np.asarray(tpmm.log_probs(half, tokens, mask)) - want}
    passes, _ = timed(lambda: np.asarray(tpmm.log_probs(half, tokens, mask)))
    seconds = {"ours_s": passes, "step_s": time_step(half.decoder)[0]}
    if routed:
        with tempfile.TemporaryDirectory() as folder:
            save(Model(exact, params), folder)
            errors |= _hf_errors(folder, tokens, want)
            theirs = _hf_log_probs(folder, "bfloat16")
            seconds["hf_s"] = timed(lambda: theirs(tokens))[0]
    return jax_report(
        part="experts",
        routed=routed,
        **{k: round(v, 4) for k, v in seconds.items()},
        **rms(errors),
    )


PARTS: dict[str, list[Callable[[str], dict[str, Any]]]] = {
    "parity": [parity],
    "bfloat16": [bfloat16],
    "attention": [attention],
    "step": [
        lambda name: step(name, True),
        lambda name: step(name, False),
        lambda name: step(name, True, "xla"),
    ],
    "gemma": [lambda name: gemma(name, "auto"), lambda name: gemma(name, "xla")],
    "trl": [lambda name: trl(name, True), lambda name: trl(name, False)],
    "generate": [generate],
    "hf": [hf],
    "experts": [lambda name: experts(name, True), lambda name: experts(name, False)],
}


def runs(parts: list[str]) -> Iterator[tuple[str, int]]:
    """Yields each part and the number of its case."""
    for part in parts:
        for case in range(len(PARTS[part])):
            yield part, case


def main() -> None:
    """Runs the parts, each in a process of its own; a part that fails says so."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    name = "small" if given.small else "1b"
    if given.case is not None:
        print(json.dumps(PARTS[given.parts[0]][given.case](name)))
        return
    for part, case in runs(given.parts or list(PARTS)):
        command = [sys.executable, __file__, part, "--case", str(case)]
        done = subprocess.run(
            command + ["--small"] * given.small, capture_output=True, text=True
        )
        last = (done.stdout.strip().splitlines() or [""])[-1]
        failed = f"{part} failed ({done.returncode}): {done.stderr[-1500:]}"
        print(last if done.returncode == 0 else failed, flush=True)


if __name__ == "__main__":
    main()
