"""Mistakes in the data and their settings, each as typed in a shell with what must be said about it."""

from dataclasses import dataclass, field

from tests.support.training_runs import SMALL


@dataclass(frozen=True, kw_only=True)
class Bad:
    """A call that must fail, as typed in a shell. ``IN`` is replaced with the directory of inputs."""

    args: str
    where: str
    """What the parentheses contain: the key with its value, or the file."""
    hint: str
    """Part of the hint."""
    program: str = "train"
    base: bool = True
    """Whether a small model and a valid text are chosen before the arguments."""
    environ: dict[str, str] = field(default_factory=dict)


def bad(args: str, where: str, hint: str, **more: object) -> Bad:
    return Bad(args=args, where=where, hint=hint, **more)  # type: ignore[arg-type]


def bad_mixture(sources: str, args: str, where: str, hint: str) -> Bad:
    """A mixture that must fail; ``sources`` in Hydra's grammar."""
    return bad(f"{' '.join(SMALL)} dataset=mixture 'dataset.sources={{{sources}}}' {args}", where, hint, base=False)


A_B = 'a:"dataset=text dataset.path=IN/good.txt",b:"dataset=text dataset.path=IN/other.txt"'
DATA = {
    # data
    "empty file": bad("dataset.path=IN/empty.txt", "dataset.path=IN/empty.txt", "no text to train on"),
    "a few characters": bad("dataset.path=IN/short.txt", "dataset.val_fraction=0.1", "more data"),
    "shorter than a window": bad("dataset.path=IN/line.txt", "trainer.seq_len=16", "at most"),
    "missing file": bad("dataset.path=IN/nope.txt", "dataset.path=IN/nope.txt", "but not nope.txt"),
    "a folder without text": bad("dataset.path=IN/no_text", "dataset.path=IN/no_text", "any UTF-8 file"),
    "no path": bad("dataset=text", "dataset.path=???", "set it", base=False),
    "an empty path": bad("dataset.path=", "dataset.path=", "a file, a folder or a glob"),
    "bad UTF-8": bad("dataset.path=IN/bad_utf8.txt", "IN/bad_utf8.txt", "dataset.errors=replace"),
    "UTF-16": bad("dataset.path=IN/utf16.txt", "IN/utf16.txt", "iconv"),
    "a damaged gzip file": bad("dataset.path=IN/text.txt.gz", "IN/text.txt.gz", "cut off"),
    "a damaged Parquet file": bad("dataset=parquet dataset.path=IN/cut.parquet", "IN/cut.parquet", "fetch the file"),
    "no such column": bad(
        "dataset=parquet dataset.path=IN/table.parquet", "dataset.field=text", "there are story, stars"
    ),
    "a column of numbers": bad(
        "dataset=parquet dataset.path=IN/table.parquet dataset.field=stars", "dataset.field=stars", "strings"
    ),
    "text for a table": bad("dataset=parquet dataset.path=IN/good.txt", "IN/good.txt", "dataset=text"),
    "ids with an unknown magic number": bad("dataset=bin dataset.path=IN/magic.bin", "IN/magic.bin", "known: 20240520"),
    "ids of an odd size": bad("dataset=bin dataset.path=IN/odd.bin", "IN/odd.bin", "uint16"),
    "a shard that was cut off": bad("dataset=bin dataset.path=IN/short_shard.bin", "IN/short_shard.bin", "copy it"),
    "ids above the vocabulary": bad(
        "dataset=bin dataset.path=IN/train.bin tokenizer=pretrained tokenizer.path=IN/run",
        "tokenizer=pretrained",
        "made",
    ),
    "an unknown way to clean": bad("dataset.clean=yes_please", "dataset.clean=yes_please", "wikitext"),
    "an unknown normalization": bad("dataset.normalize=nfd", "dataset.normalize=nfd", "nfc"),
    "no documents at all": bad("dataset.max_documents=0", "dataset.max_documents=0", "at least 1"),
    "WikiText without a heading": bad("dataset.clean=wikitext", "IN/good.txt", "= Title ="),
    "a PDF for lines": bad("dataset=jsonl dataset.path=IN/paper.pdf", "IN/paper.pdf", "pdftotext"),
    "a PDF for a text that may be bad": bad(
        "dataset.errors=replace dataset.path=IN/paper.pdf", "IN/paper.pdf", "pdftotext"
    ),
    "a pipe": bad("dataset.path=IN/pipe", "dataset.path=IN/pipe", "write the data to a file"),
    "validation of the training text": bad(
        "dataset.val_path=IN/good.txt", "dataset.val_path=IN/good.txt", "omit dataset.val_path to split off a part"
    ),
    "numbers without a header": bad("dataset=npy dataset.path=IN/train.bin", "IN/train.bin", "dataset=bin"),
    "numbers in one row": bad("dataset=npy dataset.path=IN/flat.npy", "IN/flat.npy", "array.reshape"),
    "a JSON array for lines": bad("dataset=jsonl dataset.path=IN/array.json", "IN/array.json:1", "jq -c"),
    "no validation": bad("dataset.val_fraction=0", "dataset.val_fraction=0", "between 0 and 1"),
    "a line without the field": bad("dataset=jsonl dataset.path=IN/lines.jsonl", "IN/lines.jsonl:2", "texd"),
    "numbers that are no ids": bad("dataset=npy dataset.path=IN/floats.npy", "IN/floats.npy", "int"),
    "packing that does not exist": bad("dataset.packing=first_fit", "dataset.packing=first_fit", "concat, best_fit"),
    "packing a single document": bad("dataset.packing=best_fit", "dataset.packing=best_fit", "several documents"),
    "packing rows": bad(
        "dataset=npy dataset.path=IN/rows.npy dataset.packing=best_fit", "dataset.packing=best_fit", "dataset=text"
    ),
    "a mask of a single document": bad("model.document_mask=true", "model.document_mask=true", "several documents"),
    "a mask of rows": bad(
        "dataset=npy dataset.path=IN/rows.npy model.document_mask=true", "model.document_mask", "rows"
    ),
    "packing in preparation": bad(
        "dataset=text dataset.path=IN/good.txt dataset.packing=best_fit",
        "dataset.packing=best_fit",
        "leave it out",
        program="prepare",
        base=False,
    ),
    "packing in evaluation": bad(
        "run=IN/run dataset=text dataset.path=IN/good.txt dataset.packing=best_fit",
        "dataset.packing=best_fit",
        "leave it out",
        program="evaluate",
        base=False,
    ),
    "negative ids": bad("dataset=npy dataset.path=IN/negative.npy", "IN/negative.npy", "0"),
    "text for the tokenizer of numbers": bad("tokenizer=ids", "tokenizer", "dataset=npy"),
    # data sets by name, and which of their documents
    "less data than a window": bad("dataset.max_tokens=16", "dataset.max_tokens=16", "at least 17"),
    "a shard shorter than a window": bad(
        "dataset.start_early=true dataset.shard_tokens=16", "dataset.shard_tokens=16", "at least 17"
    ),
    "shards of nothing": bad("dataset.start_early=true dataset.shard_tokens=0", "dataset.shard_tokens=0", "at least"),
    "shards without an early start": bad("dataset.shard_tokens=99", "dataset.shard_tokens=99", "start_early=false"),
    "packing of data that are not all there": bad(
        "dataset.start_early=true dataset.packing=best_fit", "dataset.packing=best_fit", "use concat"
    ),
    "epochs of data that are not all there": bad(
        "dataset.start_early=true trainer.max_epochs=1", "trainer.max_epochs=1", "max_steps or max_tokens"
    ),
    "evaluation of data that are not there yet": bad(
        "dataset.start_early=true dataset.shard_tokens=99 trainer.eval_every=1 trainer.eval_train_tokens=99",
        "trainer.eval_train_tokens=99",
        "below dataset.shard_tokens=99",
    ),
    "a source that starts early": bad_mixture(
        'a:"dataset=text dataset.path=IN/good.txt dataset.start_early=true"',
        "",
        "dataset.sources.a.start_early=true",
        "leave it out",
    ),
    "a picture of nothing": bad(
        "dataset=text dataset.path=IN/good.txt picture=x.png",
        "picture=x.png",
        "stats=false",
        program="prepare",
        base=False,
    ),
    "a picture in an unknown format": bad(
        "--stats dataset=text dataset.path=IN/good.txt picture=x.jpeg",
        "picture=x.jpeg",
        ".png",
        program="prepare",
        base=False,
    ),
    "an early start without training": bad(
        "dataset=text dataset.path=IN/good.txt dataset.start_early=true",
        "dataset.start_early=true",
        "leave it out",
        program="prepare",
        base=False,
    ),
    "no name of a data set": bad("dataset=hf", "dataset.name=null", "user/set", base=False),
    "an unknown configuration": bad(
        "dataset=wikitext dataset.path=IN/wikitext dataset.config=wikitext-103-raw",
        "dataset.config=wikitext-103-raw",
        "did you mean wikitext-103-raw-v1?",
    ),
    "an unknown split": bad(
        "dataset=hf dataset.name=IN/wikitext dataset.config=wikitext-103-raw-v1 dataset.split=dev",
        "dataset.split=dev",
        "there are train, validation, test",
        base=False,
    ),
    "a column that the set has not": bad(
        "dataset=wikitext dataset.path=IN/wikitext dataset.field=story", "dataset.field=story", "there are text"
    ),
    "an empty split": bad("dataset=tinystories dataset.path=IN/empty_set", "IN/empty_set", "another split"),
    "a name that the path replaces": bad(
        "dataset=hf dataset.name=user/set", "dataset.name=user/set", "turns it off; leave one"
    ),
    "a folder without a data set": bad("dataset=hf dataset.path=IN/no_text", "dataset.path=IN/no_text", "Parquet"),
    "WikiText without headings": bad("dataset=wikitext dataset.path=IN/good.txt", "IN/good.txt", "= Title ="),
    "streaming from disk": bad(
        "dataset=hf dataset.path=IN/wikitext dataset.streaming=true", "dataset.streaming=true", "leave one"
    ),
    "web pages without a limit": bad("dataset=fineweb", "dataset.max_tokens=???", "set it"),
    "another text for Shakespeare": bad("dataset=shakespeare dataset.path=IN/good.txt", "IN/good.txt", "dataset=text"),
    # mixtures
    "conversations in a mixture that are not packed": bad_mixture(
        'a:"dataset=chat dataset.path=IN/chats.jsonl"', "", "dataset.sources.a.packing=rows", "dataset.packing=best_fit"
    ),
    "conversations in a mixture without a mask": bad_mixture(
        f'{A_B},c:"dataset=chat dataset.path=IN/chats.jsonl dataset.packing=best_fit"',
        "",
        "dataset.packing=best_fit",
        "model.document_mask=true",
    ),
    "a template for a mixture of texts": bad_mixture(
        A_B, "chat_template=chatml", "chat_template=ChatML", "choose dataset=chat"
    ),
    "statistics of preferences": bad(
        "dataset=preferences dataset.path=IN/pairs.jsonl --stats",
        "stats=true",
        "leave it out",
        program="prepare",
        base=False,
    ),
    "a mixture of nothing": bad("dataset=mixture", "dataset.sources=???", "set it", base=False),
    "a mixture in a mixture": bad_mixture(
        'a:"dataset=mixture"', "", "dataset.sources.a=dataset=mixture", "do not nest"
    ),
    "preferences in a mixture": bad_mixture(
        'a:"dataset=preferences dataset.path=IN/pairs.jsonl"', "", "dataset.sources.a=PreferenceCorpus", "init_from"
    ),
    "a source that is not there": bad_mixture(
        'a:"dataset=text dataset.path=IN/nope.txt"', "", "dataset.sources.a.path=IN/nope.txt", "but not nope.txt"
    ),
    "a weight of no source": bad_mixture(A_B, "'dataset.weights={a:1,bee:1}'", "dataset.weights=bee", "are a, b"),
    "a source without weight": bad_mixture(A_B, "'dataset.weights={a:1}'", "dataset.weights=b", "give each source one"),
    "a negative weight": bad_mixture(A_B, "'dataset.weights={a:1,b:-1}'", "dataset.weights.b=-1", "at least 0"),
    "weights of 0": bad_mixture(A_B, "'dataset.weights={a:0,b:0}'", "dataset.weights=0", "above 0"),
    "weights in a list": bad_mixture(A_B, "'dataset.weights=[1,2]'", "dataset.weights=[1, 2]", "names, each with"),
    "a schedule that falls": bad_mixture(
        A_B,
        "'dataset.schedule=[{at:0.8,weights:{a:1,b:0}},{at:0.5,weights:{a:0,b:1}}]'",
        "dataset.schedule=0.8, 0.5",
        "after the one before",
    ),
    "a schedule after the end": bad_mixture(
        A_B,
        "trainer.max_steps=9 'dataset.schedule=[{at:9,weights:{a:1,b:0}}]'",
        "dataset.schedule[0].at=9",
        "the run has 9 steps",
    ),
    "a source shorter than a window": bad_mixture(
        'a:"dataset=text dataset.path=IN/good.txt",b:"dataset=text dataset.path=IN/line.txt"',
        "",
        "trainer.seq_len=16",
        "in the source b of the mixture",
    ),
}
