"""What the user probably meant: similar names, the same key elsewhere, and the names that other tools use."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tinyllm.config.option_files import groups, options_with
from tinyllm.errors import UserError
from tinyllm.utils.nested import flatten

CLOSE = 0.7
"""Least similarity of a suggested name: gq suggests gqa, but mla does not suggest mqa."""
SHOWN = 8
"""Most names that an error message lists."""
NAMES: dict[str, str] = {
    # data and tokenizer
    "data_path data_dir data_file train_file input_file train_data_path train_data": "dataset.path",
    "val_file val_data_path eval_file validation_file": "dataset.val_path",
    "dataset dataset_name data": "dataset=",
    "tokenizer tokenizer_name tokenizer_type": "tokenizer=",
    "tokenizer_path tokenizer_dir": "tokenizer.path",
    "vocab_size bpe_vocab_size": "tokenizer.vocab_size",
    "bpe_min_frequency min_frequency": "tokenizer.min_frequency",
    "special_tokens": "tokenizer.special_tokens",
    "dataloader_num_workers dataloader_workers num_workers": "dataloader.workers",
    "dataloader_prefetch_factor prefetch_factor": "dataloader.prefetch_factor",
    "dataloader_persistent_workers persistent_workers": "dataloader.persistent_workers",
    "dataloader_pin_memory pin_memory": "dataloader.pin_memory",
    # the run
    "out_dir output_dir save_dir checkpoint_dir logging_dir": "run.dir",
    "file_name run_name experiment_name": "run.name",
    "resume resume_from resume_from_checkpoint": "resume",
    "initial_checkpoint_dir model_name_or_path pretrained_path": "init_from",
    "seed random_seed data_seed": "seed",
    "device": "trainer.device",
    "num_devices devices nproc_per_node num_gpus": "strategy.nproc_per_node",
    "max_iters max_steps num_steps train_steps total_steps steps iterations lr_decay_iters": "trainer.max_steps",
    "num_epochs epochs num_train_epochs max_epochs": "trainer.max_epochs",
    "max_tokens train_tokens": "trainer.max_tokens",
    "max_time": "trainer.max_minutes",
    "batch_size per_device_train_batch_size micro_batch_size train_batch_size device_batch_size": "trainer.batch_size",
    "grad_accum_steps grad_accumulation_steps gradient_accumulation_steps accumulate_grad_batches": (
        "trainer.grad_accum_steps"
    ),
    "total_batch_size total_batch_size_str global_batch_size": "trainer.total_batch_tokens",
    "block_size max_length max_seq_length seq_length sequence_length context_length": "trainer.seq_len",
    "grad_clip max_grad_norm max_norm gradient_clip_val clip_grad": "trainer.grad_clip",
    "amp use_amp dtype bf16 fp16 mixed_precision": "trainer.precision",
    "compile use_compile torch_compile": "trainer.compile.enabled",
    "compile_backend torch_compile_backend": "trainer.compile.backend",
    "compile_mode torch_compile_mode": "trainer.compile.mode",
    "compile_fullgraph": "trainer.compile.fullgraph",
    "compile_dynamic": "trainer.compile.dynamic",
    "grad_checkpointing gradient_checkpointing act_recomp activation_recomputation": "trainer.activation_checkpointing",
    "eval_interval eval_steps val_check_interval eval_every evaluation_strategy eval_strategy eval": (
        "trainer.eval_every"
    ),
    "eval_iters eval_batches val_iters": "trainer.eval_tokens",
    "log_interval logging_steps log_every_n_steps": "trainer.log_every",
    "sample_interval generate_every": "trainer.sample_every",
    "sample_chars sample_length": "trainer.sample_tokens",
    "prompt start": "trainer.sample_prompt",
    "save_model ckpt_interval save_interval save_steps checkpoint_interval save_every always_save_checkpoint": (
        "trainer.checkpoint_every"
    ),
    "save_total_limit keep_checkpoints": "checkpoint.keep",
    # loss, optimizer, schedule
    "z_loss": "objective.z_loss",
    "label_smoothing label_smoothing_factor": "objective.label_smoothing",
    "optimizer optim optimizer_name optimizer_type": "optimizer=",
    "learning_rate lr max_lr": "optimizer.lr",
    "weight_decay": "optimizer.weight_decay",
    "normuon use_normuon": "optimizer=muon optimizer.normalize_neurons",
    "beta1 beta2 lion_beta1 lion_beta2 adam_beta1 adam_beta2": "optimizer.betas",
    "adam_epsilon adam_eps eps": "optimizer.eps",
    "schedule lr_schedule lr_scheduler lr_scheduler_type decay_lr scheduler": "schedule=",
    "lr_warmup_steps warmup_iters warmup_steps warmup_ratio warmup": "schedule.warmup_steps",
    "lr_stable_steps": "schedule=wsd schedule.stable_steps",
    "lr_min min_lr": "schedule.min_lr",
    "use_ema": "ema.enabled",
    "ema_decay": "ema.decay",
    "ema_update_every": "ema.update_every",
    "ema_start_step ema_start": "ema.start_step",
    "curriculum_start_block_size": "curriculum.start_seq_len",
    "curriculum_steps": "curriculum.steps",
    # model
    "n_layer num_layers num_hidden_layers": "model.n_layers",
    "n_head num_heads num_attention_heads": "model.n_heads",
    "n_embd n_embed hidden_size hidden_dim embed_dim dim": "model.d_model",
    "dropout resid_dropout": "model.dropout",
    "attention_dropout attn_pdrop": "model.attn_dropout",
    "up_dim intermediate_size ffn_dim n_inner": "model.d_ff",
    "max_position_embeddings n_positions n_ctx": "model.max_seq_len",
    "n_kv_heads n_kv_head num_key_value_heads n_query_groups": "model.n_kv_heads",
    "weight_tying tie_weights tie_word_embeddings": "model.tie_embeddings",
    "parallel_block parallel_residual": "model.parallel_block",
    "layerdrop": "model.layerdrop",
    "doc_mask intra_doc_mask document_masking reset_attention_mask reset_position_ids": "model.document_mask",
    "canon canon_set conv_width kernel_size conv_kernel": "model.short_conv",
    "scaled_init": "model.scaled_init",
    "norm norm_type normalization": "norm=",
    "use_rmsnorm": "norm=rmsnorm",
    "norm_eps rms_norm_eps layer_norm_epsilon layer_norm_eps": "model.norm.eps",
    "ffn mlp mlp_type": "ffn=",
    "non_linearity activation hidden_act activation_function": "model.block.ffn.activation",
    "pos pos_encoding pos_emb position_embedding_type positional_encoding": "pos=",
    "use_rope": "pos=rope",
    "rope_base rope_theta": "model.pos.base",
    "attn attention attn_type attention_type": "attn=",
    "sliding_window window_size attention_window": "model.block.attn.window",
    "qk_norm qk_norm_eps use_qk_norm": "model.block.attn.qk_norm",
    "q_latent_dim q_lora_rank": "attn=mla model.block.attn.q_latent_dim",
    "kv_latent_dim kv_lora_rank": "attn=mla model.block.attn.kv_latent_dim",
    "rope_head_dim qk_rope_head_dim": "attn=mla model.block.attn.rope_head_dim",
    "moe use_moe": "moe=",
    "n_exp num_experts n_experts num_local_experts": "moe=aux_free model.block.moe.n_experts",
    "n_shared n_shared_experts": "moe=aux_free model.block.moe.n_shared",
    "n_act num_experts_per_tok top_k_experts": "moe=aux_free model.block.moe.n_active",
    "aux_free": "moe=aux_free",
    "alpha": "moe=aux_free model.block.moe.alpha",
    "gamma": "moe=aux_free model.block.moe.gamma",
    "coeff router_aux_loss_coef aux_loss_coeff": "moe=aux_loss model.block.moe.coeff",
    "layer_configs": "layers=jsonl model.layers.json",
    "layer_configs_jsonl": "layers=jsonl model.layers.path",
    # distributed training, loggers
    "ddp use_ddp": "strategy=ddp",
    "fsdp": "strategy=fsdp",
    "ddp_backend backend": "distributed.backend",
    "ddp_timeout": "distributed.timeout_s",
    "ddp_find_unused_parameters find_unused_parameters": "distributed.find_unused_parameters",
    "wandb_log use_wandb wandb": "logger=wandb",
    "wandb_project project": "logger=wandb logger.project",
    "wandb_run_name": "logger=wandb logger.name",
    "wandb_entity": "logger=wandb logger.entity",
    "logger report_to logger_name": "logger=",
    "tensorboard use_tensorboard": "logger=tensorboard",
}
"""Option names of nanoGPT, Hugging Face's Trainer, LitGPT and others, and our name: a key, a choice or both.

