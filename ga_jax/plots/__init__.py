"""Figures, from plain numbers; no JAX here.

Every function returns a `matplotlib.figure.Figure`, whatever it is given: runs
that diverged (None or NaN), one seed, one worker, nothing at all. What is
missing stands in the picture. `save` writes one, `svg` is for a page of HTML.
"""

from ga_jax.plots.costs import bars, bytes_sent, speedup
from ga_jax.plots.curves import curves, over_time
from ga_jax.plots.errors import error_over_rates, error_over_workers
from ga_jax.plots.files import save, svg
from ga_jax.plots.histograms import histogram_by_decade, staleness_histogram
from ga_jax.plots.points import scatter
from ga_jax.plots.spans import KINDS, Span, spans_of
from ga_jax.plots.timeline import timeline

__all__ = [
  'KINDS',
  'Span',
  'bars',
  'bytes_sent',
  'curves',
  'error_over_rates',
  'error_over_workers',
  'histogram_by_decade',
  'over_time',
  'save',
  'scatter',
  'spans_of',
  'speedup',
  'staleness_histogram',
  'svg',
  'timeline',
]
