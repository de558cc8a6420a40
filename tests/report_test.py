"""The report: what it says of runs, also of those that are not whole."""

import dataclasses
import html.parser
import json
import os
import re
import runpy
import shlex

import jax
import numpy as np
import pytest
from absl import flags

from experiments.records import finished as runs_lib
from experiments.records import record
from experiments.reporting import (
  about,
  commands,
  faults,
  history,
  lines,
  markup,
  table,
  timeline,
)
from experiments.script import shared_flags
from experiments.settings import table as settings_lib
from ga_jax import plots
from tests import made_runs, scripts

pytestmark = pytest.mark.usefixtures('relaxed')

NAN = float('nan')
VOID = {'meta', 'link', 'br', 'img', 'input', 'hr'}


class Page(html.parser.HTMLParser):
  """Tags, attributes and text of a page; fails where a tag is not closed."""

  def __init__(self, text: str):
    super().__init__()
    self.open, self.tags, self.links, self.texts = [], [], [], []
    self.feed(text)
    self.close()
    assert self.open == []
    self.text = ' '.join(self.texts)

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.links += [
      v for k, v in attrs if k in ('href', 'src', 'xlink:href', 'action')
    ]
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.handle_starttag(tag, attrs)
    self.handle_endtag(tag) if tag not in VOID else None

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] not in ('style', 'script'):
      self.texts.append(data)


def read(*folders, **how) -> Page:
  """The page of some folders; none of it may reach for the network."""
  page = Page(made_runs.report(*folders, **how))
  assert all(link.startswith(('#', 'data:')) for link in page.links)
  return page


def comparison_of(*folders, baseline=''):
  seen = [one for folder in folders for one in runs_lib.load(folder)]
  return lines.compared(seen, baseline)


def changed(folder: str, **values):
  """Writes other values into the summary of a run."""
  path = os.path.join(folder, 'summary.json')
  with open(path) as file:
    summary = json.load(file)
  with open(path, 'w') as file:
    json.dump({**summary, **values}, file)


def titles(text: str) -> list[str]:
  """What the events of all timelines say."""
  return [
    html.unescape(t)
    for t in re.findall('<title>(.*?)</title>', text, re.DOTALL)
  ][1:]


# Reading.


def test_a_trained_run_is_read_whole(tmp_path):
  folder = made_runs.trained(tmp_path / 'a', method='sa', seed=3)
  (one,) = runs_lib.load(folder)
  assert one.settings == made_runs.settings_of(method='sa', seed=3)
  assert (one.name, one.folder, one.known) == ('a', folder, True)
  assert len(one.rows) == 2
  assert len(one.trace.applied()) == len(one.arrivals['gap']) == 20
  assert one.summary['test_error'] == 0.1
  assert one.versions['jax'] == jax.__version__
  assert one.environment['platform'] == 'cpu'
  assert one.notes == ()


def test_a_grid_is_read_line_by_line(tmp_path):
  given = {'method': 'ga', 'workers': 2, 'parameters': (('momentum', 0.5),)}
  folder = made_runs.grid(tmp_path / 'g', [(0.1, given), (0.2, {'seed': 1})])
  with open(os.path.join(folder, 'metrics.jsonl'), 'a') as file:
    file.write('{"cell": "cut')
  one, two = runs_lib.load(folder)
  assert one.settings == made_runs.settings_of(**given)
  assert (two.settings.seed, two.summary['test_error']) == (1, 0.2)
  assert one.trace is one.arrivals is None


def test_an_older_folder_of_results_is_read(tmp_path):
  row = made_runs.grid(tmp_path / 'g', [(0.1, {}), (0.3, {'seed': 1})])
  with open(os.path.join(row, 'metrics.jsonl')) as file:
    rows = [json.loads(line) for line in file]
  for one in rows:
    del one['settings']
  results = {'homogeneous': {'best': {'ga': {'1': rows}}}}
  os.unlink(os.path.join(row, 'metrics.jsonl'))
  with open(os.path.join(row, 'results.json'), 'w') as file:
    json.dump(results, file)
  seen = runs_lib.load(row)
  assert [one.settings.seed for one in seen] == [0, 1]
  assert not any(one.known for one in seen)
  page = read(row)
  assert '20.00 ± 14.14' in page.text
  assert 'The settings were not recorded' in page.text


