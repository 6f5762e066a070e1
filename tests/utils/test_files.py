"""Files are written atomically and never through links, and read in bounded time and memory."""

import errno
import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tinyllm.errors import UserError
from tinyllm.utils import files, locks
from tinyllm.utils.files import parse_json, read_json
from tinyllm.utils.write_errors import readable_write_errors
from tinyllm.utils.yaml_files import parse_yaml, read_yaml


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file that must not change."""
    file = tmp_path / "outside"
    file.write_text("mine")
    return file


def test_a_link_at_the_target_is_replaced_and_not_followed(tmp_path: Path, outside: Path) -> None:
    target = tmp_path / "a.json"
    target.symlink_to(outside)
    files.write_json(target, {"a": float("nan"), "b": [float("inf"), 1.5]})
    assert outside.read_text() == "mine"
    assert not target.is_symlink()
    assert read_json(target) == {"a": None, "b": [None, 1.5]}
    target.unlink()
    target.symlink_to(outside)
    files.recreate(target).close()
    assert outside.read_text() == "mine"


@pytest.mark.parametrize("where", ["outside", "nowhere"])
def test_planted_links_are_not_opened(tmp_path: Path, outside: Path, where: str) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / where)
    with pytest.raises(FileExistsError):
        files.create(link)
    with pytest.raises(OSError, match="symbolic"):
        files.open_append(link)
    with pytest.raises(UserError, match="not a lock file"):
        locks.try_lock(link)
    assert not locks.is_held(link)
    assert outside.read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_temporary_names_are_unpredictable(tmp_path: Path) -> None:
    names = {files.temporary(tmp_path / ("long" * 100)).name for _ in range(100)}
    assert len(names) == 100
    assert max(map(len, names)) < 120


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "a"
    files.write_text(file, "old")

    def fail(stream: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(UserError, match="no space left"):
        files.write_atomic(file, fail)
    assert [one.name for one in tmp_path.iterdir()] == ["a"]
    assert file.read_text() == "old"


def test_no_pattern_for_an_ending_finds_a_file_that_is_being_written(tmp_path: Path) -> None:
    found: list[list[Path]] = []
    for name in ("record.json", "table.csv", "weights.safetensors", "option.yaml"):
        file = tmp_path / name
        files.replace(file, lambda stream, ending=file.suffix: found.append([*tmp_path.glob(f"*{ending}")]))
    assert found == [[]] * 4 and len([*tmp_path.iterdir()]) == 4


@pytest.mark.parametrize("library", [save_file, torch.save])
def test_the_reason_that_a_library_gives_is_told(library: Callable[..., None]) -> None:
    """Neither library sets errno; only a disk that is full may be called full."""
    target = Path("/proc/state")  # nobody can create a file there
    reason = r"cannot write: No such file or directory .*the last one is intact"
    with pytest.raises(UserError, match=reason), readable_write_errors(target, kept="the last one is intact"):
        library({"weight": torch.zeros(8)}, target)


def test_the_holder_is_not_written_into_a_hard_linked_file(tmp_path: Path, outside: Path) -> None:
    (tmp_path / ".lock").hardlink_to(outside)
    handle = locks.try_lock(tmp_path / ".lock")
    assert handle is not None
    locks.write_holder(handle, "pid 1")
    os.close(handle)
    assert outside.read_text() == "mine"


def test_is_held_neither_creates_nor_opens_for_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / ".lock"
    handle = locks.try_lock(lock)
    assert handle is not None
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, flags, *rest: opened.append(flags) or real(path, flags, *rest))
    assert locks.is_held(lock)
    os.close(handle)
    assert not locks.is_held(lock)
    assert all(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) == 0 for flags in opened)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_without_locks_holds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    handle = locks.try_lock(tmp_path / ".lock")
    assert handle is not None
    os.close(handle)
    assert not locks.is_held(tmp_path / ".lock")
    with locks.locked(tmp_path / ".lock", waiting=lambda: pytest.fail("must not wait")):
        pass


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_without_fsync_or_modes_suffices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(Path, "chmod", refuse)
    files.write_text(tmp_path / "a", "text")
    files.set_mode(tmp_path / "a", 0o444)
    assert (tmp_path / "a").read_text() == "text"


def test_a_disk_error_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match="Input/output error"):
        files.write_text(tmp_path / "a", "text")
    assert list(tmp_path.iterdir()) == []


ALIASES = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
NOT_JSON = {
    "open brackets": ("[" * 100_000, "nested"),
    "a thousand levels": ("[" * 1000 + "]" * 1000, "nested"),
    "objects in objects": ('{"a":' * 500 + "1" + "}" * 500, "nested"),
    "NaN": ('{"a": NaN}', "NaN"),
    "minus infinity": ('{"a": -Infinity}', "Infinity"),
    "too large a number": ('{"a": 1e999}', "1e999"),
    "an integer of 5000 digits": ('{"a": ' + "1" * 5000 + "}", "digits"),
    "many lists": ("[" + "[]," * 4_000_001 + "[]]", "more than 4,000,000"),
    "not UTF-8": (b'{"a": "\xff"}', "byte 0xff at 7 is not UTF-8"),
    "a list": ("[1]", "must hold one JSON object"),
    "null": ("null", "must hold one JSON object"),
    "truncated": ('{"a": 1', "delimiter"),
    "empty": ("", "Expecting value"),
    "NULs": ("\0" * 64, "Expecting value"),
}
NOT_YAML = {
    "aliases of aliases": (ALIASES, "more than 200,000 nodes"),
    "aliases of a long text": (f"a: &a {'x' * 100_000}\nb: [{'*a, ' * 200}]", "characters with aliases"),
    "aliases of a list of long texts": (f"a: &a [{'x' * 100_000}]\nb: [{'*a, ' * 200}]", "characters with aliases"),
    "merged aliases": ("a: &a {x: 1}\n" + "b: {<<: [" + "*a," * 200_001 + "]}", "nodes"),
    "an alias in its own list": ("a: &a [*a]", "repeats itself"),
    "open brackets": ("[" * 100_000, "nest"),
    "dashes": ("- " * 100_000, "nested deeper"),
    "a thousand levels": ("".join(" " * i + f"a{i}:\n" for i in range(1000)), "nested deeper"),
    "a tag that runs code": ("!!python/object/apply:os.system [ls]", "tag"),
    "an unknown tag": ("a: !x 1", "tag"),
    "a key twice": ("a: 1\na: 2", "duplicate key a"),
    "not UTF-8": (b"a: \xff", "byte 0xff at 3 is not UTF-8"),
    "a NUL": ("a: \0", "control characters"),
    "a list": ("[1]", "must hold a mapping"),
    "text": ("hello", "must hold a mapping"),
    "truncated": ("a: [1", "expected"),
    "an integer of 5000 digits": ("a: " + "1" * 5000, "digits"),
}


def _write(file: Path, content: str | bytes) -> None:
    file.write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.mark.parametrize("name", NOT_JSON)
def test_invalid_json_is_a_one_line_error(tmp_path: Path, name: str) -> None:
    content, why = NOT_JSON[name]
    file = tmp_path / "run.json"
    _write(file, content)
    with pytest.raises(UserError, match=why) as caught:
        read_json(file)
    assert str(caught.value).startswith(f"damaged file ({file}): ")


@pytest.mark.parametrize("name", NOT_YAML)
def test_invalid_yaml_is_a_one_line_error(tmp_path: Path, name: str) -> None:
    content, why = NOT_YAML[name]
    file = tmp_path / "config.yaml"
    _write(file, content)
    with pytest.raises(UserError, match=why) as caught:
        read_yaml(file, of=dict)
    assert str(caught.value).startswith(f"unreadable configuration file ({file}): ")


def test_only_regular_files_of_bounded_size_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with (tmp_path / "huge").open("wb") as stream:
        stream.truncate(100 << 30)
    for name, why in {
        "pipe": "not a regular",
        "zero": "not a regular",
        "huge": "MB are read",
        ".": "directory",
    }.items():
        with pytest.raises(UserError, match=why):
            read_json(tmp_path / name)
        with pytest.raises(UserError, match=why):
            read_yaml(tmp_path / name)
    with pytest.raises(UserError, match="No such file"):
        read_json(tmp_path / "none")
    with pytest.raises(UserError, match="null"):
        read_json(tmp_path / "a\0b")


def test_valid_json_and_yaml_are_read(tmp_path: Path) -> None:
    assert parse_json('{"a": [1, 2.5, "x", null, {"b": true}]}') == {"a": [1, 2.5, "x", None, {"b": True}]}
    assert parse_json("[" * 60 + "]" * 60)
    with pytest.raises(ValueError, match="key a occurs 2 times"):
        parse_json('{"a": 1, "a": 2}', unique=True)
    text = "a: &a {x: 1e-3, y: 2001-01-01, z: [~, yes, 0x10]}\nb: *a\nc: {<<: *a, x: .5}\nd: '${b.x}'"
    first = {"x": 1e-3, "y": "2001-01-01", "z": [None, True, 16]}
    assert parse_yaml(text) == {"a": first, "b": first, "c": {**first, "x": 0.5}, "d": "${b.x}"}
    _write(tmp_path / "empty.yaml", "# nothing")
    assert read_yaml(tmp_path / "empty.yaml", of=dict) == {}
    _write(tmp_path / "mark.json", b"\xef\xbb\xbf{}")
    assert read_json(tmp_path / "mark.json") == {}