Names with the same meaning share an entry. ``group=`` takes the value.
"""

COMMANDS = {
    "config": "experiment=<name> loads a recipe; a directory of your own option files is added with --config-dir",
    "config_file": "experiment=<name> loads a recipe; a directory of your own option files is added with --config-dir",
    "memmap_dataset": "leave it out: all runs share one memory-mapped cache",
    "generate_only": "python -m tinyllm.generate run=<run directory>",
    "kv_cache": "python -m tinyllm.generate run=<run directory> kv_cache=false",
    "num_samples": "python -m tinyllm.generate run=<run directory> n_samples=…",
    "max_new_tokens": "python -m tinyllm.generate run=<run directory> max_new_tokens=…",
    "temperature": "python -m tinyllm.generate run=<run directory> temperature=…",
    "top_k": "python -m tinyllm.generate run=<run directory> top_k=…",
    "top_p": "python -m tinyllm.generate run=<run directory> top_p=…",
    "eval_only": "python -m tinyllm.evaluate run=<run directory>",
}
"""Options of other tools that are a program or a flag here, or are not needed."""

VALUES: dict[str, dict[str, str]] = {
    "norm": {
        "rms": "norm=rmsnorm",
        "rms_norm": "norm=rmsnorm",
        "layer": "norm=layernorm",
        "ln": "norm=layernorm",
        "layer_norm": "norm=layernorm",
    },
    "pos": {
        "learn": "pos=learned",
        "absolute": "pos=learned",
        "sin": "pos=sinusoidal",
        "sine": "pos=sinusoidal",
        "rotary": "pos=rope",
        "nope": "pos=none",
    },
    "ffn": {
        **{
            name: f"ffn=mlp model.block.ffn.activation={name}"
            for name in ("gelu_tanh", "relu", "relu2", "silu", "mish", "selu", "celu", "elu", "leaky_relu", "tanh")
        },
        "swish": "ffn=mlp model.block.ffn.activation=silu",
        "geglu": "ffn=glu model.block.ffn.gate=gelu",
        "reglu": "ffn=glu model.block.ffn.gate=relu",
        "swiglu_": "ffn=swiglu",
        "llama": "ffn=swiglu",
    },
    "attn": {
        "mha_rope": "attn=mha pos=rope",
        "full": "attn=mha",
        "causal": "attn=mha",
        "multihead": "attn=mha",
        "grouped": "attn=gqa",
        "multiquery": "attn=mqa",
        "sliding": "attn=mha model.block.attn.window=128",
        "flash": "attn=mha",
    },
    "optimizer": {
        "adam": "optimizer=adamw",
        "adamw_torch": "optimizer=adamw",
        "adamw_torch_fused": "optimizer=adamw",
        "adamw_8bit": "optimizer=adamw8bit",
        "adamw_bnb_8bit": "optimizer=adamw8bit",
    },
    "schedule": {
        "none": "schedule=constant",
        "constant_with_warmup": "schedule=constant schedule.warmup_steps=0.1",
        "warmup_stable_decay": "schedule=wsd",
        "cosine_with_warmup": "schedule=cosine",
    },
    "strategy": {"auto_ddp": "strategy=ddp", "none": "strategy=single", "single_process": "strategy=single"},
    "tokenizer": {"char_level": "tokenizer=char", "gpt2": "tokenizer=bpe_gpt2", "bytes": "tokenizer=byte"},
    "moe": {"true": "moe=aux_free", "false": "moe=none", "aux": "moe=aux_loss"},
    "dataset": {"file": "dataset=text", "memmap": "dataset=npy", "json": "dataset=jsonl"},
    "logger": {"tb": "logger=tensorboard", "all": "logger=wandb", "csv": "logger=none"},
}
"""Other tools' names for the options of a group."""

