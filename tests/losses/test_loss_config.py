"""Constants that a loss does not read, and what has no meaning, are refused."""

import dataclasses

import pytest

from tpmm_jax.config import Config, ModelSource, set_field
from tpmm_jax.data.config import DataConfig
from tpmm_jax.errors import BadInput
from tpmm_jax.losses import LOSSES, LossConfig
from tpmm_jax.merging import RULES, ReferenceConfig
from tpmm_jax.rewards import ScorerConfig
from tpmm_jax.steps import TrainConfig

WRONG = [
    (dict(name="dpoo"), "loss.name"),
    (dict(name="sigmoid"), "TRL's 'sigmoid' is 'dpo' here"),
    (dict(name=[]), "one or more losses"),
    (dict(name=["dpo", "dpo"]), "each of them once"),
    (dict(name=["dpo", "simpo"]), "which has no reference"),
    (dict(name=["dpo", "sft"], weights=[1.0]), "one weight each"),
    (dict(name="dpo", weights=[1.0]), "one weight each"),
    (dict(name=["dpo", "sft"], weights=[1.0, 0.0]), "positive, finite"),
    (dict(beta=0.0), "loss.beta"),
    (dict(beta=float("nan")), "loss.beta"),
    (dict(beta=float("inf")), "loss.beta"),
    (dict(name="simpo"), "2.0 is usual"),
    (dict(name="sft", beta=0.2), "loss.beta has no meaning for sft"),
    (dict(name="cdpo"), "loss.label_smoothing"),
    (dict(name="exo"), "1e-3 is usual"),
    (dict(name="robust", label_smoothing=0.5), "loss.label_smoothing"),
    (dict(name="aot", label_smoothing=-0.1), "loss.label_smoothing"),
    (dict(name="dpo", label_smoothing=0.1), "loss.label_smoothing"),
    (dict(name="dpo", length_normalized=False), "loss.length_normalized"),
    (dict(name="bco", f_divergence_type="forward_kl"), "loss.f_divergence_type"),
    (dict(f_alpha_divergence_coef=2.0), "only for 'alpha_divergence'"),
    (dict(ld_alpha=1.5), "loss.ld_alpha"),
    (dict(name="orpo", ld_alpha=0.5), "loss.ld_alpha"),
    (dict(name="aot", use_weighting=True), "loss.use_weighting"),
    (dict(name=["dpo", "sft"], use_weighting=True), "no value for one pair alone"),
    (dict(name="discopop", discopop_tau=0.0), "loss.discopop_tau"),
    (dict(discopop_tau=0.1), "loss.discopop_tau has no meaning for dpo"),
    (dict(name="alphapo", beta=2.0, alphapo_alpha=0.0), "loss.alphapo_alpha"),
    (dict(name="beta_dpo", beta_keep=0.0), "loss.beta_keep"),
    (dict(name="dr_dpo", dr_beta=0.0), "loss.dr_beta"),
    (dict(name="madpo", c_max=0.5), "loss.c_max"),
    (dict(name="madpo", tau=0.0), "loss.tau"),
    (dict(name="madpo", lam=0.0), "loss.lam"),
    (dict(name="beta_dpo", beta_momentum=1.0), "loss.beta_momentum"),
    (dict(name="cpo", cpo_alpha=-1.0), "loss.cpo_alpha"),
    (dict(name="cpo", cpo_alpha=float("inf")), "loss.cpo_alpha"),
    (dict(name="alphapo", beta=2.0, alphapo_alpha=float("nan")), "loss.alphapo_alpha"),
    (dict(name="simpo", beta=2.0, gamma_beta_ratio=float("inf")), "loss.gamma_beta"),
    (dict(name="discopop", discopop_tau=float("inf")), "loss.discopop_tau"),
    (dict(name="beta_dpo", beta_gain=float("inf")), "loss.beta_gain"),
    (
        dict(name=["dpo", "bco"], f_divergence_type="js_divergence"),
        "'bco' is not a loss",
    ),
    (
        dict(name=["aot", "hinge"], f_divergence_type="forward_kl"),
        "'aot' is not a loss",
    ),
    (
        dict(
            f_divergence_type="alpha_divergence", f_alpha_divergence_coef=float("nan")
        ),
        "loss.f_alpha_divergence_coef",
    ),
]


