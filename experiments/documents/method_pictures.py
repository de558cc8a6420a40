"""The pictures of docs/methods and docs/gap.md, from runs that were kept.

What is drawn lies in results/digits_curves (see `digits_curves`) and in
results/gap: what every gradient did in three runs of `experiments.train`, with

  --flagfile=experiments/presets/fashion_mnist_mlp.flags --workers=32
  --clock=heterogeneous --method=asgd|sa|ga
"""

import os
import pathlib

import numpy as np

from experiments.catalogue import methods
from experiments.documents import digits_curves
from experiments.running import summaries
from ga_jax import plots

PANELS = (  # title, what is on the x axis, clock
  ('over epochs', 'epoch', 'homogeneous'),
  ('over time', 'time', 'heterogeneous'),
)
LATEST = 60  # mean batch times: all that do not wait are done by then
GAP = os.path.join('results', 'gap')
GAP_METHODS = ('asgd', 'sa', 'ga')
EPOCHS, PER_EPOCH = 6, 390  # of the runs in results/gap
# Epochs at which the schedule holds a rate for long enough that no gradient was
# computed before it, and what the rate is there.
PHASES = {
  'rate 0.1': (1.0, 3.5),
  'rate 0.01': (3.9, 4.75),
  'rate 0.001': (5.15, 6.0),
}
BINS = 20  # per epoch, where arrivals are averaged
EVERY = 6  # arrivals of which one is drawn as a point
EDGES = (1.0, 1.25, 1.6, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


def names() -> list[str]:
  """The names of all pictures."""
  families = [f'family-{name}.svg' for name in methods.FAMILIES]
  return [*families, *GAP_PICTURES]


def make(folder: pathlib.Path) -> list[pathlib.Path]:
  """Draws all pictures.

  Args:
    folder: to write to.

  Returns:
    Their paths.
  """
  runs, arrivals = digits_curves.read(), {m: read(m) for m in GAP_METHODS}
  made = []
  for name in names():
    if name in GAP_PICTURES:
      figure = GAP_PICTURES[name](arrivals)
    else:
      figure = family(name.removeprefix('family-').removesuffix('.svg'), runs)
    made.append(pathlib.Path(folder) / name)
    plots.save(figure, str(made[-1]))
  return made


def family(name: str, runs):
  """Test error of a family's methods over epochs and over simulated time."""
  references = digits_curves.REFERENCES
  chosen = digits_curves.family(name)
  chosen = [m for m in chosen if m not in references] + list(references)
  panels = {}
  for title, x, clock in PANELS:
    lines = {method: [] for method in chosen}
    for run in runs:
      if run['clock'] == clock and run['method'] in lines:
        lines[run['method']].append(curve(run['curve'], x))
    panels[title] = {f'{clock} clock': lines}
  figure = plots.curves(
    panels,
    title='Test error, %, on digits with 16 workers, each at its best rate',
    label='epochs of all workers together (left), mean batch times (right)',
    references=references,
  )
  figure.set_size_inches(9.6, 3.9)
  figure.axes[1].set_xlim(0, LATEST)
  return figure


def curve(rows, x: str):
  """(x [n], test error in % [n]); None where a run diverged."""
  errors = [row['test_error'] for row in rows]
  return [row[x] for row in rows], [e and 100 * e for e in errors]


def read(method: str) -> dict[str, np.ndarray]:
  """What every gradient of a run in results/gap did, with its epoch."""
  with np.load(os.path.join(GAP, method, 'arrivals.npz')) as arrays:
    found = dict(arrays)
  return {**found, 'epoch': found['num_batches'].cumsum() / PER_EPOCH}


def phases(run) -> dict[str, np.ndarray]:
  """Indices of the stale arrivals at every rate of the schedule."""
  stale = run['staleness'] > 0
  return {
    name: np.flatnonzero(stale & (low < run['epoch']) & (run['epoch'] <= high))
    for name, (low, high) in PHASES.items()
  }


def over_staleness(arrivals):
  """Gap and penalty of single gradients over their staleness."""
  run, sa = arrivals['ga'], arrivals['sa']
  gaps, penalties = {}, {}
  for name, all_of_them in phases(run).items():
    some = all_of_them[::EVERY]
    staleness = run['staleness'][some]
    gaps[f'GA at {name}'] = staleness, run['gap'][some]
    penalties[f'GA at {name}'] = staleness, run['mean_penalty'][some]
  some = np.concatenate(list(phases(sa).values()))[::EVERY]
  penalties['SA at any rate'] = sa['staleness'][some], sa['mean_penalty'][some]
  return plots.scatter(
    {'gap': gaps, 'what the gradient was divided by': penalties},
    title='Gap and penalty of a gradient over its staleness',
    label='staleness, server updates',
  )


def over_training(arrivals):
  """Gap and penalty in the course of training."""

  def averaged(run, name):
    edges = np.linspace(0, EPOCHS, BINS * EPOCHS + 1)
    where = np.digitize(run['epoch'], edges, right=True)
    kept = range(1, len(edges))
    return edges[1:], [run[name][where == i].mean() for i in kept]

  panels = {
    title: {
      'mean of arrivals': {m: averaged(a, name) for m, a in arrivals.items()}
    }
    for title, name in (('gap', 'gap'), ('penalty', 'mean_penalty'))
  }
  return plots.curves(
    panels, title='Gap and penalty over training', label='epoch'
  )


def penalties(arrivals):
  """How often a gradient was divided by how much."""
  edges = np.array(EDGES)
  run, sa = arrivals['ga'], arrivals['sa']
  found = {
    f'GA at {name}': summaries.histogram(run['mean_penalty'][some], edges)
    for name, some in phases(run).items()
  }
  everything = np.concatenate(list(phases(sa).values()))
  found['SA at any rate'] = summaries.histogram(
    sa['mean_penalty'][everything], edges
  )
  return plots.histogram_by_decade(
    found,
    title='What gradients were divided by',
    label='penalty (the mean over parameters)',
  )


GAP_PICTURES = {
  'gap-over-staleness.svg': over_staleness,
  'gap-over-training.svg': over_training,
  'gap-penalties.svg': penalties,
}
