"""config.json's fields that leave the forward pass alone, at any value or at some.

transformers 4 wrote dozens of them into every dump (`to_dict`): how to generate, how to
train, heads that a language model does not have.
"""

from collections.abc import Collection
from typing import Any

# Fields that say nothing about the forward pass.
IGNORED = {
    # Older transformers kept how to sample here; a run and a command say it themselves.
    "do_sample", "early_stopping", "length_penalty", "max_length", "min_length",
    "no_repeat_ngram_size", "num_beams", "num_return_sequences", "repetition_penalty",
    "temperature", "top_k", "top_p", "typical_p",
    "max_new_tokens", "min_new_tokens", "min_p", "penalty_alpha", "renormalize_logits",
    # What a call returns, how it is computed, how training saves memory.
    "_attn_implementation", "_attn_implementation_autoset",
    "_attn_implementation_internal", "_experts_implementation",
    "_experts_implementation_internal", "_flash_attn_2_enabled", "attn_implementation",
    "base_model_pp_plan", "base_model_tp_plan", "cache_implementation",
    "chunk_size_feed_forward", "dtype", "gradient_checkpointing",
    "keys_to_ignore_at_inference", "max_window_layers", "output_attentions",
    "output_hidden_states", "output_scores", "pretraining_tp", "return_dict",
    "return_dict_in_generate", "tf_legacy_loss", "torch_dtype", "torchscript",
    "use_bfloat16", "use_cache", "use_flash_attention_2", "use_flash_attn",
    "use_flashattn", "xla_device",
    # How the routers of experts are trained.
    "output_router_logits", "router_aux_loss_coef",
    # Of classifiers and of tasks.
    "finetuning_task", "id2label", "label2id", "num_labels", "problem_type",
    "task_specific_params",
    # Where the model comes from, and its tokenizer.
    "_commit_hash", "_name_or_path", "architectures", "initializer_range",
    "is_decoder", "is_llama_config", "max_seq_len", "max_seq_length",
    "max_sequence_length", "model_max_length", "model_name", "sep_token_id",
    "tokenizer_class", "tokenizer_model_max_length", "tokenizer_padding_side",
    "transformers.js_config", "unk_token_id", "unsloth_fixed",
}  # fmt: skip

# Fields of which only these values are supported, and null unless it is in NOT_NULL, if
# the family does not read them.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "attention_bias": (False,),
    "attention_dropout": (0,),
    "attn_logit_softcapping": (),
    "attn_pdrop": (0,),
    "auto_map": ({},),
    "bad_words_ids": ([],),
    "begin_suppress_tokens": ([],),
    "classifier_dropout": (0,),
    "cross_attention_hidden_size": (),
    "decoder_start_token_id": (),
    "diversity_penalty": (0,),
    "embd_pdrop": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "exponential_decay_length_penalty": (),
    "final_logit_softcapping": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "hidden_dropout": (0,),
    "hidden_dropout_prob": (0,),
    "is_causal": (True,),
    "is_encoder_decoder": (False,),
    "mlp_bias": (False,),
    "neftune_noise_alpha": (0,),
    "num_beam_groups": (1,),
    "partial_rotary_factor": (1,),
    "per_layer_config": ({},),
    "prefix": ("",),
    "pruned_heads": ({}, []),
    "quantization": ({},),
    "quantization_config": ({},),
    "remove_invalid_values": (False,),
    "resid_pdrop": (0,),
    "rope_interleaved": (False,),
    "router_jitter_noise": (0,),
    "suppress_tokens": ([],),
    "tie_encoder_decoder": (False,),
    "use_bidirectional_attention": (False,),
    "use_mrope": (False,),
    "use_sliding_window": (False,),
}
QUANTISED = (
    ": take the model in full precision, or remove the field where the weights are"
)
# transformers takes null for false here, and looks ahead.
NOT_NULL = {"is_causal"}


def field_problem(name: str, value: Any, read: Collection[str]) -> str | None:
    """Returns what is wrong with a field that the family does not read, if anything.

    A null means "not set", so that an unknown field may be null.

    Args:
      read: fields that every family reads.
    """
    if value is None and name not in NOT_NULL:
        return None
    if name in NEUTRAL:
        wanted = NEUTRAL[name]
        if value in wanted:
            return None
        listed = [*map(repr, wanted), *([] if name in NOT_NULL else ["null"])]
        advice = QUANTISED if name.startswith("quantization") else ""
        return (
            f"{name} = {value!r:.200} is not supported (only {' or '.join(listed)})"
            + advice
        )
    # Versions of programs and of models.
    if name in IGNORED or name in read or name.endswith("_version"):
        return None
    return (
        f"{name} = {value!r:.200} is a field this library does not know: if it says "
        "nothing about the forward pass, remove it from a copy of the directory"
    )