def test_a_divergence_goes_with_losses_of_a_margin_and_sft():
    LossConfig(name=["dpo", "ipo", "sft"], f_divergence_type="forward_kl").validate()


@pytest.mark.parametrize("wrong, wanted", WRONG, ids=[str(w) for w, _ in WRONG])
def test_configs_without_meaning_are_refused(wrong, wanted):
    with pytest.raises(BadInput, match=wanted):
        LossConfig(**wrong).validate()


CHANGED = dict(
    beta=0.7, label_smoothing=0.2, length_normalized=False,
    f_divergence_type="js_divergence", ld_alpha=0.5, use_weighting=True,
    discopop_tau=0.3, gamma_beta_ratio=0.4, alphapo_alpha=0.5, cpo_alpha=0.5,
    beta_gain=0.3, beta_momentum=0.5, beta_keep=0.5, dr_beta=0.5, c_max=2.0, tau=3.0,
    lam=0.5,
)  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_each_constant_is_read_or_refused(name):
    base = dict(label_smoothing=0.1) if name in ("cdpo", "robust", "exo") else {}
    base |= dict(beta=2.0) if name in ("simpo", "alphapo") else {}
    for field, value in CHANGED.items():
        config = LossConfig(name=name, **{**base, field: value})
        if field in LOSSES[name].reads:
            config.validate()
        else:
            with pytest.raises(BadInput, match=f"loss.{field}"):
                config.validate()
    fields = {f.name for f in dataclasses.fields(LossConfig)}
    others = {"name", "weights", "f_alpha_divergence_coef"}
    assert fields - others == set(CHANGED)


def whole(rule, **loss):
    return Config(
        iterations=1,
        model=ModelSource(source="somewhere"),
        data=DataConfig(prompts="prompts.jsonl"),
        scorer=ScorerConfig(name="m:f"),
        reference=ReferenceConfig(rule=rule),
        loss=LossConfig(**loss),
        train=TrainConfig(learning_rate=1e-5),
    )


FREE = [
    dict(name="simpo", beta=2.0), dict(name="orpo"), dict(name="cpo"),
    dict(name="sft"), dict(name=["cpo", "orpo"]),
]  # fmt: skip


@pytest.mark.parametrize("loss", FREE, ids=str)
def test_no_reference_is_ignored_and_none_is_missing(loss):
    whole("none", **loss).validate()
    for rule in RULES:
        with pytest.raises(BadInput, match=f"reference.rule={rule} would be ignored"):
            whole(rule, **loss).validate()


@pytest.mark.parametrize("name", ["dpo", "aot", ["dpo", "sft"]], ids=str)
def test_a_loss_of_a_reference_is_not_reference_free_silently(name):
    whole("sft", name=name).validate()
    with pytest.raises(BadInput, match="needs a reference; set"):
        whole("none", name=name).validate()


def test_a_loss_of_a_batch_wants_more_than_one_pair():
    for name in ("aot", "beta_dpo", ["dpo", "aot_unpaired"]):
        config = set_field(whole("sft", name=name), "train.batch_size=1")
        with pytest.raises(BadInput, match=r"train\.batch_size is 1; use at least 2"):
            config.validate()
    set_field(whole("sft", name="dpo"), "train.batch_size=1").validate()


def test_lists_are_set_from_the_command_line():
    config = whole("sft", name="dpo")
    config = set_field(config, 'loss.name=["dpo", "bco", "sft"]')
    config = set_field(config, "loss.weights=[0.8, 0.2, 1]")
    config.validate()
    assert config.loss.terms == (("dpo", 0.8), ("bco", 0.2), ("sft", 1))
    assert set_field(config, "loss.weights=none").loss.weights is None
    assert set_field(config, "loss.name=ipo").loss.name == "ipo"
    assert set_field(config, "loss.ld_alpha=0.5").loss.ld_alpha == 0.5
    for wrong in ('loss.name=["dpo", 1]', "loss.weights=1", 'loss.weights=["a"]'):
        with pytest.raises(BadInput, match="wanted"):
            set_field(config, wrong)
    config = dataclasses.replace(config, loss=LossConfig(name=["dpo", "sft"]))
    assert config.loss.name == ("dpo", "sft")
    config.validate()