_BY_NAME = {name: ours for names, ours in NAMES.items() for name in names.split()}


def near(name: str, known: Iterable[str]) -> list[str]:
    """The ``known`` names that are similar to ``name``, the most similar first."""
    return difflib.get_close_matches(name, list(known), n=3, cutoff=CLOSE)


def unknown_key(
    path: str,
    value: object,
    known: Iterable[str],
    *,
    owner: str,
    root: Mapping[str, Any],
    unknown: str | None = None,
) -> UserError:
    """The error for an unknown key, with a suggestion.

    Args:
        path: the key.
        value: its value.
        known: the keys that exist in its place.
        owner: the class or node that has these keys, or the configuration.
        root: the whole configuration; keys of the same name elsewhere are suggested.
        unknown: the first part of ``path`` that does not exist; None: all of it.
    """
    prefix, _, name = (unknown or path).rpartition(".")
    known = sorted(known)
    options = options_with(prefix, name)
    other_tool = "" if name != path else meant_by(name)  # other tools have no dots in their names
    other_tool = meant_by(name, str(value)) if other_tool.endswith("…") else other_tool
    roots = {word.partition("=")[0].partition(".")[0] for word in other_tool.split()}
    last = path.rpartition(".")[2]
    same_name = [key for key in setting_keys(root) if key.rpartition(".")[2] == last]
    same_name = [key for key in same_name if key.endswith(f".{path}")] or same_name
    similar = same_name or [f"{prefix}.{other}" if prefix else other for other in near(name, known)]
    if other_tool and (roots <= root.keys() | set(groups()) or name in COMMANDS):
        hint = other_tool if name in COMMANDS else f"did you mean {other_tool}?"
    elif options:
        hint = f"choose {' or '.join(options)}, which {'has' if len(options) == 1 else 'have'} this key"
    elif similar:
        hint = f"did you mean {' or '.join(similar[:3])}?"
    else:
        hint = f"{owner} takes {listed(known)}"
    return UserError("unknown key", key=path, value=value, hint=hint)