def test_a_folder_that_cannot_be_read_is_told_in_one_line(tmp_path):
  for folder, why in (
    (tmp_path / 'none', 'no such folder'),
    (tmp_path, 'holds no runs'),
  ):
    with pytest.raises(settings_lib.SettingError, match=why) as error:
      runs_lib.load(str(folder))
    assert '\n' not in str(error.value)
  folder = made_runs.grid(tmp_path / 'g', [(0.1, {})])
  with pytest.raises(settings_lib.SettingError, match='--baseline=sa'):
    comparison_of(folder, baseline='sa')
  other = made_runs.grid(tmp_path / 'h', [(0.1, {'seed': 1})])
  path = os.path.join(other, 'metrics.jsonl')
  with open(path) as file:
    text = file.read().replace('_error', '_perplexity')
  with open(path, 'w') as file:
    file.write(text)
  with pytest.raises(settings_lib.SettingError, match='judged alike'):
    comparison_of(folder, other)


# Sorting.


def test_lines_of_a_comparison_are_methods_and_what_differs(tmp_path):
  folder = made_runs.grid(
    tmp_path / 'g',
    [
      (0.1, {'method': m, 'workers': n, 'parameters': (('momentum', g),)})
      for m in ('asgd', 'ga')
      for g in (0.0, 0.9)
      for n in (1, 4)
    ],
  )
  found = comparison_of(folder)
  assert found.varied == ('method', 'momentum')
  assert found.lines() == [
    *('asgd, momentum 0', 'asgd, momentum 0.9'),
    *('ga, momentum 0', 'ga, momentum 0.9'),
  ]
  assert found.workers() == [1, 4]
  last = found.cells[-1]
  assert found.partner(last).line == 'asgd, momentum 0.9'
  assert found.partner(last).workers == 4


def test_equal_runs_of_two_folders_are_two_lines(tmp_path):
  a = made_runs.trained(tmp_path / 'a')
  b = made_runs.trained(tmp_path / 'b')
  assert comparison_of(a, b).lines() == [f'ga, {a}', f'ga, {b}']


def test_a_row_is_at_the_best_rate_on_the_validation_split(tmp_path):
  errors = {0.01: 0.3, 0.1: 0.2, 1.0: None}
  folder = made_runs.grid(
    tmp_path / 'g',
    [
      (
        error and error + n / 1000,
        {'method': 'asgd', 'workers': n, 'learning_rate': rate},
      )
      for n in (1, 2)
      for rate, error in errors.items()
    ],
  )
  found = comparison_of(folder)
  assert [cell.rate for cell in found.cells] == [0.1, 0.1]
  assert not any(cell.edge for cell in found.cells)
  head, rows = table.contents(found, table.outcome(found))
  at = head.index('at the single worker’s rate')
  assert rows[1][at] == '20.20 at 0.1'
  assert 'diverged, at learning rates that were not chosen' in read(folder).text


def test_rates_without_a_validation_split_are_lines(tmp_path):
  a = made_runs.trained(tmp_path / 'a', learning_rate=0.1)
  b = made_runs.trained(tmp_path / 'b', learning_rate=0.01)
  for folder in (a, b):
    changed(folder, validation_error=None)
  found = comparison_of(a, b)
  assert found.lines() == ['ga, learning_rate 0.1', 'ga, learning_rate 0.01']


def test_the_table_has_means_and_paired_differences(tmp_path):
  errors = {'asgd': (0.10, 0.20, 0.30), 'ga': (0.08, 0.19, 0.27)}
  folder = made_runs.grid(
    tmp_path / 'g',
    [
      (error, {'method': method, 'workers': 2, 'seed': seed})
      for method, of in errors.items()
      for seed, error in enumerate(of)
    ],
  )
  found = comparison_of(folder)
  head, rows = table.contents(found, table.outcome(found))
  got = dict(zip(head, rows[1], strict=True))
  assert got['test error, %'] == '18.00 ± 9.54'
  apart = np.array([-2.0, -1.0, -3.0])
  errors_of_mean = 2.0 / (apart.std(ddof=1) / np.sqrt(3))
  assert got['minus asgd'] == f'-2.00 ({errors_of_mean:.1f})'
  assert got['runs'] == '3'


