"""Finding files: each once, skipped entries reported, loops ended."""

import os
import socket
from pathlib import Path

import pytest

from tests.data.conftest import text_corpus
from tinyllm.data import finding
from tinyllm.data.content_hashes import ContentHashes
from tinyllm.data.finding import Listing, find_files
from tinyllm.errors import UserError


def find(path: Path | str, **how) -> Listing:
    return find_files(str(path), key="dataset.path", **how)


def names(path: Path | str, root: Path, **how) -> list[str]:
    return [os.path.relpath(file.path, root) for file in find(path, **how).files]


def write(path: Path, content: str = "some text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


@pytest.fixture
def looped(tmp_path: Path) -> Path:
    """A folder with loops of every kind, and a file with several paths through links."""
    root = tmp_path / "l"
    write(root / "a.txt", "a")
    write(root / "sub" / "b.txt", "b")
    (root / "self").symlink_to(root)
    (root / "sub" / "up").symlink_to("..")
    (root / "sub" / "far").symlink_to(tmp_path)
    (root / "alias").symlink_to("sub")
    (root / "again.txt").symlink_to("a.txt")
    os.link(root / "a.txt", root / "hard.txt")
    return root


def test_each_file_once_and_loops_end(looped: Path) -> None:
    """By a path without links, and of several such paths by the first."""
    once = ["a.txt", "sub/b.txt"]
    assert names(looped, looped) == once
    for pattern in ("**/*.txt", "**", "**/**/*.txt", "**/*"):
        assert names(looped / pattern, looped) == once, pattern
    assert names(looped / "*.txt", looped) == ["a.txt"]
    assert names(looped / "*" / "*.txt", looped) == ["self/a.txt", "sub/b.txt"]
    assert names(looped / "**" / "sub" / "**" / "*.txt", looped) == ["sub/b.txt"]


def test_relative_paths_and_patterns(looped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(looped)
    assert [file.path for file in find("**/*.txt").files] == ["a.txt", "sub/b.txt"]
    assert [file.path for file in find(".").files] == ["a.txt", "sub/b.txt"]
    assert [file.path for file in find("sub/../*.txt").files] == ["sub/../a.txt"]


def test_a_linked_folder_is_read_once(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "x.txt")
    write(tmp_path / "elsewhere" / "below" / "y.txt")
    write(tmp_path / "in" / "a.txt")
    for name in ("one", "two"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "elsewhere")
    expected = ["a.txt", "one/below/y.txt", "one/x.txt"]
    assert names(tmp_path / "in", tmp_path / "in") == expected
    assert names(tmp_path / "in" / "**" / "*.txt", tmp_path / "in") == expected
    (tmp_path / "link").symlink_to("in")
    assert names(tmp_path / "link", tmp_path / "link") == expected


def test_an_existing_path_is_taken_literally(tmp_path: Path) -> None:
    write(tmp_path / "a [v1] b" / "x.txt")
    write(tmp_path / "a v b" / "other.txt")
    write(tmp_path / "set" / "a [v1] b" / "*.txt")
    write(tmp_path / "set" / "a [v1] b" / "y.txt")
    assert names(tmp_path / "a [v1] b", tmp_path) == ["a [v1] b/x.txt"]
    assert names(tmp_path / "a [v1] b" / "*.txt", tmp_path) == ["a [v1] b/x.txt"]
    assert names(tmp_path / "s*" / "a [v1] b" / "[xy].txt", tmp_path) == ["set/a [v1] b/y.txt"]
    assert names(tmp_path / "set" / "a [v1] b" / "*.txt", tmp_path) == ["set/a [v1] b/*.txt"]  # the file of that name
    assert names(tmp_path / "a [vw] b" / "*.txt", tmp_path) == ["a v b/other.txt"]


def test_names_of_any_bytes(tmp_path: Path) -> None:
    odd = [b"new\nline.txt", b"latin-\xe9.txt", b" .txt", b"-x.txt", b"'\"$(x).txt"]
    for name in odd:
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_text("text")
    assert sorted(os.fsencode(name) for name in names(tmp_path, tmp_path)) == sorted(odd)
    assert len(names(tmp_path / "*.txt", tmp_path)) == 5
    source = text_corpus(tmp_path).open(ContentHashes(tmp_path / "cache"))
    assert len(list(source.documents())) == 5
    assert len(names(tmp_path / "latin-?.txt", tmp_path)) == 1
    with pytest.raises(UserError, match="cannot store this path"):  # nor could it be resumed
        find(os.fsdecode(bytes(tmp_path) + b"/latin-\xe9.txt"))


def test_suffixes_ignore_case_and_the_first_group_with_a_match_counts(tmp_path: Path) -> None:
    for name in ("a.JSONL", "b.ndjson", "info.json", "x.txt"):
        write(tmp_path / name)
    groups = ((".jsonl", ".ndjson"), (".json",))
    assert names(tmp_path, tmp_path, suffixes=groups) == ["a.JSONL", "b.ndjson"]
    (tmp_path / "a.JSONL").unlink()
    (tmp_path / "b.ndjson").unlink()
    assert names(tmp_path, tmp_path, suffixes=groups) == ["info.json"]
    (tmp_path / "info.json").rename(tmp_path / "info.json.gz")
    with pytest.raises(UserError, match=r"no .jsonl or .ndjson file .*it contains 1 .gz, 1 .txt"):
        find(tmp_path, suffixes=groups)


def test_skipped_entries_are_reported(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "text " * 50)
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "ring").symlink_to("ring")
    os.mkfifo(tmp_path / "pipe")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "s"))
    server.close()
    assert find(tmp_path).left_out == {"broken links": 2, "pipes, sockets and devices": 2}
    [note] = text_corpus(tmp_path).open(ContentHashes(tmp_path / ".cache")).notes
    assert "4 entries" in note and "2 broken links, 2 pipes, sockets and devices" in note


