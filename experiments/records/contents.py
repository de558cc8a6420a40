"""What stands in the files of JSON that runs leave, by form.

Numbers have ranges wherever something is made as large as they say, or divided
by them. What only this or that version writes need not be there.
"""

from experiments import tasks
from ga_jax.guards import forms

_COUNT = forms.integer(0, 2**53)
_MEASURE = forms.optional(forms.number(-1e300, 1e300))
_MEASURES = forms.listed(_MEASURE)
_NAMED = forms.mapped(forms.anything)
_TEXTS = forms.mapped(forms.text)
_SCALAR = forms.optional(
  forms.any_of(forms.flag, forms.integer(), forms.number(), forms.text)
)
_JUDGED = {
  f'{split}_{name}': _MEASURE
  for split in ('test', 'validation', 'train')
  for name in (*tasks.METRICS, 'loss')
}
_SEEN = {  # of a row and of a summary
  **_JUDGED,
  'updates': _COUNT,
  **dict.fromkeys(('mean_staleness', 'mean_gap'), _MEASURE),
  **dict.fromkeys(('mean_penalty', 'max_penalty'), _MEASURE),
  'max_staleness': _COUNT,
}
_HISTOGRAM = forms.fields({'edges': _MEASURES, 'counts': _MEASURES})
_WORKER = forms.fields({'utilisation': forms.number(0.0, 1.0)}, others=_MEASURE)
_LAYER = forms.mapped(forms.optional(_MEASURES))

ROW_FIELDS = {
  'epoch': forms.number(0.0, 1e9),
  'batches': _COUNT,
  **_SEEN,
  'time': _MEASURE,
  'batches_per_second': _MEASURE,
  'check': forms.text,
}
ROW = forms.fields(
  ROW_FIELDS, needed=('epoch', 'batches'), others=forms.anything
)  # of metrics.jsonl of a run

_SUMMARY_FIELDS = {
  **_SEEN,
  'batches': forms.integer(1, 2**53),
  'epochs': forms.number(1e-30, 1e9),
  'diverged': forms.flag,
  'stopped': forms.flag,
  'staleness_histogram': forms.listed(_COUNT, most=10**7),
  'gap_histogram': _HISTOGRAM,
  'penalty_histogram': _HISTOGRAM,
  'layers': forms.mapped(_LAYER),
  'wasted_work': _MEASURE,
  'messages': _COUNT,
  'bytes_pulled': _MEASURE,
  'bytes_pushed': _MEASURE,
  'simulated_time': _MEASURE,
  'simulated_speedup': _MEASURE,
  'wall_seconds': _MEASURE,
  'updates_per_second': _MEASURE,
  'method': forms.text,
  'workers': forms.integer(1),
  'learning_rate': forms.number(1e-30, 1e30),
  'seed': forms.integer(),
  'device': forms.text,
  'clock': forms.text,
  'jax': forms.text,
  'refused': forms.mapped(_COUNT),
  'missing_workers': forms.listed(_COUNT),
  'server_accelerator': forms.text,
  'worker_seconds': forms.mapped(_WORKER),
  'compilation': forms.mapped(_MEASURE),
  'settings': _NAMED,
  'inputs': _TEXTS,
  'curve': forms.listed(
    forms.fields(ROW_FIELDS, needed=(), others=forms.anything)
  ),
}
SUMMARY = forms.fields(
  _SUMMARY_FIELDS,
  needed=('batches', 'updates', 'epochs', 'max_staleness', 'diverged'),
  others=forms.anything,
)  # summary.json of a run
CELL = forms.fields(
  {**_SUMMARY_FIELDS, 'cell': forms.text},
  needed=('cell',),
  others=forms.anything,
)  # of metrics.jsonl of a grid

BY_NAME = {
  'config.json': _NAMED,
  'versions.json': _TEXTS,
  'environment.json': forms.mapped(_SCALAR),
  'began.json': forms.fields(
    {
      'settings': _NAMED,
      'inputs': _TEXTS,
      'batches_per_row': forms.integer(1),
      'sha256': _TEXTS,
    },
    needed=('settings', 'inputs'),
  ),
  'summary.json': SUMMARY,
  'digests.json': forms.fields({'sha256': _TEXTS}),
}