# What happened.


def test_a_run_without_a_trace_is_played_again(tmp_path):
  folder = made_runs.trained(tmp_path / 'a', workers=4, clock='heterogeneous')
  (one,) = runs_lib.load(folder)
  recorded = history.history(one)
  played = history.history(one._replace(trace=None, arrivals=None))
  assert (played.recorded, played.gaps) == (False, None)
  assert np.array_equal(played.trace.events, recorded.trace.events)
  assert played.executed == recorded.executed == 20


@pytest.mark.parametrize(
  ('settings', 'summary', 'why'),
  [
    ({}, {'mean_staleness': 0.5}, 'not the one'),
    ({}, {'simulated_time': None}, 'not the one'),
    ({'method': 'adasync', 'workers': 4}, {}, 'decides by losses'),
    ({'runtime': 'threads'}, {}, 'real devices'),
  ],
)
def test_a_schedule_that_is_not_known_is_not_drawn(
  tmp_path, settings, summary, why
):
  (one,) = runs_lib.load(made_runs.trained(tmp_path / 'a', workers=3))
  changed = dataclasses.replace(one.settings, **settings)
  one = one._replace(
    trace=None, settings=changed, summary={**one.summary, **summary}
  )
  with pytest.raises(history.UnknownHistoryError, match=why):
    history.history(one)


def test_events_say_what_the_trace_says(tmp_path):
  folder = made_runs.trained(tmp_path / 'a', workers=4)
  (one,) = runs_lib.load(folder)
  applied = one.trace.applied()
  said = titles(made_runs.report(folder))
  computed = [text for text in said if ': compute' in text]
  assert len(computed) == len(applied)
  by_ticket = {int(re.search(r'ticket (\d+)', t)[1]): t for t in computed}
  for row, gap in zip(applied, one.arrivals['gap'], strict=True):
    text = by_ticket[row['ticket_id']]
    assert text.startswith(f'worker {row["worker_id"]}: compute\n')
    assert f'version {row["version"]}, staleness {row["staleness"]}\n' in text
    assert f'\ngap {gap:.3e}\n' in text
    assert text.endswith(f' to {row["time"]:.6g}')
  updates = [text for text in said if text.startswith('update ')]
  assert len(updates) == one.trace.updates()


def test_a_long_run_is_shown_at_both_ends(tmp_path):
  folder = made_runs.trained(tmp_path / 'a', workers=5, epochs=30.0)
  (one,) = runs_lib.load(folder)
  spans = plots.spans_of(one.trace.events)
  whole = timeline.windows(spans, 1000)
  first, last = timeline.windows(spans, 40)
  assert [part.name for part in whole] == ['the whole run']
  assert (first.begin, last.end) == (0, one.trace.events['time'][-1])
  for part in (first, last):
    own = [s for s in part.spans if s.kind != 'apply']
    assert 40 <= len(own) <= 50
    assert all(s.end > part.begin and s.begin < part.end for s in part.spans)
  assert first.end < last.begin


def test_events_of_any_number_of_workers_fit(tmp_path):
  folder = made_runs.trained(tmp_path / 'a', workers=200, epochs=30.0)
  text = made_runs.report(folder)
  box = re.search(r'viewBox="-44 -2 1000 (\d+)"', text)
  assert int(box[1]) <= 200 * 3 + 40
  assert len(text) < 1e6


# What diverged.


def test_the_first_loss_that_is_not_finite_is_named(tmp_path):
  losses = [2.0] * 12 + [9.0, NAN, 3.0, NAN]
  folder = made_runs.trained(
    tmp_path / 'a', losses=losses, workers=4, method='asgd', warmup_epochs=2.0
  )
  (one,) = runs_lib.load(folder)
  row = one.trace.applied()[13]
  first, before, *_ = faults.where(one)
  assert 'arrival 14 ' in first
  assert f'worker {row["worker_id"]}, after 13 updates' in first
  assert f'staleness {row["staleness"]} ' in first
  warm = 0.1 * (0.25 + 0.75 * 13 / 20)  # from rate / N on, over 20 batches
  assert float(first.split()[-1]) == pytest.approx(warm, rel=1e-3)
  assert before.endswith('2, 2, 2, 2, 9')
  text = read(folder).text
  assert 'diverged (seed 0)' in text
  assert '--learning_rate=0.032' in text
  assert '--method=ga' in text
  assert 'The run ended after 16 arrivals; the 4 that' in text