@pytest.mark.parametrize("pattern", ["", "**/*.txt", "*/*.txt"])
@pytest.mark.parametrize("where", ["inside", "linked"])
def test_a_folder_that_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, where: str
) -> None:
    """scandir is patched to fail, because permissions do not stop root."""
    write(tmp_path / "data" / "a.txt")
    secret = tmp_path / ("data/secret" if where == "inside" else "secret")
    write(secret / "b.txt")
    if where == "linked":
        (tmp_path / "data" / "secret").symlink_to(secret)
    scandir = os.scandir

    def refusing(folder: str):
        if str(folder).endswith("secret"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(finding.os, "scandir", refusing)
    with pytest.raises(UserError, match="cannot read a folder") as caught:
        find(tmp_path / "data" / pattern)
    assert "data/secret: Permission denied" in str(caught.value)
    assert caught.value.key == "dataset.path"


def test_an_entry_that_vanishes_during_the_walk_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.txt")
    write(tmp_path / "b.txt")
    write(tmp_path / "sub" / "c.txt")
    scandir = os.scandir

    def vanishing(folder: str):
        entries = scandir(folder)
        if Path(folder) == tmp_path:
            entries = list(entries)
            (tmp_path / "b.txt").unlink(missing_ok=True)
            (tmp_path / "sub" / "c.txt").unlink(missing_ok=True)
            (tmp_path / "sub").exists() and (tmp_path / "sub").rmdir()
            return _Closing(entries)
        return entries

    monkeypatch.setattr(finding.os, "scandir", vanishing)
    listing = find(tmp_path)
    assert [Path(file.path).name for file in listing.files] == ["a.txt"]
    assert not listing.left_out


class _Closing(list):
    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_a_file_that_vanishes_before_it_is_read_is_one_error(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "some text")
    write(tmp_path / "b.txt", "other text")
    corpus = text_corpus(tmp_path)
    corpus.check()
    (tmp_path / "b.txt").unlink()
    with pytest.raises(UserError, match=r"cannot read the file: No such file.*b\.txt"):
        corpus.open(ContentHashes(tmp_path / "cache"))


def pipe(folder: Path) -> str:
    os.mkfifo(folder / "pipe")
    return str(folder / "pipe")


def ring(folder: Path) -> str:
    (folder / "ring").symlink_to("ring")
    return str(folder / "ring")


@pytest.mark.parametrize(
    ("make", "what", "hint"),
    [
        (pipe, "not a readable file or folder", "a pipe"),
        (lambda folder: "/dev/null", "not a readable file or folder", "device"),
        (ring, "not a readable file or folder", "broken link"),
        (lambda folder: "~nobody-of-this-name/x", "no home directory is known", "give the path in full"),
        (lambda folder: "a\0b", "no such file or folder", ""),
        (lambda folder: "x" * 5000, "no such file or folder", ""),
    ],
)
def test_paths_that_are_not_files_are_refused(tmp_path: Path, make, what: str, hint: str) -> None:
    """Immediately: a pipe without a writer is not opened."""
    with pytest.raises(UserError, match=what) as caught:
        find(make(tmp_path))
    assert hint in caught.value.hint


def test_a_cached_folder_is_walked_once_and_its_files_are_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second start on, because the content hashes are cached."""
    for i in range(60):
        write(tmp_path / "data" / str(i % 3) / f"{i}.txt", f"text {i}" if i % 5 else "\0binary")
    monkeypatch.setattr("tinyllm.data.content_hashes.SETTLED_NS", 0)
    hashes = ContentHashes(tmp_path / "cache")
    text_corpus(tmp_path / "data").open(hashes)
    counts = {"open": 0, "scandir": 0}
    scandir, plain_open = os.scandir, open

    def scanning(folder: str):
        counts["scandir"] += 1
        return scandir(folder)

    def opening(file, *args, **kwargs):
        counts["open"] += str(file).endswith(".txt")
        return plain_open(file, *args, **kwargs)

    monkeypatch.setattr(finding.os, "scandir", scanning)
    monkeypatch.setattr("builtins.open", opening)
    corpus = text_corpus(tmp_path / "data")
    corpus.check()
    source = corpus.open(hashes)
    assert counts["scandir"] == 4
    assert counts["open"] <= 4  # the check looks at files until it has found text
    assert "12 binary" in source.notes[0]
