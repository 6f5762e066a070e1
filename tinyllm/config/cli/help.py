"""``--help``: what a program does, how to write settings, its common settings, and every option of every group."""

import re
import shutil
import textwrap

from tinyllm.config.option_docs import File, Group, Key, Program, read_program

_EXAMPLES = {
    "train": [
        ("the default model on the built-in corpus", ""),
        ("your own text: a file, a folder or a glob", "dataset=text dataset.path=my.txt"),
        ("a different architecture", "attn=gqa ffn=swiglu norm=layernorm pos=learned"),
        ("a larger model, for longer", "model=tiny trainer.max_steps=5000"),
        ("resume a run that was stopped", "resume=outputs/2026-01-31/12-00-00_nano_a1b2"),
        ("three runs, one after another", "-m seed=1,2,3"),
    ],
    "generate": [
        ("sample from a trained model", "run=outputs/2026-01-31/12-00-00_nano_a1b2 prompt='The '"),
        ("more predictable text", "run=outputs/2026-01-31/12-00-00_nano_a1b2 temperature=0.5 top_k=20"),
        ("type prompts one after another", "run=outputs/2026-01-31/12-00-00_nano_a1b2 interactive=true"),
    ],
    "chat": [
        ("talk to a model that was trained on conversations", "run=outputs/2026-01-31/12-00-00_nano_a1b2"),
        ("with a tool", "run=outputs/2026-01-31/12-00-00_nano_a1b2 tools=calculator temperature=0"),
    ],
    "serve": [
        ("an HTTP server for a trained model", "run=outputs/2026-01-31/12-00-00_nano_a1b2"),
        ("two models, on another port", "runs={small:outputs/a,large:outputs/b} serve.port=8001"),
        ("a Hugging Face model, in int8", "run=path/to/llama quantize=int8"),
    ],
    "evaluate": [
        ("the whole validation split", "run=outputs/2026-01-31/12-00-00_nano_a1b2"),
        ("a Hugging Face model on your own text", "run=path/to/gpt2 dataset=text dataset.path=my.txt"),
    ],
    "pairs": [
        ("right against wrong answers", "run=outputs/tools dataset=tasks reward=[exact] tools=python_expression"),
        ("short against long right answers, 500 pairs", "run=outputs/tools reward=[exact,length] n_pairs=500"),
    ],
    "export": [
        ("for transformers, vLLM and other libraries", "run=outputs/2026-01-31/12-00-00_nano_a1b2 out=my_model"),
    ],
    "import_hf": [
        ("a run directory from a downloaded model", "path=path/to/gpt2 out=outputs/gpt2"),
    ],
    "prepare": [
        ("the built-in corpus, one token per character", "dataset=pydocs tokenizer=char"),
        (
            "your own text, in sub-word tokens",
            "dataset=text dataset.path=my.txt tokenizer=bpe tokenizer.vocab_size=8000",
        ),
    ],
    "verify_resume": [
        ("the default model, killed once", ""),
        ("killed five times, with two ranks", "kills=5 strategy=ddp strategy.nproc_per_node=2"),
        ("a different composition", "optimizer=muon ema.enabled=true trainer.max_steps=50"),
    ],
    "probe": [
        ("the default composition on every task", ""),
        ("compare kinds of attention", "attn=mha,gqa,mla tasks=[recall,induction] seeds=3"),
        ("what is lost with a sliding window", "model.block.attn.window=0,8 tasks=[recall]"),
    ],
    "coord_check": [
        ("muP with AdamW at four widths", ""),
        ("a different composition", "optimizer=muon attn=mla moe=aux_free ffn=swiglu"),
        ("without muP: the check fails", "parametrization=standard"),
    ],
    "compare": [
        ("compare kinds of attention at equal parameters and tokens", "attn=mha,gqa,mla seeds=3"),
        (
            "every combination of two choices, at equal FLOPs",
            "attn=mha,mla ffn=gelu,swiglu match=flops budget=flops budget.amount=1e13",
        ),
        ("optimizers, each with its learning rate tuned", "optimizer=adamw,lion,muon tune=optimizer.lr seeds=3"),
        ("as many seeds as a pilot shows are needed", "attn=mha,mqa seeds=auto effect=0.01 max_minutes=60"),
    ],
    "pipeline": [
        ("what would run, and what it costs", "recipe=assistant dry_run=true"),
        ("from nothing to an assistant that calls a tool", "recipe=assistant"),
        ("one stage longer; it and all behind it run again", "stages.tools.trainer.max_steps=1200"),
        ("a recipe of your own, three times", "recipe=file recipe.path=my_recipe.yaml seeds=3"),
    ],
    "scaling": [
        ("three budgets, sizes chosen automatically", "scaling.budgets=[1e12,3e12,1e13]"),
        ("predict the best size for a larger budget", "scaling.targets=[1e14]"),
        ("one learning rate for all sizes", "parametrization=mup optimizer.lr=0.003"),
    ],
    "describe": [
        ("the default model", ""),
        ("a model too large for this machine", "model=xlarge attn=gqa"),
        ("machine-readable", "model=large --json"),
    ],
}
"""By program: the purpose of each example, and its arguments."""

