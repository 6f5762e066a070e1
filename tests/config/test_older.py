"""A configuration of the first version is one of today with what came later at its neutral values."""

from omegaconf import DictConfig, OmegaConf, open_dict

import tinyllm
from tinyllm.config.older import upgraded

LATER = {
    "model": ("layerdrop", "layers", "parametrization"),
    "model.block": ("moe",),
    "model.block.attn": ("head_dim", "window", "sinks", "softcap"),
    "trainer": ("activation_checkpointing",),
    "loss": ("label_smoothing", "z_loss"),
}


def test_what_came_later_is_filled_in() -> None:
    today = tinyllm.compose("attn=gqa", "model.d_model=64", "model.n_heads=2", "trainer.batch_size=3", "ffn=swiglu")
    old = OmegaConf.create(OmegaConf.to_container(today))
    assert isinstance(old, DictConfig)
    with open_dict(old):
        del old["ema"]
        for path, keys in LATER.items():
            for key in keys:
                del OmegaConf.select(old, path)[key]
    assert OmegaConf.to_container(upgraded(old), resolve=True) == OmegaConf.to_container(today, resolve=True)


def test_the_model_alone_may_be_of_an_earlier_version() -> None:
    today = tinyllm.compose("attn=gqa", "layers=pattern", 'model.layers.kinds={a:"attn=mqa",b:""}',
                            "model.layers.pattern=[a,b]")  # fmt: skip
    old = OmegaConf.create(OmegaConf.to_container(today))
    assert isinstance(old, DictConfig)
    with open_dict(old):
        del old.model["parametrization"]
    assert OmegaConf.to_container(upgraded(old), resolve=True) == OmegaConf.to_container(today, resolve=True)
    with open_dict(old):
        old.model._target_ = "mine.Model"
    assert upgraded(old) is old


def test_what_is_of_today_stays() -> None:
    today = tinyllm.compose("attn=mla", "moe=aux_free", "layers=pattern", 'model.layers.kinds={a:"attn=mqa",b:""}',
                            "model.layers.pattern=[a,b]")  # fmt: skip
    assert upgraded(today) is today
