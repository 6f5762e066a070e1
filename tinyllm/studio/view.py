"""What the page Runs shows, as the query of its address: a reload, a bookmark and a second browser show the same."""

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode

from tinyllm.runs.metrics_tail import AXES

SMOOTHEST = 0.99
SORTS = ("name", "status", "step", "loss", "val_loss", "bpb", "tokens_per_s", "eta_s", "parameters", "updated")
TABS = ("samples", "settings", "machine", "log", "checkpoints")


@dataclass(kw_only=True)
class View:
    """The state of the page."""

    run: str = ""
    """The run shown in detail; "": the table."""
    chosen: list[str] = field(default_factory=list)
    """The runs in the chart above the table."""
    metrics: list[str] = field(default_factory=list)
    """Empty: the usual ones."""
    axis: str = "step"
    smooth: float = 0.0
    log: bool = False
    find: str = ""
    """Filter of the table."""
    status: str = ""
    sort: str = "updated"
    descending: bool = True
    tab: str = TABS[0]
    other: str = ""
    """The run that the settings are compared with."""

    @classmethod
    def read(cls, query: Any) -> "View":
        """The state that an address holds; what is wrong in it counts as missing.

        Args:
            query: the parameters, with ``getlist`` as Starlette's.
        """
        view = cls(run=query.get("run", ""), chosen=query.getlist("with"), metrics=query.getlist("metric"))
        view.find, view.status, view.other = (query.get(name, "") for name in ("find", "status", "other"))
        view.axis = axis if (axis := query.get("x", "")) in AXES else "step"
        view.sort = sort if (sort := query.get("sort", "")) in SORTS else "updated"
        view.tab = tab if (tab := query.get("tab", "")) in TABS else TABS[0]
        view.log, view.descending = query.get("log") == "1", query.get("order", "down") == "down"
        try:
            view.smooth = min(max(float(query.get("smooth", "0")), 0.0), SMOOTHEST)
        except ValueError:
            view.smooth = 0.0
        if view.smooth != view.smooth:
            view.smooth = 0.0
        return view

    def url(self) -> str:
        """The address of this state."""
        defaults = {"x": "step", "sort": "updated", "order": "down", "tab": TABS[0], "smooth": "0", "log": "0"}
        single = {"run": self.run, "x": self.axis, "find": self.find, "status": self.status, "sort": self.sort}
        single |= {"order": "down" if self.descending else "up", "tab": self.tab, "other": self.other}
        single |= {"smooth": f"{self.smooth:g}", "log": "1" if self.log else "0"}
        pairs = [(name, value) for name, value in single.items() if value and value != defaults.get(name)]
        pairs += [("with", run) for run in self.chosen] + [("metric", name) for name in self.metrics]
        return f"/runs?{urlencode(pairs)}" if pairs else "/runs"


def run_url(run: str, **more: Any) -> str:
    """The address of a run's page."""
    return View(run=run, **more).url()
