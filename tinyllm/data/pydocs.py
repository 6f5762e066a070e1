"""Corpus of English prose: the documentation in Python's standard library, present on every machine."""

import ast
import hashlib
import re
import sysconfig
import textwrap
import warnings
from collections.abc import Iterable, Iterator
from functools import cache, partial
from pathlib import Path

from tinyllm.data.content_hashes import ContentHashes, FoundFile, stamp
from tinyllm.data.corpus import Corpus, Document, Source, fingerprint_of
from tinyllm.data.stdlib import source_files

RULES = 1  # part of the fingerprint: increase it when the extraction below changes
PLAIN = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "–": "-", "—": "-", "…": "...", "\u00a0": " "})
ROLE = re.compile(r":[a-z:+-]+:`([^`<]*?)(?: ?<[^`>]*>)?`")  # :func:`open` and :ref:`text <label>`
MARKUP = re.compile(r"``([^`]+)``|`([^`]+)`|\*\*([^*\s][^*]*)\*\*|(?<![\w*])\*([^*\s][^*]*)\*(?![\w*])")
BULLET = re.compile(r"^(?:[*+-]|\(?\d+[.)])\s+")
WORD = re.compile(r"[A-Za-z]+(?:['-][A-Za-z]+)*")


class PydocsCorpus(Corpus):
    """The paragraphs of prose in the language reference (``pydoc_data.topics``) and in all docstrings.

    Each topic is a document, and so are the docstrings of each module. Sources are parsed, never imported. Code,
    tables, signatures and markup are left out, typographic characters become ASCII, and repeated paragraphs count once.
    """

    def __init__(self, *, val_fraction: float, packing: str = "concat") -> None:
        super().__init__(val_fraction=val_fraction, packing=packing)

    def check(self) -> None:
        source_files()

    def open(self, hashes: ContentHashes) -> Source:
        topics = Path(sysconfig.get_path("stdlib"), "pydoc_data", "topics.py")
        files = [*([topics] if topics.is_file() else []), *source_files()]
        contents = hashes.of([FoundFile(str(file), stamp(file)) for file in files])
        digests = [contents[str(file)].digest.hex() for file in files]
        # Cached, because the documents are read several times: parsing takes seconds, and the result is a megabyte.
        documents = cache(lambda: list(_documents(files)))
        return Source(
            fingerprint=fingerprint_of("pydocs", RULES, digests, self.val_fraction),
            documents=lambda: iter(documents()),
            size=sum(content.size for content in contents.values()),
        )


def _documents(files: Iterable[Path]) -> Iterator[Document]:
    seen: set[str] = set()
    for file in files:
        tree = _parsed(file)
        texts = _topics(tree) if file.name == "topics.py" else [_docstrings(tree)]
        for paragraphs in texts:
            fresh = [paragraph for paragraph in paragraphs if paragraph not in seen]
            seen.update(fresh)
            text = "\n\n".join(dict.fromkeys(fresh)) + "\n"
            if fresh:
                data = text.encode()
                digest = hashlib.sha256(data).digest()
                yield Document(digest, len(data), partial(iter, (text,)), digest)


def _parsed(file: Path) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about invalid escapes in the sources
        return ast.parse(file.read_bytes())


def _topics(tree: ast.Module) -> Iterator[list[str]]:
    """The paragraphs of each topic; the module assigns a dict of texts to a name."""
    for node in tree.body:
        if isinstance(node, ast.Assign):
            for _, text in sorted(ast.literal_eval(node.value).items()):
                yield list(prose(text))


def _docstrings(tree: ast.Module) -> list[str]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    documented = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    documented.sort(key=lambda node: getattr(node, "lineno", 0))
    return [paragraph for node in documented for paragraph in prose(ast.get_docstring(node) or "")]


def prose(text: str) -> Iterator[str]:
    """The paragraphs of English sentences in ``text``, each on one line and without markup."""
    lines = textwrap.dedent(text.translate(PLAIN)).expandtabs().splitlines()
    paragraph: list[str] = []
    for line in [*lines, ""]:
        starts_item = bool(BULLET.match(line.strip()))
        if paragraph and (not line.strip() or starts_item):
            joined = _plain(" ".join(paragraph))
            if _is_prose(joined):
                yield joined
            paragraph = []
        if line.strip():
            paragraph.append(BULLET.sub("", line.strip()))


def _plain(text: str) -> str:
    text = MARKUP.sub(lambda match: next(group for group in match.groups() if group), ROLE.sub(r"\1", text))
    return " ".join(text.split())


def _is_prose(text: str) -> bool:
    """Whether a paragraph starts with a capital, ends with a stop, and is mostly words with hardly any code symbols."""
    if not text.isascii() or not text[0].isupper() or text[-1] not in ".?!:" or ">>>" in text or "::" in text:
        return False
    words = text.split()
    plain = [word for word in words if WORD.fullmatch(word.strip(".,;:?!\"'()"))]
    symbols = sum(text.count(symbol) for symbol in "_=<>[]{}|\\/*#@$%^&~+`")
    return len(words) >= 5 and len(plain) >= 0.85 * len(words) and symbols <= 0.02 * len(text)
