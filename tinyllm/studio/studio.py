"""What all pages of a studio share."""

from dataclasses import dataclass

from tinyllm.studio.program import Settings


@dataclass(kw_only=True)
class Studio:
    """A studio while it runs. Pages keep nothing else on the server: a reload shows the same."""

    settings: Settings
    dark: bool | None = None
    """The theme chosen in any of its browsers: dark, light, or that of the system."""