_COMMON = {
    program: keys.split()
    for program, keys in {
        "train": (
            "trainer.max_steps trainer.batch_size trainer.seq_len trainer.max_minutes trainer.precision "
            "optimizer.lr model.d_model model.n_layers seed run.dir resume"
        ),
        "describe": (
            "vs model.d_model model.n_layers model.n_heads model.max_seq_len trainer.batch_size "
            "trainer.seq_len trainer.precision trainer.activation_checkpointing"
        ),
        "verify_resume": (
            "kills kill_seed out trainer.max_steps trainer.checkpoint_every trainer.batch_size trainer.seq_len seed"
        ),
        "probe": "seeds examples out trainer.max_steps trainer.batch_size optimizer.lr seed",
        "scaling": (
            "scaling.budgets scaling.sizes scaling.targets scaling.seeds scaling.out trainer.batch_size optimizer.lr"
        ),
        "pipeline": "until seeds dry_run out seed trainer.precision",
        "coord_check": (
            "widths more_heads steps seeds growth shrinkage out trainer.batch_size trainer.seq_len "
            "trainer.grad_clip optimizer.lr seed"
        ),
        "compare": (
            "study question reference match match_by tolerance budget.amount seeds effect max_minutes tune "
            "tune_trials evaluations probes parallel out seed trainer.batch_size optimizer.lr"
        ),
    }.items()
}
"""Keys that the help shows. Programs that are not listed have few keys, all of which are shown."""

_TO_QUOTE = {
    "generate": "prompt='Once upon a time'",
    "chat": "system='Answer briefly.'",
    "evaluate": "run='my runs/first'",
    "serve": "run='my runs/first'",
    "pairs": "'reward=[exact,length]'",
    "export": "run='my runs/first'",
    "import_hf": "path='my models/gpt2'",
    "prepare": "dataset.path='my books/*.txt'",
}
"""By program: a setting that the shell would split or change without quotes."""
_TO_QUOTE_IN_TRAINING = "dataset.path='my books/*.txt', 'optimizer.betas=[0.9,0.99]'"
"""The same for programs with the settings of training."""


def help_text(program: str, *, width: int | None = None) -> str:
    """The text of ``--help``.

    Args:
        program: name of a root file in ``conf/``.
        width: columns; None: those of the terminal, at most 110.
    """
    columns = width or min(110, shutil.get_terminal_size((100, 24)).columns)
    known = read_program(program)
    command = f"python -m tinyllm.{program}"
    parts = [textwrap.fill(first_sentence(known.meaning), columns)]
    examples = [f"\n  # {what}\n  {command} {how}".rstrip() for what, how in _EXAMPLES.get(program, ())]
    if examples:
        parts.append("Examples" + "".join(examples))
    parts.append(
        textwrap.fill(
            "Write a setting as key=value and a choice as group=option. Settings take no dashes; flags such as --cfg"
            f" do. Quote what the shell would interpret: {_TO_QUOTE.get(program, _TO_QUOTE_IN_TRAINING)}.",
            columns,
        )
    )
    wanted = _COMMON.get(program)
    keys = [key for key in _all_keys(known) if wanted is None or key.path in wanted]
    if wanted:
        keys.sort(key=lambda key: wanted.index(key.path))
    title = "Common settings (key=default)" if wanted else "Settings (key=default)"
    if keys:
        parts.append(title + "".join("\n" + _key_row(key, columns) for key in keys))
    parts += [_group_rows(group, columns) for group in known.groups if group.options]
    own = "attn=gated" if any(group.name == "attn" for group in known.groups) else "dataset=mine"
    more = [
        ("print the composed configuration with every key, and run nothing", f"{command} --cfg job --resolve"),
        *[("add your own option files", f"{command} --config-dir my_conf {own}")] * bool(known.groups),
        *[("print the result as JSON", f"{command} --json")] * (program != "train"),
        ("every program, group and key, explained", "python -m tinyllm.reference"),
    ]
    parts.append("More" + "".join(f"\n  # {what}\n  {line}" for what, line in more))
    return "\n\n".join(parts)


def _all_keys(program: Program) -> list[Key]:
    """The keys of the root file, which take precedence, then those of the default options, with full paths."""
    keys = list(program.keys.values())
    for group in program.groups:
        for option in group.chosen:
            if option.package:
                keys += [
                    Key(path=f"{option.package}.{key.path}", default=key.default, meaning=key.meaning)
                    for key in option.keys.values()
                    if f"{option.package}.{key.path}" not in program.keys
                ]
    return keys


def _key_row(key: Key, columns: int) -> str:
    return _row(f"{key.path}={key.default}", key.meaning, columns, indent=2, column=30)


def _group_rows(group: Group, columns: int) -> str:
    """A group and its options; the default is marked with a star."""
    where = f"   sets {group.package}.*" if group.package else ""
    rows = [f"{group.name}={group.default or '…'}{where}"]
    rows += [_option_row(option, columns, chosen=option in group.chosen) for option in group.options]
    return "\n".join(rows)


def _option_row(option: File, columns: int, *, chosen: bool) -> str:
    return _row(
        f"{'*' if chosen else ' '} {option.name}",
        first_sentence(option.meaning),
        columns,
        indent=1,
        column=18,
    )


def _row(label: str, text: str, columns: int, *, indent: int, column: int) -> str:
    first = f"{' ' * indent}{label:<{column}}  "
    rest = " " * (indent + column + 2)
    return textwrap.fill(text, columns, initial_indent=first, subsequent_indent=rest, break_long_words=False)


def first_sentence(text: str) -> str:
    """The text up to the end of its first sentence."""
    return re.split(r"(?<=[^A-Z.]\.) (?=[A-Z])", text, maxsplit=1)[0]
