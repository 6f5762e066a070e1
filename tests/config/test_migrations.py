"""Configurations of earlier versions are upgraded with values that reproduce the old behaviour."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf, open_dict

import tinyllm
from tinyllm.config.migrations import upgraded
from tinyllm.config.renames import MOVED
from tinyllm.config.saved import saved_content, saved_settings, settings_text
from tinyllm.errors import UserError
from tinyllm.programs.resume import reconcile
from tinyllm.runs.facts import read_config
from tinyllm.runs.layout import CONFIG, OVERRIDES

LATER = {
    "model": ("layerdrop", "layers", "parametrization", "short_conv", "document_mask"),
    "model.block": ("moe",),
    "model.block.attn": ("head_dim", "window", "sinks", "softcap"),
    "trainer": ("activation_checkpointing",),
    "objective": ("label_smoothing", "z_loss"),
}


def test_missing_keys_are_filled_in() -> None:
    today = tinyllm.compose("attn=gqa", "model.d_model=64", "model.n_heads=2", "trainer.batch_size=3", "ffn=swiglu")
    old = OmegaConf.create(OmegaConf.to_container(today))
    assert isinstance(old, DictConfig)
    with open_dict(old):
        del old["ema"]
        for path, keys in LATER.items():
            for key in keys:
                del OmegaConf.select(old, path)[key]
    assert OmegaConf.to_container(upgraded(old), resolve=True) == OmegaConf.to_container(today, resolve=True)


def test_an_old_model_with_new_training_keys_is_upgraded() -> None:
    today = tinyllm.compose("attn=gqa", "layers=pattern", 'model.layers.kinds={a:"attn=mqa",b:""}',
                            "model.layers.pattern=[a,b]")  # fmt: skip
    old = OmegaConf.create(OmegaConf.to_container(today))
    assert isinstance(old, DictConfig)
    with open_dict(old):
        del old.model["parametrization"], old.model["short_conv"]
    assert OmegaConf.to_container(upgraded(old), resolve=True) == OmegaConf.to_container(today, resolve=True)
    with open_dict(old):
        old.model._target_ = "mine.Model"
    assert upgraded(old) is old


def test_a_current_configuration_is_unchanged() -> None:
    today = tinyllm.compose("attn=mla", "moe=aux_free", "layers=pattern", 'model.layers.kinds={a:"attn=mqa",b:""}',
                            "model.layers.pattern=[a,b]")  # fmt: skip
    assert upgraded(today) is today


@pytest.mark.parametrize("tied", [True, False])
def test_an_untied_head_trained_by_muon_stays_with_muon(tied: bool, tmp_path: Path) -> None:
    """Earlier versions had no key for it, so choosing the optimizer when resuming does not change it."""
    asked = ("optimizer=muon", f"model.tie_embeddings={str(tied).lower()}")
    old = OmegaConf.create(OmegaConf.to_container(tinyllm.compose(*asked), resolve=True))
    assert isinstance(old, DictConfig)
    with open_dict(old):
        del old.optimizer["orthogonal_head"]
    assert upgraded(old).optimizer.orthogonal_head is not tied
    OmegaConf.save(old, tmp_path / CONFIG)
    checkpoint: Any = SimpleNamespace(path=tmp_path, run_dir=tmp_path)
    for named in (("resume",), ("resume", "optimizer")):
        cfg = tinyllm.compose(*asked)
        notes = reconcile(cfg, checkpoint, named=named)
        assert cfg.optimizer.orthogonal_head is not tied and len(notes) == (not tied)
    if not tied:
        with pytest.raises(UserError, match=r"cannot change optimizer.orthogonal_head.*the run has true"):
            reconcile(tinyllm.compose(*asked), checkpoint, named=["optimizer.orthogonal_head"])


def test_an_earlier_run_of_muon_does_not_normalize_neurons() -> None:
    old = OmegaConf.create(
        OmegaConf.to_container(tinyllm.compose("optimizer=muon", "optimizer.normalize_neurons=true"))
    )
    assert isinstance(old, DictConfig)
    with open_dict(old):
        del old.optimizer["normalize_neurons"]
    assert upgraded(old).optimizer.normalize_neurons is False


def test_an_earlier_run_trains_without_kernels() -> None:
    today = tinyllm.compose()
    old = OmegaConf.create(OmegaConf.to_container(today))
    assert isinstance(old, DictConfig)
    with open_dict(old):
        del old.trainer["kernels"]
    assert today.trainer.kernels and not upgraded(old).trainer.kernels


def test_orthogonal_head_needs_an_untied_head() -> None:
    with pytest.raises(UserError, match=r"\(optimizer.orthogonal_head=true\): model.tie_embeddings=true turns"):
        tinyllm.compose("optimizer=muon", "optimizer.orthogonal_head=true")


@pytest.mark.parametrize("option", ["char", "byte", "bpe", "pretrained"])
def test_an_old_tokenizer_keeps_its_behaviour(option: str) -> None:
    """No markers and, for BPE, words of any length, so that a lost token cache is rebuilt unchanged."""
    overrides = [f"tokenizer={option}", *(["tokenizer.path=x"] if option == "pretrained" else [])]
    old = OmegaConf.create(OmegaConf.to_container(tinyllm.compose(*overrides)))
    assert isinstance(old, DictConfig)
    added = {"match_special": False} | ({"max_word": None} if option == "bpe" else {})
    added |= {"special_tokens": []} if option in ("char", "byte") else {}  # type: ignore[dict-item]
    with open_dict(old):
        for key in added:
            del old.tokenizer[key]
    filled = upgraded(old)
    assert {key: OmegaConf.to_container(filled.tokenizer)[key] for key in added} == added  # type: ignore[index,call-overload]


@pytest.mark.parametrize("option", ["mha", *(pytest.param(one, marks=pytest.mark.slow) for one in ("gqa", "mqa"))])
def test_an_old_run_resumes_without_notes_about_new_keys(option: str, tmp_path: Path) -> None:
    """The filled-in values change nothing, whether the part is in the block or in a kind of layer."""
    kinds = f'model.layers.kinds={{a:"attn={option}",b:"moe=aux_loss"}}'
    asked = (f"attn={option}", "moe=aux_free", "layers=pattern", kinds, "model.layers.pattern=[a,b]")
    today = tinyllm.compose(*asked)
    old = OmegaConf.create(OmegaConf.to_container(today))
    assert isinstance(old, DictConfig)
    later = {"qk_norm_eps", "qkv_bias", "nope", "normalize", "n_groups", "n_active_groups"}
    assert _without(old, later) == later
    OmegaConf.save(old, tmp_path / CONFIG)
    checkpoint: Any = SimpleNamespace(path=tmp_path, run_dir=tmp_path)
    assert reconcile(tinyllm.compose(*asked), checkpoint, named=["resume"]) == []


def _without(node: Any, keys: set[str]) -> set[str]:
    """Remove keys wherever they occur, and return those found."""
    there: set[str] = set()
    with open_dict(node):
        for key in list(node) if isinstance(node, DictConfig) else range(len(node)):
            if key in keys:
                del node[key]
                there.add(key)
            elif OmegaConf.is_config(node[key]):
                there |= _without(node[key], keys)
    return there


@pytest.mark.parametrize("old", MOVED)
def test_a_moved_class_is_found_by_its_old_name(old: str, tmp_path: Path) -> None:
    node: dict[str, Any] = {"_target_": old}
    content: dict[str, Any] = {"model": {}, "strategy": node}
    if old.startswith("tinyllm.nn.attention"):
        node["_partial_"] = True
        content = {"model": {"block": {"attn": node}}}
    file = tmp_path / "config.yaml"
    OmegaConf.save(content, file)
    saved = saved_content(file)  # refuses classes that no option file names for the node
    found = saved.model.block.attn if "strategy" not in content else saved.strategy
    assert found._target_ == MOVED[old] != old


def test_the_loss_of_an_old_run_is_the_objective_today(tmp_path: Path) -> None:
    """Its configuration had the keys in ``loss``, and so had the settings it saved."""
    asked = ("objective.z_loss=0.001", "objective.chunk_tokens=64")
    today = tinyllm.compose(*asked)
    old = OmegaConf.to_container(today)
    assert isinstance(old, dict)
    old["loss"] = {key: value for key, value in old.pop("objective").items() if key != "_target_"}
    OmegaConf.save(old, tmp_path / CONFIG)
    assert OmegaConf.to_container(upgraded(saved_content(tmp_path / CONFIG))) == OmegaConf.to_container(today)
    assert {key: value for key, value in read_config(tmp_path).items() if key.startswith("loss")} == {}
    settings = [setting.replace("objective.", "loss.") for setting in asked]
    (tmp_path / OVERRIDES).write_text(settings_text(settings), encoding="utf-8")
    assert saved_settings(tmp_path / OVERRIDES, config=tmp_path / CONFIG, config_dir=None) == list(asked)
    del old["loss"]  # the first version had no such keys at all
    OmegaConf.save(old, tmp_path / CONFIG)
    assert upgraded(saved_content(tmp_path / CONFIG)).objective == tinyllm.compose().objective


@pytest.mark.parametrize("key", ["loss.z_loss", "loss.label_smoothing", "loss.chunk_tokens"])
def test_an_old_key_of_the_loss_is_told_its_new_name(key: str) -> None:
    with pytest.raises(UserError, match=rf"{key}=0.*did you mean {key.replace('loss.', 'objective.', 1)}\?"):
        tinyllm.compose(f"{key}=0")
