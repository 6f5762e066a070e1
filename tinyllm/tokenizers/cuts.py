"""Find where text can be cut without changing the ids.

A tokenizer.json is a pipeline: added tokens, normalizer, pre-tokenizers, model. A place between two characters a and b
is a safe cut if no stage looks across it, whatever comes before a and after b. This is decided stage by stage for all
pairs of a letter or digit (a) and a blank or punctuation mark (b):

- Added tokens: none may contain the pair. None may end in a if it strips blanks on its right (``rstrip``), or if the
  text after it is treated like the beginning of a text (prefixed by a blank or ``▁``).
- Normalizer: it must treat the two sides independently. Unicode normal forms do if b starts no combining sequence and
  composes with nothing before it, as ASCII and the marks below (UAX #15, "stable code points").
- Pre-tokenizers: each must either end a word at the place, or neither split there nor look across it.
- Model: if no pre-tokenizer ends a word there, the model sees both sides as one word. BPE treats them independently if
  no merge joins a symbol ending in a with one starting with b. WordPiece and WordLevel do not. Unigram does not either:
  between equally likely splits, the rounding of scores over the whole word decides.

What happens only at the beginning of a text (a blank or ``▁`` in front) must not happen to later pieces. So a piece is
encoded together with the character before it, and the ids of that character are dropped.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, lru_cache
from typing import Any

from tinyllm.tokenizers.checks import parts_of
from tinyllm.tokenizers.decoders import CHAR_OF
from tinyllm.tokenizers.splitting import DIGITS, RULES, bound_of

# Letters and digits with known classes and normal forms, so that the rules below hold for them.
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
"""For each b: the character it has become so far, and the same for each a that may come before it."""


class Cuts:
    """Finds the last safe cut in a text.

    Args:
        before: for each character b that may follow a cut, the characters a that may precede it.
        isolated: whether the neighbors of the pair must be characters that combine with nothing.
    """

    def __init__(self, before: Mapping[str, Iterable[str]], *, isolated: bool = False) -> None:
        grouped: dict[frozenset[str], str] = {}
        for b, letters in before.items():
            allowed = frozenset(letters)
            if allowed:
                grouped[allowed] = grouped.get(allowed, "") + b
        left = right = ""
        if isolated:
            simple = f"{_ranges(frozenset(LETTERS))}{re.escape(MARKS)}\\x00-\\x7f"
            left, right = f"(?<![^{simple}])", f"[{simple}]"
        places = [f"{left}[{_ranges(a)}](?=[{re.escape(b)}]{right})" for a, b in grouped.items()]
        self._pattern = re.compile("|".join(places)) if places else None

    def __bool__(self) -> bool:
        return self._pattern is not None

    def last(self, text: str) -> int:
        """The last position where ``text`` can be cut, whatever follows; 0 if there is none."""
        if self._pattern is None:
            return 0
        for window in (512, len(text)):  # the last cut is nearly always close to the end
            cut = 0
            for match in self._pattern.finditer(text, max(0, len(text) - window)):
                cut = match.end()
            if cut:
                return cut
        return 0


@cache
def plain_cuts() -> Cuts:
    """The cuts of a tokenizer that splits by one of ``RULES`` and has no other stage that could prevent a cut."""
    return Cuts(dict.fromkeys(BLANKS + MARKS, LETTERS))


def find_cuts(state: Mapping[str, Any], normalize: Callable[[str], str]) -> Cuts:
    """The safe cuts of a tokenizer.

    Args:
        state: the parsed tokenizer.json.
        normalize: the tokenizer's normalizer, as a function.
    """
    pairs: Pairs | None = {b: (b, EVERY) for b in BLANKS + MARKS}
    normalizers = parts_of(state["normalizer"], "normalizers")
    for part in normalizers:
        pairs = _normalized(part, pairs, normalize) if pairs else None
    parts = parts_of(state["pre_tokenizer"], "pretokenizers")
    named = "".join(p.get("delimiter", "") + p.get("pattern", {}).get("String", "") for p in parts)
    shared = {id(before): before for _, before in (pairs or {}).values()}  # most b share their letters
    letters_of = {
        key: _unchanged(named) if before is EVERY else Letters(before, named) for key, before in shared.items()
    }
    places = {b: (now, letters_of[id(before)]) for b, (now, before) in (pairs or {}).items()}
    safe = {b: _safe_letters(state, now, letters) for b, (now, letters) in places.items()}
    restarts = _treats_beginnings(state)
    for token in state["added_tokens"]:
        _remove_unsafe(token, safe, places, normalize, restarts=restarts)
    return Cuts(safe, isolated=any(part["type"] == "Precompiled" for part in normalizers))


def _normalized(part: Mapping[str, Any], pairs: Pairs, normalize: Callable[[str], str]) -> Pairs | None:
    """The pairs after a normalizer, without those it does not treat independently; None: unknown normalizer."""
    kind = part["type"]
    if kind in ("Prepend", "StripAccents"):  # act on the beginning of a text, and on combining marks
        return pairs
    if kind in ("NFC", "NFD", "NFKC", "NFKD"):
        return _mapped(pairs, lambda c: unicodedata.normalize(kind, c), stable=True)
    if kind == "Lowercase":
        return _mapped(pairs, str.lower)
    if kind == "Nmt":
        return _mapped(pairs, lambda c: " " if c in BLANKS else c)
    if kind == "Strip":  # a piece is encoded after a letter and ends in a letter, so nothing is stripped
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
    """Apply ``change`` to both characters of every pair; a pair stays only if each becomes exactly one character.

    Args:
        stable: also drop letters that change.
    """
    mapped: Pairs = {}
    done: dict[int, dict[str, str]] = {}  # most b share their letters
    for b, (now, before) in pairs.items():
        if id(before) not in done:
            changed = ((a, old, change(old)) for a, old in before.items())
            done[id(before)] = {a: new for a, old, new in changed if len(new) == 1 and (new == old or not stable)}
        if len(change(now)) == 1:
            mapped[b] = change(now), done[id(before)]
    return mapped


def _as_bert(char: str, part: Mapping[str, Any]) -> str:
    """The last character of BertNormalizer's output for ``char``."""
    if char in BLANKS:
        return " " if part["clean_text"] else char
    if part["handle_chinese_chars"] and "\u4e00" <= char <= "\u9fff":
        return " "
    lower = part["lowercase"]
    if lower if part["strip_accents"] is None else part["strip_accents"]:
        char = "".join(c for c in unicodedata.normalize("NFD", char) if unicodedata.category(c) != "Mn")[-1:]
    return char.lower() if lower else char


