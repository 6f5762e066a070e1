"""What all pages of a studio share."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from tinyllm.config.option_files import conf_dir
from tinyllm.studio.catalogue import Catalogue
from tinyllm.studio.checker import Checker
from tinyllm.studio.comparison import Comparison
from tinyllm.studio.form import Draft, Form
from tinyllm.studio.processes import Processes
from tinyllm.studio.program import Settings
from tinyllm.studio.report import Report
from tinyllm.studio.writing.desk import Desk


@dataclass(kw_only=True)
class Studio:
    """A studio while it runs. Pages keep nothing else on the server: a reload shows the same."""

    settings: Settings
    dark: bool | None = None
    """The theme chosen in any of its browsers: dark, light, or that of the system."""
    system_dark: bool = False
    """Whether the system is dark, according to the browser that said so last: the guess for the next page."""
    catalogue: Catalogue = field(init=False)
    """The runs below its outputs."""
    comparison: Comparison = field(default_factory=Comparison)
    """What is filled in on Compare."""
    draft: Draft = field(default_factory=Draft)
    """What is filled in on Compose."""
    report: Report = field(default_factory=Report)
    """What the last check of the draft said."""
    processes: Processes = field(init=False)
    """Starts, stops and knows the programs of this studio."""
    checker: Checker = field(init=False)
    """Checks settings, and counts what they cost."""

    def __post_init__(self) -> None:
        self.catalogue = Catalogue(self.settings.outputs)
        self.processes = Processes(self.settings)
        self.checker = Checker(self.settings)
        self._form: tuple[object, Form] | None = None

    @cached_property
    def desk(self) -> Desk:
        """What lies on the desk of the page Write."""
        return Desk(self.settings.outputs, self.settings.config_dir)

    def form(self) -> Form:
        """The form of Compose, read again when an option file has changed, come or gone."""
        stamp = self._stamp()
        if self._form is None or self._form[0] != stamp:
            self._form = stamp, Form(self.settings.config_dir)
        return self._form[1]

    def _stamp(self) -> object:
        places: list[Path] = [conf_dir(), *filter(None, [self.settings.config_dir])]
        files = [file for place in places for pattern in ("*.yaml", "*/*.yaml") for file in place.glob(pattern)]
        return sorted((str(file), file.stat().st_mtime_ns) for file in files)
