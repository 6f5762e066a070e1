"""The frame of the pages: navigation and theme."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.studio import folder, use


def test_every_page_leads_to_the_others_and_keeps_the_theme(tmp_path: Path) -> None:
    ui = pytest.importorskip("nicegui", reason="needs the extra studio").ui

    def theme(user: Any) -> tuple[str, bool | None]:
        [button] = user.find(marker="theme").elements
        return button.props["aria-label"], next(iter(user.find(ui.dark_mode).elements)).value

    async def story(user: Any) -> None:
        for path, name in (("/", "Compose"), ("/runs", "Runs"), ("/compare", "Compare"), ("/write", "Write")):
            await user.open(path)
            links = {link.text: link.props for link in user.find(ui.link).elements}
            assert {"Compose", "Runs", "Compare", "Write"} <= links.keys()
            assert [text for text, props in links.items() if "aria-current" in props] == [name]
        assert theme(user) == ("Theme: that of the system", None)
        user.find(marker="theme").click()
        user.find(marker="theme").click()
        assert theme(user) == ("Theme: dark", True)
        await user.open("/")
        assert theme(user) == ("Theme: dark", True)

    use(story, folder(tmp_path))
    assert not list(tmp_path.iterdir())
