"""The form of Compose is what ``conf/`` says, and its command is what a person would type."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.studio import folder
from tinyllm.config.option_docs import read_program
from tinyllm.config.option_files import groups
from tinyllm.studio.checking import examine
from tinyllm.studio.form import HIDDEN, START, Draft, Form
from tinyllm.studio.report import Problem
from tinyllm.studio.starting_points import run_settings, starting_points


@pytest.mark.slow
def test_every_group_and_key_of_train_has_a_row_with_its_comment() -> None:
    form, program = Form(), read_program("train")
    rows = {row.key: row for row in form.rows({})}
    assert {key for key, row in rows.items() if row.is_group} == {group.name for group in program.groups} - {START}
    assert {group.name for group in program.groups} <= set(groups())
    for key in program.keys.values():
        assert key.path in HIDDEN or (rows[key.path].meaning, rows[key.path].default) == (key.meaning, key.default)
    for group in program.groups:
        for option in group.options if group.name != START else ():
            shown = {row.key: row for row in form.rows({group.name: option.name})}
            assert dict(shown[group.name].options).keys() == {other.name for other in group.options}
            for key in option.keys.values() if option.package else ():
                assert shown[f"{option.package}.{key.path}"].meaning == key.meaning
    assert all(row.meaning for row in rows.values() if not row.is_group)


def test_an_option_file_of_ones_own_appears_by_itself(tmp_path: Path) -> None:
    (tmp_path / "attn").mkdir()
    file = tmp_path / "attn" / "mine.yaml"
    text = "# @package model.block.attn\n# Attention of my own.\n_target_: tinyllm.nn.attention.mha.MHA\n"
    file.write_text(f"{text}_partial_: true\nqk_norm: true  # what it does\n")
    rows = {row.key: row for row in Form(tmp_path).rows({"attn": "mine"})}
    assert dict(rows["attn"].options)["mine"] == "Attention of my own."
    assert rows["model.block.attn.qk_norm"].meaning == "what it does"
    assert "model.block.attn.window" not in rows


@pytest.mark.slow
def test_an_option_file_of_ones_own_is_checked_and_counted(tmp_path: Path) -> None:
    (tmp_path / "ffn").mkdir()
    text = "# @package model.block.ffn\n_target_: tinyllm.nn.feedforward.MLP\n_partial_: true\nactivation: relu\n"
    (tmp_path / "ffn" / "wide.yaml").write_text(f"{text}d_ff: 512\n")
    settings = replace(folder(tmp_path), config_dir=tmp_path)
    plain, wide = (examine(["model=pico", *more], settings) for more in ([], ["ffn=wide"]))
    assert plain.figures is not None and wide.problem is None and wide.figures is not None
    # 2 layers of width 64, whose two matrices are 512 wide instead of 256.
    assert wide.figures.parameters - plain.figures.parameters == 2 * 2 * 64 * 256
    assert wide.choices["ffn"] == "wide" and wide.values["model.block.ffn.d_ff"] == "512"


@pytest.mark.slow
def test_search_finds_names_descriptions_and_options() -> None:
    rows = Form().rows({})
    found = {row.key for row in rows if row.matches(["learning", "rate"])}
    assert {"optimizer.lr", "schedule.min_lr"} <= found and "model.d_model" not in found
    assert {row.key for row in rows if row.matches(["grouped-query"])} >= {"attn"}


def test_the_command_is_quoted_for_a_shell(tmp_path: Path) -> None:
    draft = Draft()
    for key, value in (
        ("seed", "1"),
        ("run.name", "it's $x"),
        ("experiment", "baby"),
        ("trainer.sample_prompt", "a b"),
    ):
        assert draft.set(key, value)
    assert not draft.set("seed", "1") and draft.set("seed", None) and not draft.set("seed", None)
    words = shlex.split(draft.command(tmp_path / "my conf"))
    assert words[1:4] == ["-m", "tinyllm.train", "--config-dir"] and words[4] == str(tmp_path / "my conf")
    assert words[5:] == ["experiment=baby", "run.name=it's $x", "trainer.sample_prompt=a b"] == draft.arguments
    again = Draft()
    again.replace(words[5:])
    assert again == draft


def test_a_check_speaks_as_the_command_line_does(tmp_path: Path) -> None:
    settings = folder(tmp_path)
    wrong = examine(["model=pico", "model.n_heads=3"], settings)
    text = "value not allowed (model.d_model=64): d_model=64 is not divisible by n_heads=3"
    assert wrong.problem == Problem(text=text, key="model.d_model") and wrong.figures is None
    assert (
        wrong.problem.beside("model.d_model", {})
        == wrong.problem.beside("model.n_heads", {"model.n_heads": "3"})
        == text
    )
    assert wrong.problem.beside("model.n_heads", {}) == wrong.problem.beside("seed", {"seed": "3"}) == ""
    assert wrong.values["model.n_heads"] == "3" and wrong.choices["model"] == "pico"
    unknown = examine(["model.n_head=3"], settings).problem
    assert unknown is not None and unknown.key == "model.n_head" and "did you mean model.n_heads" in unknown.text
    outside = examine(["dataset=text", "dataset.path=/etc/passwd"], settings).problem
    assert outside is not None and outside.text.startswith(
        "outside the folders of the studio (dataset.path=/etc/passwd)"
    )


@pytest.mark.slow
def test_a_check_counts_what_the_run_would_cost(tmp_path: Path) -> None:
    settings = ["model=pico", "tokenizer=byte", "trainer.max_steps=50", "trainer.batch_size=4", "trainer.seq_len=64"]
    report = examine(settings, folder(tmp_path))
    figures = report.figures
    assert report.problem is None and figures is not None
    # 2 layers of width 64: 12·64² weights each, two norms each and one at the end, and 256 embeddings.
    assert figures.parameters == 2 * (12 * 64**2 + 2 * 64) + 64 + 256 * 64
    assert (figures.steps, figures.tokens_per_step, figures.tokens) == (50, 256, 12_800)
    assert figures.flops == 12_800 * figures.flops_per_token
    assert report.values["optimizer.lr"] != "null" and report.words["checkpoint.enabled"] == ["true", "false"]
    assert report.words["trainer.device"] == ["auto", "cpu", "cuda", "mps"]


@pytest.mark.slow
def test_an_earlier_run_is_a_starting_point(tmp_path: Path, tiny_run: Path) -> None:
    from tinyllm.runs.listing import find_runs

    settings = folder(tiny_run.parent)
    points = starting_points(Form().recipes, find_runs([tiny_run.parent]))
    assert f"run:{tiny_run}" in points and "recipe:baby" in points
    arguments = run_settings(tiny_run, settings)
    assert "trainer.max_steps=20" in arguments and any(one.startswith("dataset.path=") for one in arguments)
    assert examine(arguments, settings).problem is None
