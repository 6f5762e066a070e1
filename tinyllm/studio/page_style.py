"""What the pages Runs and Compare share: their style sheet, colors and times."""

import datetime

from tinyllm.studies.report.theme import style


def color_style(number: int) -> str:
    """The color of a run or an arm with this number, light and dark, for an element of class ``swatch``."""
    kind = style(number)
    return f"--light: {kind.light}; --dark: {kind.dark}"


def moment(seconds: float) -> str:
    """A time as people write it here: without the date where it is today."""
    then = datetime.datetime.fromtimestamp(seconds)
    today = then.date() == datetime.date.today()
    return f"{then:%H:%M}" if today else f"{then:%Y-%m-%d %H:%M}"


STYLE = """
.card + .card { margin-top: 1rem; }
.bar { display: flex; flex-wrap: wrap; align-items: center; gap: 0.5rem 0.75rem; margin-bottom: 0.5rem; }
.find { width: 21rem; max-width: 100%; }
.status-filter { width: 9rem; }
.filters { display: flex; flex-wrap: wrap; gap: 0.5rem 0.75rem; align-items: flex-start; max-width: 100%; }
.none-yet { display: flex; flex-wrap: wrap; gap: 0 0.35rem; }
.none-yet a { color: var(--accent); }
.chosen.hidden + .card { margin-top: 0; }
.runs-table { background: transparent; }
.runs-table th { font-weight: 550; color: var(--soft); }
.runs-list { max-height: 48rem; }
.runs-list thead tr th { position: sticky; top: 0; z-index: 1; background: var(--ground); }
.run-link { color: var(--accent); text-decoration: none; font-weight: 550; }
.run-link:hover { text-decoration: underline; }
.small { font-size: 12px; }
.note { max-width: 18rem; overflow: hidden; text-overflow: ellipsis; }
.swatch { display: inline-block; width: 0.7rem; height: 0.7rem; border-radius: 50%; margin-right: 0.4rem;
  background: var(--light); }
.body--dark .swatch { background: var(--dark); }
.status::before { content: ""; display: inline-block; width: 0.5rem; height: 0.5rem; border-radius: 50%;
  margin-right: 0.4rem; background: currentColor; }
.status { white-space: nowrap; color: var(--soft); }
.status.running { color: var(--accent); }
.status.finished { color: var(--good); }
.status.stopped { color: var(--warn); }
.status.lost, .status.failed, .status.damaged { color: var(--bad); }
.legend { display: flex; flex-wrap: wrap; gap: 0.25rem 1rem; list-style: none; padding: 0; margin: 0 0 0.5rem;
  max-height: 6rem; overflow: auto; font-size: 13px; }
.legend a { color: var(--ink); text-decoration: none; }
.legend a:hover { text-decoration: underline; }
.curve-controls { display: flex; flex-wrap: wrap; align-items: center; gap: 0.5rem 1rem; }
.curve-metrics { min-width: 16rem; flex: 1 1 16rem; max-width: 34rem; }
.curve-axis { width: 8rem; }
.curve-smooth { display: flex; align-items: center; gap: 0.75rem; width: 15rem; }
.curve-chart { width: 100%; height: 24rem; }
@media (max-width: 600px) {
  .wide-only { display: none; }
  .runs-table th, .runs-table td { padding: 4px 6px !important; }
  .curve-chart { height: 18rem; }
  .filters, .find, .status-filter, .curve-smooth { width: 100%; }
}
.back { color: var(--accent); text-decoration: none; }
.run-title { font-size: 1.25rem; font-weight: 600; overflow-wrap: anywhere; }
.run-actions { display: flex; flex-wrap: wrap; gap: 0.5rem; align-items: center; }
.run-action { color: var(--accent); padding: 0.25rem 0.65rem; }
.back ~ .run-action { margin-top: 0.75rem; }
.log-line { display: flex; flex-wrap: wrap; gap: 0 1rem; padding: 0.2rem 0; align-items: baseline; }
.log-line > :first-child { min-width: 19rem; }
.run-report { color: var(--accent); }
.run-figures { display: flex; flex-wrap: wrap; gap: 0.5rem 2rem; margin: 0.5rem 0 0; }
.run-figures dd { margin: 0; overflow-wrap: anywhere; }
.run-panels { background: transparent; }
.run-text { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--raised); border-radius: 6px;
  padding: 0.5rem 0.75rem; margin: 0.15rem 0 0.9rem; max-height: 24rem; overflow: auto; }
.other-run { width: 100%; max-width: 32rem; margin-bottom: 0.5rem; }
.fact-table { background: transparent; }
.fact-table td { overflow-wrap: anywhere; }
"""
