"""The page Write: a simulated user chooses, mistypes, writes, points at tokens and stops."""

import asyncio
import threading
from collections.abc import Callable, Generator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from tests.support.studio import use
from tinyllm.inference.conversing import CALL, RESULT, TEXT
from tinyllm.studio.program import Settings
from tinyllm.studio.writing import desk as desk_module
from tinyllm.studio.writing.models import CheckpointId, LoadedModel
from tinyllm.studio.writing.pieces import END, Alternative, Piece, WrittenToken

pytestmark = pytest.mark.slow
MARKUP = "<img src=x onerror=alert(1)>"


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Two runs with a checkpoint each, as far as the page looks at them; the name of one is markup."""
    for name, steps in (("first", (10,)), ("<b>second", (20, 30))):
        for step in steps:
            checkpoint = tmp_path / "outputs" / name / "checkpoints" / f"step-{step:06d}"
            checkpoint.mkdir(parents=True)
            (checkpoint / "manifest.json").write_text("{}")
        (tmp_path / "outputs" / name / "run.json").write_text("{}")
    return tmp_path / "outputs"


def token(text: str, *, excluded_by: str = "") -> WrittenToken:
    chosen = Alternative(text, 0.25, 0.5, "")
    return WrittenToken(chosen, (Alternative("other", 0.7, 0.0, excluded_by), chosen))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Models that say markup, then wait for the event; they need no checkpoint."""
    goes_on = threading.Event()

    def say(*_: Any, **__: Any) -> Generator[Piece, None, None]:
        yield Piece(TEXT, MARKUP, (token(MARKUP, excluded_by="top_k"),))
        yield Piece(CALL, "calculator 1+1", (token("1"),))
        yield Piece(RESULT, "2")
        while not goes_on.wait(0.3):
            yield Piece(TEXT, "…", (token("…"),))
        yield Piece(END, "1 token", (token("<eos>"),))

    def load(which: CheckpointId, **_: Any) -> LoadedModel:
        tokenizer: Any = None
        return LoadedModel(model=None, tokenizer=tokenizer, template=None, autocast=nullcontext)

    monkeypatch.setattr(desk_module, "continuation", say)
    monkeypatch.setattr(desk_module, "answer", say)
    monkeypatch.setattr(desk_module, "load", load)
    return goes_on


async def until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def is_shown(element: Any) -> bool:
    return element.visible and (element.parent_slot is None or is_shown(element.parent_slot.parent))


def visible(user: Any, kind: Any) -> list[Any]:
    return [element for element in user.client.elements.values() if isinstance(element, kind) and is_shown(element)]


def texts(user: Any) -> list[str]:
    ui = pytest.importorskip("nicegui").ui
    return [label.text for label in visible(user, ui.label)]


def labelled(user: Any, label: str) -> Any:
    [element] = [each for each in user.client.elements.values() if each.props.get("label") == label]
    return element


def test_a_text_grows_its_tokens_are_explained_and_it_is_stopped(outputs: Path, written: threading.Event) -> None:
    ui = pytest.importorskip("nicegui", reason="needs the extra studio").ui

    async def story(user: Any) -> None:
        await user.open("/write")
        await until(lambda: labelled(user, "Run").value)
        labelled(user, "Run").set_value("first")
        labelled(user, "Second run").set_value("<b>second")
        await until(lambda: len(visible(user, ui.select)) == 4)
        assert [each.value for each in visible(user, ui.select)] == [
            *("first", "step-000010", "<b>second", "step-000030"),
        ]
        labelled(user, "Temperature").set_value("abc")
        assert labelled(user, "Temperature").error == "wrong type (temperature=abc): must be a number"
        user.find(marker="write").click()
        await asyncio.sleep(0.05)
        assert MARKUP not in texts(user), "nothing starts with a wrong setting"
        labelled(user, "Temperature").set_value("0.5")
        assert labelled(user, "Temperature").error is None
        labelled(user, "Prompt").set_value("Once")
        user.find(marker="write").click()
        await until(lambda: texts(user).count("result 2") == 2)
        assert texts(user).count(MARKUP) == texts(user).count("Once") == 2, "both write, and markup is text"
        commands = [text for text in texts(user) if "tinyllm.generate" in text]
        assert all("temperature=0.5" in command and "prompt=Once" in command for command in commands)
        assert len(commands) == 2
        [first, second] = [each for each in visible(user, ui.label) if each.text == MARKUP]
        user.find(MARKUP).trigger("mouseenter")
        await until(lambda: len(visible(user, ui.table)) == 2)
        rows = visible(user, ui.table)[0].rows
        assert [(row["text"], row["drawn"]) for row in rows] == [
            ("other", "excluded by top_k"),
            (f"▸ {MARKUP}", "50.0%"),
        ]
        assert all("pointed" in label.classes for label in (first, second))

        reloaded = user.client
        await user.open("/write")
        assert user.client is not reloaded
        await until(lambda: texts(user).count(MARKUP) == 2)
        assert labelled(user, "Prompt").value == "Once" and labelled(user, "Temperature").value == "0.5"
        user.find(marker="stop").click()
        await until(lambda: texts(user).count("stopped") == 2)
        written.set()
        user.find(marker="write").click()
        await until(lambda: texts(user).count("■ 1 token") == 2)
        await until(lambda: "Stop" not in [button.text for button in visible(user, ui.button)])

    use(story, Settings(outputs=outputs))


def test_a_conversation_keeps_its_turns_until_a_new_one(outputs: Path, written: threading.Event) -> None:
    ui = pytest.importorskip("nicegui", reason="needs the extra studio").ui
    written.set()

    async def story(user: Any) -> None:
        await user.open("/write")
        await until(lambda: labelled(user, "Run").value)
        [modes] = visible(user, ui.toggle)
        modes.set_value("Chat")
        await until(lambda: labelled(user, "Message").visible)
        assert not labelled(user, "Stop string").visible, "chat has none"
        user.find(marker="write").click()
        await until(lambda: labelled(user, "Message").error == "write a message")
        for count, message in enumerate(("Hi", "Go on"), start=1):
            labelled(user, "Message").set_value(message)
            user.find(marker="write").click()
            await until(lambda count=count: texts(user).count("■ 1 token") == count)
            assert labelled(user, "Message").value == ""
        assert [text for text in texts(user) if text in ("Hi", "Go on")] == ["Hi", "Go on"]
        assert any("tinyllm.chat" in text for text in texts(user))
        user.find(marker="new").click()
        await until(lambda: "Hi" not in texts(user))

    use(story, Settings(outputs=outputs))


def test_a_newer_checkpoint_is_offered_and_a_lost_one_told(outputs: Path, written: threading.Event) -> None:
    ui = pytest.importorskip("nicegui", reason="needs the extra studio").ui
    written.set()

    async def story(user: Any) -> None:
        await user.open("/write")
        await until(lambda: labelled(user, "Run").value)
        labelled(user, "Run").set_value("first")
        checkpoints = outputs / "first" / "checkpoints"
        (checkpoints / "step-000010").rename(checkpoints / "step-000040")

        def offered() -> list[Any]:
            return [
                each for each in visible(user, ui.button) if each.text.startswith("Use the newer checkpoint, step 40")
            ]

        await until(offered)
        user.find(marker="write").click()
        gone = "the checkpoint is no longer there (checkpoint=step-000010): choose another one"
        await until(lambda: gone in texts(user))
        user.find(marker="newer-1").click()
        await until(lambda: not offered())
        user.find(marker="write").click()
        await until(lambda: "■ 1 token" in texts(user) and gone not in texts(user))

    use(story, Settings(outputs=outputs))
