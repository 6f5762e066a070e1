"""What all pages of a studio share."""

from dataclasses import dataclass, field
from functools import cached_property

from tinyllm.studio.catalogue import Catalogue
from tinyllm.studio.processes import Processes
from tinyllm.studio.program import Settings
from tinyllm.studio.writing.desk import Desk


@dataclass(kw_only=True)
class Studio:
    """A studio while it runs. Pages keep nothing else on the server: a reload shows the same."""

    settings: Settings
    dark: bool | None = None
    """The theme chosen in any of its browsers: dark, light, or that of the system."""
    catalogue: Catalogue = field(init=False)
    """The runs below its outputs."""
    processes: Processes = field(init=False)
    """Starts, stops and knows the programs of this studio."""

    def __post_init__(self) -> None:
        self.catalogue = Catalogue(self.settings.outputs)
        self.processes = Processes(self.settings)

    @cached_property
    def desk(self) -> Desk:
        """What lies on the desk of the page Write."""
        return Desk(self.settings.outputs, self.settings.config_dir)
