"""Report of a pipeline: a page, Markdown with pictures, CSV, and a table in the terminal."""

from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tinyllm.errors import one_line
from tinyllm.studies.pipeline.results import PipelineResult, StageResult, mean_text
from tinyllm.studies.report import numbers, theme
from tinyllm.studies.report.blocks import Block, Cell, Code, DataTable, Figures, Folded, Section, Text, text_cell
from tinyllm.studies.report.content import LegendEntry, Report
from tinyllm.studies.report.markdown import markdown
from tinyllm.studies.report.page import page
from tinyllm.studies.report.svg import Picture, drawing, picture
from tinyllm.studies.report.tables import provenance_table
from tinyllm.studies.report.writing import write_files
from tinyllm.utils.tables import Column, Table, csv_text
from tinyllm.utils.text import duration, escape_control_in, short


def write_report(result: PipelineResult, directory: Path) -> None:
    """Write ``report.html``, ``report.md`` with ``figures/*.svg``, and ``stages.csv``.

    Raises:
        OSError: the directory cannot be written.
        UserError: a file that no report wrote has one of these names.
    """
    content = report(result)
    files = {f"figures/{drawn.name}.svg": drawn.file for drawn in content.pictures}
    texts = {"report.md": markdown(content), "report.html": page(content), "stages.csv": stages_csv(result)}
    write_files(directory, files | texts)


def show(result: PipelineResult, directory: Path) -> None:
    """Print what was measured after each stage, and how to talk to the model."""
    result = escape_control_in(result)
    for table in tables(result):
        table.show()
    print(f"report: {directory / 'report.html'}")
    print(f"talk to it: {result.talk}")


def tables(result: PipelineResult) -> list[Table]:
    """The table for the terminal; in two parts if it has very many columns."""
    columns = result.columns
    heads = [Column(name="stage"), Column(name="steps", right=True), Column(name="time", right=True)]
    rows = []
    for name in result.names:
        stages = result.of(name)
        rows.append(
            [name, steps_text(stages), time_text(stages), *(mean_text(result.values(name, c), c) for c in columns)]
        )
    return [Table(columns=[*heads, *(Column(name=column.name, right=True) for column in columns)], rows=rows)]


def steps_text(stages: list[StageResult]) -> str:
    """The steps of a stage, or the pairs that it wrote."""
    first = stages[0]
    return f"{first.steps:,}" if first.steps is not None else f"{first.counts.get('pairs', 0):,} pairs"


def time_text(stages: list[StageResult]) -> str:
    """The mean duration of a stage."""
    known = [stage.seconds for stage in stages if stage.seconds is not None]
    return duration(fmean(known)) if known else ""


def report(result: PipelineResult) -> Report:
    """Lay out the report and draw its pictures. Control characters in strings are spelled out."""
    result = escape_control_in(result)
    with drawing():
        sections = [_stages(result), _forgetting(result), _curves(result), _samples(result), _commands(result)]
    seconds = [sum(stage.seconds or 0 for stage in result.stages if stage.seed == seed) for seed in result.seeds]
    several = len(result.seeds) > 1
    seeds = f"seed {result.seeds[0]}" if not several else f"{len(result.seeds)} seeds"
    return Report(
        kind="tinyllm pipeline",
        question=one_line(f"Recipe {result.recipe}"),
        glance=f"{len(result.names)} stages, {seeds}, {duration(fmean(seconds))} of training and sampling per seed",
        verdicts=verdicts(result),
        notes=[],
        legend=[LegendEntry(name=f"seed {seed}", style=number) for number, seed in enumerate(result.seeds)] * several,
        sections=[section for section in sections if section.blocks],
    )


def verdicts(result: PipelineResult) -> list[str]:
    """The last stage's figures in a sentence."""
    last = result.trained[-1:]
    figures = [
        f"{column.name} {mean_text(values, column)}"
        for column in result.columns
        if last and (values := result.values(last[0], column))
    ]
    return [f"After {last[0]}: {', '.join(figures)}."] if figures else []


def _stages(result: PipelineResult) -> Section:
    several = len(result.seeds) > 1
    headings = ["stage", "steps", "tokens", "time", *(column.name for column in result.columns)]
    rows = []
    for name in result.names:
        stages = result.of(name)
        tokens = stages[0].tokens
        row = [text_cell(name), Cell(text=steps_text(stages), sort=stages[0].steps or 0)]
        row += [Cell(text=numbers.or_missing(tokens, short), sort=tokens or 0), Cell(text=time_text(stages), sort=0)]
        for column in result.columns:
            values = result.values(name, column)
            row.append(Cell(text=mean_text(values, column) or numbers.MISSING, sort=fmean(values) if values else None))
        rows.append(row)
    spread = " ± is the standard deviation over seeds." if several else ""
    text = (
        "Each row shows the model after that stage, on everything that the recipe measures: a column that worsens"
        f" downwards is what a later stage makes the model forget.{spread}"
    )
    blocks: list[Block] = [DataTable(headings=headings, rows=rows, sortable=False), Text(text=text)]
    if several:
        blocks.append(Folded(title="Every seed", table=_seeds_table(result)))
    return Section(name="stages", title="Stage by task", blocks=blocks)


