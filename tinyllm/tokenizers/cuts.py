"""Where a document may be cut so that the ids of its pieces are the ids of the whole.

A tokenizer.json is a chain: added tokens, a normalizer, pre-tokenizers, a model. A place between two characters a and b
is safe if no link of the chain looks across it, whatever stands before a and behind b. This is decided for every
pair of a letter or digit and a blank or punctuation mark, link by link:

- An added token must not hold the pair. It must not end in a if it swallows blanks to its right (``rstrip``), or if
  behind it a text begins anew (a blank in front, ``▁``).
- A normalizer must work on both sides by themselves. Unicode's forms do where b begins no combining sequence and
  composes with nothing before it; ASCII and the marks below do neither (UAX #15, "stable code points").
- A pre-tokenizer must either end a word at the place, or neither split there nor look across it.
- If none of them ends a word there, the model sees both sides as one word. BPE treats them apart if no merge joins a
  symbol that ends in a with one that begins with b. WordPiece and WordLevel do not, and in Unigram the rounding of
  scores over the whole word decides between equal splits.

What a tokenizer does at the very beginning of a text (a blank in front, ``▁``) must not happen to later pieces. So they
are encoded behind the character before them, and the ids of that character are dropped.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

from tinyllm.tokenizers.checks import parts_of
from tinyllm.tokenizers.decoders import CHAR_OF
from tinyllm.tokenizers.splitting import DIGITS, RULES, bound_of

# Letters whose neighbours decide nothing: of these the rules below know class and normal forms.
LETTERS = "".join(
    chr(code)
    for first, last in ("09", "AZ", "az", "ぁゖ", "ァヺ", "一龥", "가힣")
    for code in range(ord(first), ord(last) + 1)
)
EVERY = dict(zip(LETTERS, LETTERS, strict=True))
BLANKS = " \t\r\n"
MARKS = ".,;:!?、。，！？；："

SPLIT, JOINED, UNSAFE = "split", "joined", "unsafe"

Pairs = dict[str, tuple[str, dict[str, str]]]
"""For each b: what it is by now, and the same for each a that may stand before it."""


class Cuts:
    """Finds the last safe place in a text.

    Args:
        before: for each character that may stand behind a cut, those that may stand before it.
        isolated: the neighbours of the pair must be characters that combine with nothing.
    """

    def __init__(self, before: Mapping[str, Iterable[str]], *, isolated: bool = False) -> None:
        grouped: dict[frozenset[str], str] = {}
        for behind, characters in before.items():
            chosen = frozenset(characters)
            if chosen:
                grouped[chosen] = grouped.get(chosen, "") + behind
        left = right = ""
        if isolated:
            simple = f"{_ranges(frozenset(LETTERS))}{re.escape(MARKS)}\\x00-\\x7f"
            left, right = f"(?<![^{simple}])", f"[{simple}]"
        places = [f"{left}[{_ranges(a)}](?=[{re.escape(b)}]{right})" for a, b in grouped.items()]
        self._pattern = re.compile("|".join(places)) if places else None

    def __bool__(self) -> bool:
        return self._pattern is not None

    def last(self, text: str) -> int:
        """The last place where ``text`` may be cut, whatever follows it; 0 if there is none."""
        if self._pattern is None:
            return 0
        for window in (512, len(text)):
            cut = 0
            for match in self._pattern.finditer(text, max(0, len(text) - window)):
                cut = match.end()
            if cut:
                return cut
        return 0


@cache
def plain_cuts() -> Cuts:
    """Those of a rule of ``RULES`` with nothing else in the chain."""
    return Cuts(dict.fromkeys(BLANKS + MARKS, LETTERS))


def find_cuts(state: Mapping[str, Any], normalize: Callable[[str], str]) -> Cuts:
    """The safe places of the tokenizer.json ``state``.

    Args:
        normalize: its normalizer.
    """
    pairs: Pairs | None = {b: (b, EVERY) for b in BLANKS + MARKS}
    normalizers = parts_of(state["normalizer"], "normalizers")
    for part in normalizers:
        pairs = _normalized(part, pairs, normalize) if pairs else None
    parts = parts_of(state["pre_tokenizer"], "pretokenizers")
    named = "".join(p.get("delimiter", "") + p.get("pattern", {}).get("String", "") for p in parts)
    shared = {id(before): before for _, before in (pairs or {}).values()}
    sorted_of = {
        key: _unchanged(named) if before is EVERY else Letters(before, named) for key, before in shared.items()
    }
    places = {b: (now, sorted_of[id(before)]) for b, (now, before) in (pairs or {}).items()}
    safe = {b: _kept(state, now, letters) for b, (now, letters) in places.items()}
    begins = _begins_anew(state)
    for token in state["added_tokens"]:
        _forbid(token, safe, places, normalize, begins=begins)
    return Cuts(safe, isolated=any(part["type"] == "Precompiled" for part in normalizers))


def _normalized(part: Mapping[str, Any], pairs: Pairs, normalize: Callable[[str], str]) -> Pairs | None:
    """The pairs behind a normalizer, without those it works on together; None if it is not known."""
    kind = part["type"]
    if kind in ("Prepend", "StripAccents"):  # the one acts at the beginning, the other on marks alone
        return pairs
    if kind in ("NFC", "NFD", "NFKC", "NFKD"):
        return _mapped(pairs, lambda c: unicodedata.normalize(kind, c), stable=True)
    if kind == "Lowercase":
        return _mapped(pairs, str.lower)
    if kind == "Nmt":
        return _mapped(pairs, lambda c: " " if c in BLANKS else c)
    if kind == "Strip":  # of a piece the left end is behind a letter, and the right one is a letter
        return _mapped(pairs, lambda c: c)
    if kind == "Precompiled":
        table = {c: normalize(c) for c in LETTERS + " \t\n" + MARKS}
        return _mapped(pairs, lambda c: table.get(c, ""), stable=True)
    if kind == "BertNormalizer":
        return _mapped(pairs, lambda c: _as_bert(c, part))
    if kind == "Replace":
        return _replaced(part, pairs)
    return None


def _mapped(pairs: Pairs, change: Callable[[str], str], *, stable: bool = False) -> Pairs:
    """Pairs whose halves become one character each.

    Args:
        stable: of letters only those that stay what they are.
    """
    mapped: Pairs = {}
    done: dict[int, dict[str, str]] = {}  # most pairs share their letters
    for b, (now, before) in pairs.items():
        if id(before) not in done:
            changed = ((a, was, change(was)) for a, was in before.items())
            done[id(before)] = {a: new for a, was, new in changed if len(new) == 1 and (new == was or not stable)}
        if len(change(now)) == 1:
            mapped[b] = change(now), done[id(before)]
    return mapped


def _as_bert(char: str, part: Mapping[str, Any]) -> str:
    """The last character of what BertNormalizer makes of ``char``."""
    if char in BLANKS:
        return " " if part["clean_text"] else char
    if part["handle_chinese_chars"] and "\u4e00" <= char <= "\u9fff":
        return " "
    lower = part["lowercase"]
    if lower if part["strip_accents"] is None else part["strip_accents"]:
        char = "".join(c for c in unicodedata.normalize("NFD", char) if unicodedata.category(c) != "Mn")[-1:]
    return char.lower() if lower else char


def _replaced(part: Mapping[str, Any], pairs: Pairs) -> Pairs | None:
    found, content = part["pattern"].get("String"), part["content"]
    if not found:  # an expression; those that are common join blanks
        known = part["pattern"].get("Regex") in (" {2,}", r"\s{2,}", r"\s+", " +") and content == " "
        return {b: pair for b, pair in pairs.items() if pair[0] not in "\t\r\n"} if known else None
    kept: Pairs = {}
    apart = _mapped(pairs, lambda c: c if c not in found else "", stable=True)
    letters = next(iter(apart.values()))[1] if apart else {}
    for b, (now, _) in pairs.items():
        if found == now and len(content) > 0:
            kept[b] = content[0], letters
        elif found[0] != now:
            kept[b] = now, letters
    return kept


def _kept(state: Mapping[str, Any], b: str, letters: "Letters") -> set[str]:
    """The letters before ``b`` at which the pre-tokenizers and the model let the text be cut."""
    parts = parts_of(state["pre_tokenizer"], "pretokenizers")
    spelled = any(part["type"] == "ByteLevel" for part in parts)  # then others than ASCII are several symbols
    kept: set[str] = set()
    for now, group in letters.groups.items():
        verdict, mark = _verdict(parts, now, b)
        if verdict == SPLIT:
            kept |= group
        elif verdict == JOINED:
            unmerged = _unmerged(state["model"], mark)
            kept |= {a for a in group if letters.now[a] in unmerged and (letters.now[a].isascii() or not spelled)}
    return kept


class Letters:
    """The letters that may stand before a cut, sorted by how they are treated.

    Args:
        now: what each has become.
        named: characters that a pre-tokenizer names; each is a group of its own.
    """

    def __init__(self, now: Mapping[str, str], named: str) -> None:
        self.now = now
        self.groups: dict[str, set[str]] = {}
        """By a representative of what they have become."""
        self.before: dict[str, set[str]] = {}
        """What became each character, where that is another one."""
        first: dict[str, str] = {}
        for a, new in now.items():
            kind = new if new in named or new.isspace() else unicodedata.category(new)[0]
            self.groups.setdefault(first.setdefault(kind, new), set()).add(a)
            if a != new:
                self.before.setdefault(new, set()).add(a)


@lru_cache(maxsize=8)  # most tokenizers have no normalizer
def _unchanged(named: str) -> Letters:
    return Letters(EVERY, named)


def _verdict(parts: Sequence[Mapping[str, Any]], a: str, b: str) -> tuple[str, str]:
    """What the pre-tokenizers together do between ``a`` and ``b``, and what ``b`` is then."""
    for i, part in enumerate(parts, start=1):
        verdict, b = _looks(part, a, b)
        if verdict != JOINED:
            return verdict, b
        if part["type"] == "ByteLevel" and i < len(parts):  # to the next part a blank is the letter Ġ
            return UNSAFE, b
    return JOINED, b


def _looks(part: Mapping[str, Any], a: str, b: str) -> tuple[str, str]:
    """What one pre-tokenizer does between ``a`` and ``b``, and what it makes of ``b``."""
    kind, blank = part["type"], b.isspace()
    mark = not blank and not b.isalnum() and b not in "'_"
    if kind == "BertPreTokenizer":
        return (SPLIT if blank or unicodedata.category(b)[0] == "P" else UNSAFE), b
    if a.isspace():
        return UNSAFE, b
    if kind == "WhitespaceSplit":
        return (SPLIT if blank else JOINED), b
    if kind == "Whitespace":
        return (SPLIT if blank or mark else UNSAFE), b
    if kind == "Digits":
        return (SPLIT if _is_digit(a) else JOINED), b
    if kind == "Punctuation":
        splits = part["behavior"] in ("Isolated", "Removed", "Contiguous", "MergedWithNext")
        return (JOINED if blank else SPLIT if splits and unicodedata.category(b)[0] == "P" else UNSAFE), b
    if kind == "Metaspace":
        b = part["replacement"] if b == " " else b
        return (SPLIT if b == part["replacement"] and part["split"] else JOINED), b
    if kind == "CharDelimiterSplit":
        return (SPLIT if b == part["delimiter"] else UNSAFE if a == part["delimiter"] else JOINED), b
    if kind == "ByteLevel":
        if part["use_regex"]:
            return (SPLIT if blank or mark else UNSAFE), b
        return JOINED, CHAR_OF[b.encode()[0]]
    if kind == "Split":
        return _splits(part, a, b, ends=blank or mark), b
    return UNSAFE, b


def _is_digit(char: str) -> bool:
    return unicodedata.category(char)[0] == "N"


def _splits(part: Mapping[str, Any], a: str, b: str, *, ends: bool) -> str:
    behavior, invert = part["behavior"], part["invert"]
    rule, literal = part["pattern"].get("Regex"), part["pattern"].get("String")
    if literal is not None:
        if a in literal or (b in literal and literal != b) or invert:
            return UNSAFE
        if b != literal:
            return JOINED
        return SPLIT if behavior in ("Isolated", "Removed", "MergedWithNext") else UNSAFE
    if (behavior, invert) not in (("Isolated", False), ("Removed", True)):
        return UNSAFE
    if rule in DIGITS and not invert:
        return (SPLIT if _is_digit(a) else JOINED) if not _is_digit(b) else UNSAFE
    known = rule in RULES or bound_of(rule) is not None
    return SPLIT if known and ends else UNSAFE


def _unmerged(model: Mapping[str, Any], b: str) -> set[str]:
    """The characters that no merge of the model joins with ``b``. Both are in its vocabulary, so neither is unknown."""
    odd = any(model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix", "ignore_merges", "dropout"))
    if model["type"] != "BPE" or odd or b not in model["vocab"]:
        return set()
    merges = (merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"])
    joined = {left[-1:] for left, right in merges if right[:1] == b}
    return {token for token in model["vocab"] if len(token) == 1 and token not in joined}


def _begins_anew(state: Mapping[str, Any]) -> bool:
    """Whether something happens at the beginning of a text, which is also done behind an added token."""
    normalizers = parts_of(state["normalizer"], "normalizers")
    parts = parts_of(state["pre_tokenizer"], "pretokenizers")
    return any(part["type"] in ("Prepend", "Strip") for part in normalizers) or any(
        part.get("add_prefix_space") or part.get("prepend_scheme", "never") != "never" for part in parts
    )


def _forbid(
    token: Mapping[str, Any],
    safe: dict[str, set[str]],
    places: Mapping[str, tuple[str, Letters]],
    normalize: Callable[[str], str],
    *,
    begins: bool,
) -> None:
    """Take away the pairs at which the added token may stand, as it is written and as it is normalized.

    Args:
        begins: the place behind the token is one where a text begins.
    """
    content = token["content"]
    for form in filter(None, {content, normalize(content)} if token["normalized"] else {content}):
        inside = {form[i : i + 2] for i in range(len(form) - 1)}
        characters = set(form)
        for b, letters in safe.items():
            now, sort = places[b]
            behind = begins or (token["rstrip"] and (b.isspace() or now.isspace()))
            if not behind and len(form) > 1 and not characters & {b, now}:
                continue
            near = characters.union(*(sort.before.get(char, ()) for char in characters))
            for letter in near & letters:
                here = {letter, sort.now[letter]}
                held = {x + y for x in here for y in (b, now)} & inside
                if held or form in here or (behind and form[-1] in here):
                    letters.discard(letter)


@lru_cache(maxsize=64)
def _ranges(characters: frozenset[str]) -> str:
    """The characters as the inside of a character class."""
    found: list[list[int]] = []
    for code in sorted(map(ord, characters)):
        if found and code == found[-1][1] + 1:
            found[-1][1] = code
        else:
            found.append([code, code])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in found)
