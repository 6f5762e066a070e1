"""What all pages of a studio share."""

from dataclasses import dataclass, field

from tinyllm.studio.processes import Processes
from tinyllm.studio.program import Settings


@dataclass(kw_only=True)
class Studio:
    """A studio while it runs. Pages keep nothing else on the server: a reload shows the same."""

    settings: Settings
    dark: bool | None = None
    """The theme chosen in any of its browsers: dark, light, or that of the system."""
    processes: Processes = field(init=False)
    """Starts, stops and knows the programs of this studio."""

    def __post_init__(self) -> None:
        self.processes = Processes(self.settings)