def _seeds_table(result: PipelineResult) -> DataTable:
    headings = ["stage", "seed", *(column.name for column in result.columns)]
    rows = [
        [text_cell(stage.name), Cell(text=str(stage.seed), sort=stage.seed)]
        + [
            Cell(text=column.shown(stage.values[column.name]), sort=stage.values[column.name])
            if column.name in stage.values
            else Cell(text=numbers.MISSING)
            for column in result.columns
        ]
        for stage in result.stages
        if stage.metric
    ]
    return DataTable(headings=headings, rows=rows)


def _forgetting(result: PipelineResult) -> Section:
    """A picture per column: its value after each stage."""
    pictures = [
        drawn for number, column in enumerate(result.columns) if (drawn := _over_stages(result, number)) is not None
    ]
    if not pictures:
        return Section(name="tasks", title="Every task over the stages")
    caption = "One line per seed. A stage that did not train for a task shows how much of it is left."
    block = Figures(pictures=pictures, caption=caption, choice="Task", name="task")
    return Section(name="tasks", title="Every task over the stages", blocks=[block])


def _over_stages(result: PipelineResult, number: int) -> Picture | None:
    column = result.columns[number]
    names = [name for name in result.trained if result.values(name, column)]
    if len(names) < 2:
        return None
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.subplots()
    for index, seed in enumerate(result.seeds):
        values = [next(stage.values[column.name] for stage in result.of(name) if stage.seed == seed) for name in names]
        style = theme.style(index)
        looks: dict[str, Any] = {"color": style.light, "lw": 1.6, "ms": 6, "mec": theme.PAPER, "gid": f"arm:{index}"}
        axes.plot(names, values, style.marker, ls=style.dashes, **looks)
    axes.set_ylabel(f"{column.name}" + (" (share)" if column.is_share else ""))
    ends = ", ".join(f"{name} {mean_text(result.values(name, column), column)}" for name in names)
    return picture(
        figure, name=f"task_{number + 1}", label=column.name, description=f"{column.name} after each stage: {ends}"
    )


def _curves(result: PipelineResult) -> Section:
    pictures = [drawn for name in result.trained if (drawn := _curve(result, name)) is not None]
    if not pictures:
        return Section(name="curves", title="Curves")
    caption = "What each stage was trained for, over its steps; one line per seed."
    block = Figures(pictures=pictures, caption=caption, choice="Stage", name="stage")
    return Section(name="curves", title="Curves", blocks=[block])


def _curve(result: PipelineResult, name: str) -> Picture | None:
    stages = [stage for stage in result.of(name) if len(stage.curve) > 1]
    if not stages:
        return None
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.subplots()
    for index, stage in enumerate(stages):
        style = theme.style(index)
        steps, values = zip(*stage.curve, strict=True)
        axes.plot(steps, values, ls=style.dashes, color=style.light, lw=1.6, gid=f"arm:{index}")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
    axes.set_xlabel("step")
    axes.set_ylabel(numbers.metric_axis(stages[0].metric))
    first, last = stages[0].curve[0][1], stages[0].curve[-1][1]
    description = f"{stages[0].metric} of {name}: from {first:.4g} to {last:.4g}"
    return picture(figure, name=f"curve_{name}", label=name, description=description)


def _samples(result: PipelineResult) -> Section:
    """What the models of each stage make of the same prompts, with the first seed."""
    first = [stage for stage in result.stages if stage.seed == result.seeds[0] and stage.samples]
    blocks: list[Block] = []
    for number, sample in enumerate(first[0].samples if first else []):
        rows = [[text_cell(stage.name), text_cell(one_line(stage.samples[number].text))] for stage in first]
        table = DataTable(headings=["after", "text"], rows=rows, sortable=False, caption=one_line(sample.prompt))
        blocks.append(table)
    if blocks:
        text = (
            "The same prompts after each stage, the most likely token each time. A model that has not seen"
            " conversations continues the text; later ones answer, with calls of tools and their results in brackets."
        )
        blocks.insert(0, Text(text=text))
    return Section(name="samples", title="Samples", blocks=blocks)


def _commands(result: PipelineResult) -> Section:
    commands = "\n".join(one_line(stage.command) for stage in result.stages)
    rows = [
        [text_cell(f"{path}/{name}"), text_cell(digest)]
        for path, files in result.digests.items()
        for name, digest in sorted(files.items())
    ]
    hashes = DataTable(headings=["file", "SHA-256"], rows=rows, sortable=False)
    blocks: list[Block] = [
        Text(text="The whole pipeline:"),
        Code(text=result.command),
        Text(text="Talk to the model:"),
        Code(text=result.talk),
        Code(text=commands, title="Command of every stage"),
        provenance_table(result.provenance),
        Folded(title="SHA-256 of the files that the results were read from", table=hashes),
    ]
    return Section(name="commands", title="Commands", blocks=blocks)


def stages_csv(result: PipelineResult) -> str:
    """One row per stage and seed, with all digits."""
    names = ["stage", "program", "seed", "path", "steps", "tokens", "seconds", *(c.name for c in result.columns)]
    rows = [
        [stage.name, stage.program, stage.seed, stage.path, stage.steps, stage.tokens, stage.seconds]
        + [stage.values.get(column.name) for column in result.columns]
        for stage in result.stages
    ]
    return csv_text(names, rows)
