"""The page Compose: what a person changes is checked, counted, told beside its field, and becomes the command."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support.studio import folder, until, use
from tinyllm.studio.form import Draft
from tinyllm.studio.processes import Start


def one(user: Any, marker: str) -> Any:
    """The first visible element of a marker."""
    return next(iter(user.find(marker=marker).elements))


def texts(user: Any, marker: str) -> str:
    return str(one(user, marker).text)


def seen(user: Any, marker: str) -> list[Any]:
    """The visible elements of a marker; none is no error."""
    try:
        return list(user.find(marker=marker).elements)
    except AssertionError:
        return []


def seen_text(user: Any, content: str) -> bool:
    try:
        return bool(user.find(content).elements)
    except AssertionError:
        return False


def studio_of(tmp_path: Path) -> Any:
    pytest.importorskip("nicegui", reason="needs the extra studio")
    from tinyllm.studio.studio import Studio

    return Studio(settings=folder(tmp_path))


@pytest.mark.slow
def test_a_mistake_is_told_beside_its_field_and_its_correction_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    studio = studio_of(tmp_path)
    begun: list[Any] = []

    def train(settings: list[str], *, name: str) -> Start:
        begun.append((settings, name))
        return Start(
            id="1", program="train", arguments=settings, path=str(tmp_path / "outputs" / "x y"), pid=1, time=0.0
        )

    monkeypatch.setattr(studio.processes, "train", train)

    async def story(user: Any) -> None:
        await user.open("/")
        one(user, "key:model").set_value("pico")
        one(user, "key:tokenizer").set_value("byte")
        await until(lambda: studio.report.choices.get("model") == "pico")
        assert one(user, "key:model.d_model").props["placeholder"] == "64"
        user.find(marker="key:model.n_heads").type("3")
        await until(lambda: seen(user, "problem:model.n_heads"))
        text = "value not allowed (model.d_model=64): d_model=64 is not divisible by n_heads=3"
        assert texts(user, "problem:model.n_heads") == texts(user, "problem:model.d_model") == text
        assert texts(user, "problem") == text and not one(user, "start").enabled
        user.find(marker="key:model.n_heads").clear().type("2")
        await until(lambda: not seen(user, "problem") and one(user, "start").enabled)
        command = texts(user, "command")
        assert command.endswith(" -m tinyllm.train model=pico tokenizer=byte model.n_heads=2")
        await until(lambda: seen_text(user, "115k"))
        user.find(marker="start").click()
        await until(lambda: begun)
        assert begun == [(["model=pico", "tokenizer=byte", "model.n_heads=2"], "pico_mha_pydocs")]
        await until(lambda: user.back_history[-1] == "/runs?run=x+y")
        await user.open("/")  # a reload shows the same
        assert texts(user, "command") == command and one(user, "key:model.n_heads").value == "2"

    use(story, studio)


@pytest.mark.slow
def test_options_bring_their_keys_and_take_them_away(tmp_path: Path) -> None:
    studio = studio_of(tmp_path)

    async def story(user: Any) -> None:
        await user.open("/")
        assert not seen(user, "key:dataset.path")
        one(user, "key:dataset").set_value("text")
        await until(lambda: seen(user, "key:dataset.path"))
        assert one(user, "key:dataset.path").props["placeholder"] == "required"
        await until(lambda: seen(user, "problem:dataset.path"))
        user.find(marker="key:dataset.path").type("/etc/passwd")
        await until(lambda: "outside the folders" in "".join(map(str, [e.text for e in seen(user, "problem")])))
        one(user, "key:dataset").set_value("pydocs")
        await until(lambda: not seen(user, "key:dataset.path"))
        assert studio.draft.settings == {"dataset": "pydocs"}
        # A key that is hidden is found by a search; a switch offers its words.
        user.find(marker="search").type("keep an exponential")
        await until(lambda: seen(user, "key:ema.enabled"))
        await until(lambda: hasattr(one(user, "key:ema.enabled"), "options"))
        assert list(one(user, "key:ema.enabled").options) == ["", "true", "false"]
        one(user, "key:ema.enabled").set_value("true")
        await until(lambda: studio.report.values.get("ema.enabled") == "true")
        # What is wrong with a hidden key opens its group, and the panel leads to it.
        user.find(marker="search").clear().type("ema.decay")
        await until(lambda: seen(user, "key:ema.decay"))
        one(user, "key:ema.decay").set_value("2")
        await until(lambda: seen(user, "problem"))
        user.find(marker="search").clear()
        await until(lambda: seen(user, "key:seed"))
        await until(lambda: seen(user, "problem:ema.decay"))
        assert texts(user, "reveal") == "Go to ema.decay"
        user.find(marker="reset").click()
        await until(lambda: studio.report.values.get("ema.enabled") == "false")
        assert studio.draft == Draft()

    use(story, studio)


@pytest.mark.slow
def test_recipes_and_runs_are_starting_points(tmp_path: Path, tiny_run: Path) -> None:
    studio = studio_of(tmp_path)
    studio.settings = studio.processes.settings = folder(tiny_run.parent)
    object.__setattr__(studio.settings, "outputs", tiny_run.parent)

    async def story(user: Any) -> None:
        await user.open("/")
        await until(lambda: f"run:{tiny_run}" in one(user, "origin").options)
        one(user, "origin").set_value("recipe:tools")
        await until(lambda: studio.report.choices.get("dataset") == "tasks")
        assert studio.draft.settings == {"experiment": "tools"}
        assert one(user, "key:dataset").props["display-value"] == "tasks"
        assert one(user, "origin").value == "recipe:tools"
        one(user, "origin").set_value(f"run:{tiny_run}")
        await until(lambda: studio.draft.settings.get("trainer.max_steps") == "20")
        await until(lambda: one(user, "start").enabled)
        assert one(user, "origin").value is None
        await until(lambda: seen_text(user, "about "))  # the time, from that very run
        studio.draft.replace([])
        await user.open(f"/?from={tiny_run}")
        assert studio.draft.settings["trainer.max_steps"] == "20"
        studio.draft.replace([])
        await user.open("/?from=/etc")
        assert studio.draft.settings == {}

    use(story, studio)


@pytest.mark.slow
def test_another_browser_sees_what_one_changes(tmp_path: Path) -> None:
    studio = studio_of(tmp_path)

    async def story(user: Any) -> None:
        await user.open("/")
        await until(lambda: studio.report.values)
        studio.draft.set("seed", "7")  # as the page of another browser does
        await until(lambda: one(user, "key:seed").value == "7")
        assert texts(user, "command").endswith(" seed=7")

    use(story, studio)


@pytest.mark.slow
def test_a_file_is_chosen_below_the_folders(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "<b>a.txt").write_text("a")
    (tmp_path / "texts" / ".hidden").write_text("a")
    studio = studio_of(tmp_path)

    async def story(user: Any) -> None:
        await user.open("/")
        one(user, "key:dataset").set_value("text")
        await until(lambda: seen(user, "key:dataset.path"))
        user.find(marker="browse:dataset.path").click()
        for name in (str(tmp_path), "texts"):
            await until(partial(seen, user, f"entry:{name}"))
            user.find(marker=f"entry:{name}").click()
        await until(lambda: seen(user, "entry:<b>a.txt"))
        assert not seen(user, "entry:.hidden")
        user.find(marker="entry:<b>a.txt").click()
        await until(lambda: one(user, "key:dataset.path").value == str(tmp_path / "texts" / "<b>a.txt"))

    use(story, studio)