def test_without_arrivals_the_rows_say_when_it_diverged(tmp_path):
  folder = made_runs.trained(tmp_path / 'a', losses=[1.0] * 15 + [NAN])
  os.unlink(os.path.join(folder, 'arrivals.npz'))
  (one,) = runs_lib.load(folder)
  said = ' '.join(faults.where(one))
  assert 'after 16 batches (epoch 1.60)' in said
  assert 'in the epoch up to 1' in said
  assert 'not recorded' in said


# What is not there.


@pytest.mark.parametrize(
  ('missing', 'said'),
  [
    ('arrivals.npz', 'Gaps were not recorded'),
    ('trace.npz', 'the schedule was played again'),
    ('metrics.jsonl', 'no metrics.jsonl'),
    ('versions.json', 'no versions.json'),
    ('environment.json', 'no environment.json'),
    ('summary.json', 'has not ended'),
  ],
)
def test_a_report_does_without_a_missing_file(tmp_path, missing, said):
  folder = made_runs.trained(tmp_path / 'a', workers=1)
  os.unlink(os.path.join(folder, missing))
  page = read(folder)
  assert said in page.text
  assert f'no {missing}' in page.text
  assert 'python -m experiments.verify --workdir=' in page.text


def test_damaged_files_are_named(tmp_path):
  folder = made_runs.trained(tmp_path / 'a')
  for name in ('trace.npz', 'arrivals.npz', 'versions.json'):
    with open(os.path.join(folder, name), 'wb') as file:
      file.write(b'\x00no')
  text = read(folder).text
  for name in ('trace.npz', 'arrivals.npz', 'versions.json'):
    assert f'{name} cannot be read' in text


def test_a_run_that_has_hardly_begun_has_a_report(tmp_path):
  record.save_config(str(tmp_path), made_runs.settings_of())
  page = read(str(tmp_path))
  assert 'stands at epoch 0.0 of 2' in page.text
  assert 'No timeline' in page.text


def test_a_run_that_was_stopped_says_so(tmp_path):
  folder = made_runs.trained(tmp_path / 'a', losses=[1.0] * 15)
  changed(folder, stopped=True)
  text = read(folder).text
  assert 'a was stopped at epoch 1.5 of 2' in text
  assert 'The run ended after 15 arrivals; the 5 that' in text


def test_a_grid_that_recorded_little_has_a_report(tmp_path):
  folder = made_runs.grid(tmp_path / 'g', [(0.1, {}), (None, {'seed': 1})])
  path = os.path.join(folder, 'metrics.jsonl')
  kept = ('cell', 'settings', 'test_error', 'diverged')
  with open(path) as file:
    rows = [json.loads(line) for line in file]
  with open(path, 'w') as file:
    for row in rows:
      file.write(json.dumps({k: row[k] for k in kept}) + '\n')
  text = read(folder).text
  assert '10.00 (1 of 2 diverged)' in text
  assert 'No timeline: its summary does not say' in text


# The page.


def test_nothing_that_users_name_is_markup(tmp_path):
  evil = '<script>alert(1)<'
  folder = made_runs.trained(tmp_path / evil)
  settings = dataclasses.replace(
    made_runs.settings_of(), data_path='"><img src=x onerror=y>'
  )
  record.save_config(folder, settings)
  text = made_runs.report(folder)
  page = Page(text)
  assert page.tags.count('script') == 1
  assert 'img' not in page.tags
  assert evil in page.text


