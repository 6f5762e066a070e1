"""The cache command lists token caches and removes old ones, but none that a living process uses or prepares."""

import builtins
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data.conftest import text_corpus
from tests.support.fixtures import Call
from tinyllm.data.cache_listing import find_caches, remove_cache, to_remove
from tinyllm.data.prepare import cached, prepare
from tinyllm.data.token_data import TokenData
from tinyllm.errors import UserError
from tinyllm.programs.cache import parse_age, parse_size
from tinyllm.tokenizers.byte import ByteTrainer
from tinyllm.utils.locks import try_lock

DAY = 86400


@pytest.fixture
def root(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("TINYLLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


def make(tmp_path: Path, name: str, size: int, age: float = 0) -> str:
    """A cache of about ``size`` bytes that nobody uses, last used ``age`` days ago; returns its key."""
    text = tmp_path / f"{name}.txt"
    text.write_text((f"some words in a text {name} " * (size // 20))[:size])
    folder = prepare(text_corpus(text), ByteTrainer()).path
    for file in (folder, folder.parent / f"{folder.name}.used.lock"):
        os.utime(file, (time.time() - age * DAY,) * 2)
    return folder.name


def names(root: Path) -> set[str]:
    return {cache.key for cache in find_caches(root)}


def test_the_list(tmp_path: Path, root: Path, call: Call) -> None:
    assert call("cache").out == "no caches\n"
    old, new = make(tmp_path, "old", 2000, age=3), make(tmp_path, "new", 4000)
    shown = call("cache")
    assert shown.code == 0 and shown.err == ""
    head, first, second, total = shown.out.splitlines()
    assert head.split() == ["cache", "status", "data", "tokenizer", "vocab", "train", "val", "size", "used"]
    assert first.split()[:6] == [new[:12], "ready", "text", str(tmp_path / "new.txt"), "byte", "257"]
    assert second.split()[0] == old[:12] and "3d 0:00:0" in second
    assert total.endswith(f"in {root}")
    listed = json.loads(call("cache", "--json").out)
    assert [entry["key"] for entry in listed] == [new, old]
    assert listed[0]["train_tokens"] + listed[0]["val_tokens"] == 4002  # each split ends with an end-of-text
    assert listed[0]["size"] == sum(file.stat().st_size for file in (root / new).iterdir())


def test_prune_by_age(tmp_path: Path, root: Path, call: Call) -> None:
    old, new = make(tmp_path, "old", 2000, age=31), make(tmp_path, "new", 2000, age=29)
    shown = call("cache", "--prune", "--older-than", "30d", "--dry-run")
    assert old[:12] in shown.out and new[:12] not in shown.out
    assert shown.out.splitlines()[-1].startswith("would remove 1 cache, ")
    assert names(root) == {old, new}
    assert call("cache", "--prune", "--older-than", "30d", "--yes").out.startswith("removed 1 cache, ")
    assert names(root) == {new}
    assert not list(root.glob(".tmp-*"))


def test_prune_by_size_takes_the_least_recently_used(tmp_path: Path, root: Path, call: Call) -> None:
    keys = [make(tmp_path, str(age), 20_000, age=age) for age in (2, 4, 1, 3)]
    size = find_caches(root)[0].size
    removed = json.loads(call("cache", "--prune", "--max-size", f"{2 * size + 100}", "--yes", "--json").out)
    assert [entry["key"] for entry in removed["removed"]] == [keys[1], keys[3]]
    assert names(root) == {keys[0], keys[2]}


def test_a_cache_in_use_is_never_removed(tmp_path: Path, root: Path, call: Call) -> None:
    """Neither the command nor a call that chose it before the run began removes it; without the run they do."""
    key = make(tmp_path, "used", 2000, age=99)
    [chosen] = find_caches(root)
    data: TokenData | None = cached(text_corpus(tmp_path / "used.txt"), ByteTrainer())
    assert data is not None
    split = data.train
    del data
    os.utime(root / f"{key}.used.lock", (1, 1))
    assert "in use" in call("cache").out
    assert call("cache", "--prune", "--older-than", "1d", "--max-size", "0", "--yes").out.startswith("removed 0 caches")
    assert not remove_cache(chosen)
    assert split.read(0, 4).tolist() == list(b"some")  # the split alone keeps it
    del split
    assert remove_cache(chosen)
    assert find_caches(root) == []


def test_a_cache_that_is_prepared_is_never_removed(tmp_path: Path, root: Path, call: Call) -> None:
    """What a killed process left is."""
    root.mkdir(parents=True)
    work = root / ".tmp-0123-4567"
    work.mkdir()
    (work / "train.bin").write_bytes(bytes(1000))
    descriptor = try_lock(root / "0123.lock")
    assert descriptor is not None
    assert "preparing" in call("cache").out
    assert call("cache", "--prune", "--max-size", "0", "--yes").out.startswith("removed 0 caches")
    os.close(descriptor)
    assert "unfinished" in call("cache").out
    assert call("cache", "--prune", "--max-size", "0", "--yes").out == "removed 1 cache, 1.00 kB\n"
    assert find_caches(root) == []


@pytest.mark.slow
def test_a_killed_run_no_longer_uses_its_cache(tmp_path: Path, root: Path) -> None:
    key = make(tmp_path, "used", 2000)
    code = """
import sys, time
from tests.data.conftest import text_corpus
from tinyllm.data.prepare import cached
from tinyllm.tokenizers.byte import ByteTrainer
data = cached(text_corpus(sys.argv[1]), ByteTrainer())
print(data.path.name, flush=True)
time.sleep(60)
"""
    argv = [sys.executable, "-c", code, str(tmp_path / "used.txt")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        assert run.stdout.readline().strip() == key
        [cache] = find_caches(root)
        assert cache.status == "in use" and not remove_cache(cache)
        run.kill()
    [cache] = find_caches(root)
    assert cache.status == "ready" and remove_cache(cache)


def test_nothing_is_removed_without_a_confirmation(tmp_path: Path, root: Path, call: Call, monkeypatch) -> None:
    key = make(tmp_path, "a", 2000)
    shown = call("cache", "--prune", "--max-size", "0")
    assert shown.code == 2 and "confirm with --yes" in shown.err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(builtins, "input", lambda question: "no")
    assert call("cache", "--prune", "--max-size", "0").out.endswith("nothing was removed\n")
    assert names(root) == {key}
    monkeypatch.setattr(builtins, "input", lambda question: "y")
    assert "removed 1 cache" in call("cache", "--prune", "--max-size", "0").out
    assert names(root) == set()


def test_a_damaged_cache_is_listed_and_removed(tmp_path: Path, root: Path, call: Call) -> None:
    key = make(tmp_path, "a", 2000)
    (root / key / "meta.json").chmod(0o644)
    (root / key / "meta.json").write_text("{")
    assert "damaged" in call("cache").out
    assert to_remove(find_caches(root), largest=0) == find_caches(root)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prune"], "--prune needs a limit"),
        (["--yes"], "--yes has no effect without --prune"),
        (["--dry-run"], "--dry-run has no effect without --prune"),
        (["--max-size", "1GB"], "--max-size has no effect without --prune"),
        (["--prune", "--older-than", "soon"], "not an age (--older-than=soon)"),
        (["--prune", "--max-size", "10 apples"], "not a size"),
        (["--prun"], "did you mean --prune?"),
    ],
)
def test_wrong_flags(flags: list[str], message: str, root: Path, call: Call) -> None:
    shown = call("cache", *flags)
    assert shown.code == 2 and message in shown.err and shown.err.count("\n") == 1


def test_units() -> None:
    assert [parse_age(text) for text in ("90m", "2h", "3d", "1w")] == [5400, 7200, 3 * DAY, 7 * DAY]
    assert [parse_size(text) for text in ("0", "1.5GB", "20mb", "7 K")] == [0, 1_500_000_000, 20_000_000, 7000]
    for bad in ("", "1", "-1d", "1y"):
        with pytest.raises(UserError):
            parse_age(bad)