def _replaced(part: Mapping[str, Any], pairs: Pairs) -> Pairs | None:
    """The pairs after a Replace; None: its regular expression is not one of the common ones, which join blanks."""
    searched, content = part["pattern"].get("String"), part["content"]
    if not searched:
        known = part["pattern"].get("Regex") in (" {2,}", r"\s{2,}", r"\s+", " +") and content == " "
        return {b: pair for b, pair in pairs.items() if pair[0] not in "\t\r\n"} if known else None
    replaced: Pairs = {}
    apart = _mapped(pairs, lambda c: c if c not in searched else "", stable=True)
    letters = next(iter(apart.values()))[1] if apart else {}
    for b, (now, _) in pairs.items():
        if searched == now and len(content) > 0:
            replaced[b] = content[0], letters
        elif searched[0] != now:
            replaced[b] = now, letters
    return replaced


def _safe_letters(state: Mapping[str, Any], b: str, letters: "Letters") -> set[str]:
    """The letters before ``b`` at which pre-tokenizers and model allow a cut."""
    parts = parts_of(state["pre_tokenizer"], "pretokenizers")
    byte_level = any(part["type"] == "ByteLevel" for part in parts)  # non-ASCII letters are then several symbols
    safe: set[str] = set()
    for now, group in letters.groups.items():
        verdict, mark = _verdict(parts, now, b)
        if verdict == SPLIT:
            safe |= group
        elif verdict == JOINED:
            unmerged = _unmerged(state["model"], mark)
            safe |= {a for a in group if letters.now[a] in unmerged and (letters.now[a].isascii() or not byte_level)}
    return safe