def test_pictures_in_one_page_share_no_id():
  svg = (
    '<?xml version="1.0"?><svg width="1"><metadata>x</metadata><path id="a"/>'
    '<use xlink:href="#a" clip-path="url(#b)"/></svg>'
  )
  got = markup.inlined(svg, 'a "picture"', 'f1-')
  assert got == (
    '<svg role="img" aria-label="a &quot;picture&quot;" width="1">'
    '<path id="f1-a"/><use xlink:href="#f1-a" clip-path="url(#f1-b)"/></svg>'
  )


SETTINGS = [
  {},
  {'method': 'asgd', 'parameters': (('momentum', 0.0), ('nesterov', True))},
  {'schedule': 'step', 'boundaries': (1.0, 1.5), 'warmup_epochs': 0.1},
  {'workers': 4, 'stalls': ((1, 2.5, 3.0), (0, 1.0, 0.5)), 'deaths': ((3, 9),)},
  {'bandwidth': 1e6, 'latency': 0.1, 'learning_rate': 1 / 3, 'augment': True},
  {'runtime': 'threads', 'workers': 2, 'straggler': ((1, 2.0),), 'seed': 7},
  {'method': 'ssp', 'workers': 2, 'parameters': (('max_staleness', 3),)},
]


@pytest.mark.parametrize('given', SETTINGS)
def test_the_commands_shown_make_the_same_settings(given):
  settings = made_runs.settings_of(**given)
  command = shlex.split(commands.train(settings, 'a folder'))
  assert command[:3] == ['python', '-m', 'experiments.train']
  with scripts.own_flags('train'):
    runpy.run_module('experiments.train')
    flags.FLAGS(['train', *command[3:]])
    assert flags.FLAGS.workdir == 'a folder'
    again = shared_flags.run_settings()
  assert again == settings


def test_question_names_what_is_compared(tmp_path):
  runs = [
    (0.1, {'method': m, 'workers': n}) for m in ('sa', 'ga') for n in (1, 4)
  ]
  found = comparison_of(made_runs.grid(tmp_path / 'g', runs))
  assert about.title(found) == 'sa and ga, 1 and 4 workers'
  text = Page(about.question(found)).text
  assert 'mlp_bn on digits, 2 epochs in all' in text
  assert '4 runs of 1 seed' in text


def test_the_script_writes_one_page_and_escapes_names(tmp_path):
  evil = made_runs.trained(tmp_path / '<script>', workers=3)
  grid = made_runs.grid(tmp_path / 'g', [(0.1, {}), (None, {'seed': 1})])
  code, out, err = scripts.call('report', f'--workdir={evil},{grid}')
  assert (code, err) == (0, '')
  assert out.endswith(f'written to {evil}/report.html\n')
  with open(os.path.join(evil, 'report.html')) as file:
    page = Page(file.read())
  assert page.tags.count('script') == 1
  assert all(link.startswith(('#', 'data:')) for link in page.links)
  assert 'The test error over the number of workers' in page.text
  assert page.tags.count('figure') > 5


@pytest.mark.parametrize(
  ('flag', 'why'),
  [
    ('--workdir=nowhere', 'no such folder'),
    ('--workdir=', 'must name at least one'),
    ('--baseline=best', 'best is none of asgd'),
  ],
)
def test_the_script_refuses_bad_flags_in_one_line(tmp_path, flag, why):
  folder = made_runs.trained(tmp_path / 'a')
  code, out, err = scripts.call('report', f'--workdir={folder}', flag)
  assert (code, out) == (2, '')
  assert err.startswith(f'error: {flag}: {why}')
  assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_the_script_writes_its_figures(tmp_path):
  folder = made_runs.trained(tmp_path / 'a', workers=3)
  pictures, page = tmp_path / 'pictures', tmp_path / 'page.html'
  ended = scripts.call(
    'report',
    *(f'--workdir={folder}', f'--figures={pictures}', f'--output={page}'),
  )
  assert (ended.code, ended.err) == (0, '')
  names = {os.path.splitext(p.name)[0] for p in pictures.iterdir()}
  assert {'error-over-epochs', 'gap-over-time', 'staleness', 'bytes'} <= names
  assert len(list(pictures.iterdir())) == 3 * len(names)
  figures = Page(page.read_text()).tags.count('figure')
  assert figures == len(names) + 1  # and the timeline