def listed(names: Iterable[str]) -> str:
    """The names separated by commas; if there are many, the first few and how to see all of them."""
    names = list(names)
    if not names:
        return "no keys"
    return ", ".join(names) if len(names) <= SHOWN else f"{', '.join(names[:SHOWN])} … (--cfg job shows all)"


def setting_keys(node: Any, path: str = "") -> Iterator[str]:
    """The dotted keys of all settings, without ``_target_`` and other Hydra keys."""
    for key, value in flatten(node, path):
        if value != {} and "._" not in f".{key}":
            yield key


def meant_by(name: str, value: str | None = None) -> str:
    """Our name for an option of another tool; "" if the name is not known.

    Args:
        name: with or without leading dashes; - and _ are the same.
        value: its value, which is then part of the answer.
    """
    plain = name.lstrip("-").replace("-", "_").lower()
    if plain in COMMANDS:
        return COMMANDS[plain]
    our_name = _BY_NAME.get(plain, "")
    if our_name.endswith("="):
        return option_meant(our_name[:-1], value or "") or f"{our_name}{value or '…'}"
    is_key = bool(our_name) and "=" not in our_name.split(" ")[-1]
    return f"{our_name}={value or '…'}" if is_key and value is not None else our_name


def option_meant(group: str, value: str) -> str:
    """Our option for a value that another tool uses, e.g. ``norm=rmsnorm`` for ``rms``; "" if it is not known."""
    plain = value.strip("'\"").replace("-", "_").lower()
    known = VALUES.get(group, {})
    by_start = next((ours for prefix, ours in known.items() if prefix.endswith("_") and plain.startswith(prefix)), "")
    return known.get(plain, by_start)