class Letters:
    """The letters that may precede a cut, grouped by how pre-tokenizers treat them.

    Args:
        now: the character that each letter has become.
        named: characters that a pre-tokenizer names explicitly; each forms a group of its own.
    """

    def __init__(self, now: Mapping[str, str], named: str) -> None:
        self.now = now
        self.groups: dict[str, set[str]] = {}
        """The letters of each group, by a representative of the characters they have become."""
        self.before: dict[str, set[str]] = {}
        """For each character, the letters that were changed into it."""
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
    """What all pre-tokenizers do between ``a`` and ``b``, and what ``b`` has become then."""
    for i, part in enumerate(parts, start=1):
        verdict, b = _pre_tokenized(part, a, b)
        if verdict != JOINED:
            return verdict, b
        if part["type"] == "ByteLevel" and i < len(parts):  # for the next part, a blank is the letter Ġ
            return UNSAFE, b
    return JOINED, b


def _pre_tokenized(part: Mapping[str, Any], a: str, b: str) -> tuple[str, str]:
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
    """What a Split does between ``a`` and ``b``; ``ends``: a word of a known rule ends before ``b``."""
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
    """The characters of the vocabulary that no merge joins with ``b``; none if ``b`` itself is unknown."""
    special = any(
        model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix", "ignore_merges", "dropout")
    )
    if model["type"] != "BPE" or special or b not in model["vocab"]:
        return set()
    merges = (merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"])
    joined = {left[-1:] for left, right in merges if right[:1] == b}
    return {token for token in model["vocab"] if len(token) == 1 and token not in joined}


def _treats_beginnings(state: Mapping[str, Any]) -> bool:
    """Whether the beginning of a text is treated specially; the text after an added token is too then."""
    normalizers = parts_of(state["normalizer"], "normalizers")
    parts = parts_of(state["pre_tokenizer"], "pretokenizers")
    return any(part["type"] in ("Prepend", "Strip") for part in normalizers) or any(
        part.get("add_prefix_space") or part.get("prepend_scheme", "never") != "never" for part in parts
    )


def _remove_unsafe(
    token: Mapping[str, Any],
    safe: dict[str, set[str]],
    places: Mapping[str, tuple[str, Letters]],
    normalize: Callable[[str], str],
    *,
    restarts: bool,
) -> None:
    """Remove the pairs that an added token contains or affects, as it is written and as it is normalized.

    Args:
        safe: the letters a for each b; changed in place.
        places: what each b and its letters have become.
        restarts: whether the text after the token is treated like the beginning of a text.
    """
    content = token["content"]
    for form in filter(None, {content, normalize(content)} if token["normalized"] else {content}):
        inside = {form[i : i + 2] for i in range(len(form) - 1)}
        characters = set(form)
        for b, letters in safe.items():
            now, group = places[b]
            affects_next = restarts or (token["rstrip"] and (b.isspace() or now.isspace()))
            if not affects_next and len(form) > 1 and not characters & {b, now}:
                continue
            candidates = characters.union(*(group.before.get(char, ()) for char in characters))
            for letter in candidates & letters:
                forms = {letter, group.now[letter]}
                contained = {x + y for x in forms for y in (b, now)} & inside
                if contained or form in forms or (affects_next and form[-1] in forms):
                    letters.discard(letter)


@lru_cache(maxsize=64)
def _ranges(characters: frozenset[str]) -> str:
    """The characters as ranges for the inside of a regex character class."""
    ranges: list[list[int]] = []
    for code in sorted(map(ord, characters)):
        if ranges and code == ranges[-1][1] + 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges)
