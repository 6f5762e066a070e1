"""Data sets by name, from a server that answers like the hub: downloads, broken ones, refusals, no answer."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import hub_sets
from tests.support.hub_server import COMMIT, HubServer, serving

pytestmark = pytest.mark.slow

Prepare = Callable[..., subprocess.CompletedProcess[str]]
STORIES, WIKITEXT, FINEWEB = "roneneldan/TinyStories", "Salesforce/wikitext", "HuggingFaceFW/fineweb-edu"


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("sets")
    return {
        STORIES: hub_sets.tinystories(place / "stories", stories=800),
        WIKITEXT: hub_sets.wikitext(place / "wikitext", articles=20),
        FINEWEB: hub_sets.fineweb(place / "fineweb"),
    }


@pytest.fixture
def server(sets: dict[str, Path]) -> Iterator[HubServer]:
    with serving(sets) as server:
        yield server


@pytest.fixture
def prepare(server: HubServer, tmp_path: Path) -> Prepare:
    """Calls ``python -m tinyllm.prepare`` in a process of its own: the hub's library reads its variables once."""

    def run(
        *arguments: str, cache: str = "cache", home: str = "hf", **environ: str
    ) -> subprocess.CompletedProcess[str]:
        variables = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / home), "HF_HUB_DOWNLOAD_TIMEOUT": "1"}
        variables |= {"TINYLLM_CACHE": str(tmp_path / cache), "HF_TOKEN_PATH": str(tmp_path / "token")}
        command = [sys.executable, "-m", "tinyllm.prepare", "tokenizer=byte", *arguments]
        return subprocess.run(
            command, env={**os.environ, **variables, **environ}, capture_output=True, text=True, timeout=120
        )

    return run


def tokens(answer: subprocess.CompletedProcess[str]) -> list[str]:
    assert answer.returncode == 0, answer.stderr
    return re.findall(r"(?:train|val) tokens +([\d,]+)", answer.stdout)


def error(answer: subprocess.CompletedProcess[str]) -> str:
    last = answer.stderr.splitlines()[-1]
    assert answer.returncode == 2 and last.startswith("error: "), answer.stderr
    return last


def test_by_name_as_from_a_copy_and_without_the_network(
    server: HubServer, prepare: Prepare, sets: dict[str, Path], tmp_path: Path
) -> None:
    by_name = prepare("dataset=tinystories")
    copy = prepare("dataset=tinystories", f"dataset.path={sets[STORIES]}")
    assert tokens(by_name) == tokens(copy)
    assert COMMIT in next((tmp_path / "hf" / "tinyllm").rglob("*.json")).read_text()
    shutil.copytree(tmp_path / "hf", tmp_path / "other machine", symlinks=True)
    offline = prepare("dataset=tinystories", cache="empty", home="other machine", HF_HUB_OFFLINE="1")
    assert tokens(offline) == tokens(by_name)
    missing = error(prepare("dataset=wikitext", HF_HUB_OFFLINE="1"))
    assert f"dataset.name={WIKITEXT}" in missing and "HF_HOME" in missing and "dataset.path=" in missing


@pytest.mark.exhaustive
def test_a_configuration_downloads_its_own_files(server: HubServer, prepare: Prepare, sets: dict[str, Path]) -> None:
    small = prepare("dataset=wikitext", "dataset.config=wikitext-2-raw-v1")
    copy = prepare("dataset=wikitext", "dataset.config=wikitext-2-raw-v1", f"dataset.path={sets[WIKITEXT]}")
    assert tokens(small) == tokens(copy)
    names = {name for _, name, _ in server.requests if name.endswith(".parquet")}
    assert names == {f"wikitext-2-raw-v1/{split}-00000-of-00001.parquet" for split in ("train", "validation")}


def test_a_stream_is_read_as_far_as_needed_and_once(server: HubServer, prepare: Prepare) -> None:
    limits = ("dataset=fineweb", "dataset.max_tokens=50000", "dataset.val_fraction=0.1")
    streamed = tokens(prepare(*limits))
    assert 50_000 <= sum(int(count.replace(",", "")) for count in streamed) < 51_000
    files = {name for _, name, _ in server.requests if name.endswith(".parquet")}
    assert files == {"sample/10BT/000_00000.parquet"}
    before = len(server.requests)
    assert tokens(prepare(*limits, "tokenizer=char"))  # a different tokenizer reads what is kept
    assert not [request for request in server.requests[before:] if request[1].endswith(".parquet")]
    whole = tokens(prepare(*limits[::2], "dataset.max_tokens=null"))
    downloaded = prepare(*limits[::2], "dataset.max_tokens=null", "dataset.streaming=false", cache="empty")
    assert tokens(downloaded) == whole


def test_a_broken_download_goes_on(server: HubServer, prepare: Prepare, sets: dict[str, Path]) -> None:
    name = "data/train-00002-of-00004.parquet"
    server.cut[name] = (sets[STORIES] / name).stat().st_size // 2
    broken = prepare("dataset=tinystories")
    assert "the download broke off" in error(broken) and "goes on where the download stopped" in error(broken)
    server.silent.clear()
    before = len(server.requests)
    assert tokens(prepare("dataset=tinystories"))
    again = {path for method, path, _ in server.requests[before:] if method == "GET"}
    assert name in again and "data/train-00000-of-00004.parquet" not in again


def test_refusals_are_one_line(server: HubServer, prepare: Prepare) -> None:
    server.denied.add(WIKITEXT)
    gated = prepare("dataset=wikitext")
    assert error(gated).startswith("error: the hub gives no access to the data set")
    assert "HF_TOKEN" in error(gated) and len(gated.stderr.splitlines()) == 1
    assert tokens(prepare("dataset=wikitext", "dataset.config=wikitext-2-raw-v1", HF_TOKEN="hf_secret"))
    unknown = error(prepare("dataset=hf", "dataset.name=roneneldan/TinyStory"))
    assert unknown.startswith("error: the hub has no such data set (dataset.name=roneneldan/TinyStory)")
    assert "no such revision (dataset.revision=v9)" in error(prepare("dataset=tinystories", "dataset.revision=v9"))


def test_no_answer_is_one_line_and_no_loop(server: HubServer, prepare: Prepare, tmp_path: Path) -> None:
    server.silent.set()
    answer = prepare("dataset=tinystories")
    assert error(answer).startswith(f"error: no answer from the hub (dataset.name={STORIES})")
    assert "HF_HOME" in error(answer) and "dataset.path=" in error(answer)
    assert len(answer.stderr.splitlines()) == 1
    assert not (tmp_path / "cache").exists()


def test_sources_of_a_mixture_have_names(prepare: Prepare, sets: dict[str, Path]) -> None:
    def mixture(stories: str = "", wiki: str = "") -> tuple[str, str]:
        wikitext = "dataset=wikitext dataset.config=wikitext-2-raw-v1"
        return "dataset=mixture", f'dataset.sources={{stories:"dataset=tinystories{stories}",wiki:"{wikitext}{wiki}"}}'

    by_name = prepare(*mixture(), "--json")
    copies = mixture(f" dataset.path={sets[STORIES]}", f" dataset.path={sets[WIKITEXT]}")
    copied = prepare(*copies, "--json", cache="other")
    assert by_name.returncode == copied.returncode == 0, by_name.stderr + copied.stderr
    told, expected = (
        {
            name: (facts["train tokens"], facts["val tokens"])
            for name, facts in json.loads(one.stdout)["sources"].items()
        }
        for one in (by_name, copied)
    )
    assert told == expected and list(told) == ["stories", "wiki"]
