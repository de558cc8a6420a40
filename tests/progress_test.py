"""What is shown of a run while it goes on."""

import html
import io
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl

import numpy as np
import pytest
from rich.console import Console

import ga_jax
from experiments.running import accelerators, control, utilisation, watch
from experiments.screens import panel, progress
from ga_jax import clocks, policies
from ga_jax.simulation import virtual_cluster
from tests import scripts

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
ROW = {
  'epoch': 2.0,
  'batches': 200,
  'updates': 50,
  'train_loss': 0.25,
  'mean_staleness': 7.0,
  'mean_gap': 0.0125,
  'test_error': 0.0345,
  'validation_error': None,
  'batches_per_second': 400.0,
}
RECENT = {'loss': 0.125, 'staleness': 6.5, 'gap': 0.02}


def at(batches=200, row=ROW, recent=RECENT, **more):
  return watch.Progress(
    batches / 100, batches, 1000, 400.0, row, recent, 0.43, **more
  )


def console(width, **options):
  return Console(
    file=io.StringIO(), record=True, force_terminal=True, width=width, **options
  )


def drawn(width, *updates, every=5.0):
  """The panel after updates that came every so many seconds."""
  seconds = iter(np.arange(100) * every)
  shown = panel.Panel('ga on digits', lambda: next(seconds))
  for one in updates:
    shown.update(one)
  where = console(width)
  where.print(shown)
  return where.export_text()


def test_the_panel_says_who_is_not_here():
  assert 'workers that are not here: 1, 3' in drawn(80, at(missing=(1, 3)))
  assert 'not here' not in drawn(80, at(missing=(1, 3)), at())


def test_the_panel_says_what_the_server_computes_with():
  assert '; server on gpu' in drawn(80, at(server='gpu'))
  assert 'server' not in drawn(80, at())


def test_the_panel_says_where_the_run_stands():
  text = drawn(80, at(100), at(200))
  for said in (
    'ga on digits',
    'epoch 2.0 of 10',
    '20 %',
    '0:40 left',  # 800 batches at 100 in 5 s
    'loss 0.1250',
    'test error 3.45 %',
    'updates/s 100',  # 50 of 200 batches
    'staleness 6.5',
    'gap 2.00e-02',
    'utilisation 43 %',
    'compiled ',
  ):
    assert said in text, text
  assert 'validation' not in text


@pytest.mark.parametrize('width', [30, 45, 60, 80, 200])
def test_the_panel_fits_any_terminal(width):
  lines = drawn(width, at()).splitlines()
  assert {len(line) for line in lines} == {width}
  assert lines[0][0] + lines[-1][-1] == '╭╯'


def test_the_panel_has_dashes_before_anything_is_known():
  assert 'compiling ...' in drawn(60)
  text = drawn(80, at(100, row=None, recent=None))
  assert 'loss -' in text
  assert '-:-- left' in text
  assert 'batches/s 400' in text  # updates are not counted yet


def test_the_panel_of_a_run_that_goes_on_begins_at_its_epoch():
  text = drawn(80, at(800, row=None), at(900, row=None))
  assert 'epoch 9.0 of 10' in text
  assert '0:05 left' in text  # not at the pace of 900 in 5 s


@pytest.mark.parametrize(
  'last',
  [
    at(row=None, recent={**RECENT, 'loss': float('nan')}, diverged=True),
    at(recent={**RECENT, 'loss': float('inf')}),
  ],
)
def test_a_diverged_loss_is_shown_as_such(last):
  assert re.search(r'loss (nan|inf) diverged', drawn(80, at(100), last))


def test_long_durations_are_shown_in_days():
  assert panel.duration(3600 * 75) == '3 days'
  assert panel.duration(3661) == '1:01:01'
  assert panel.duration(59.6) == '1:00'


def test_colours_can_be_declined(monkeypatch):
  monkeypatch.setenv('NO_COLOR', '1')
  shown = console(80, color_system='truecolor')
  one = panel.Panel('x')
  one.update(at(row=None, diverged=True))
  shown.print(one)
  coloured = re.compile(r'\x1b\[[0-9;]*3[0-9]')
  assert not coloured.search(shown.file.getvalue())


def test_without_a_terminal_progress_is_in_lines(capsys):
  with progress.TrainingProgress('ga') as shown:
    shown.update(at(100, row=None))
    shown.update(at(200))
    shown.update(at(300, row=None, diverged=True))
  compiling, compiled, epoch, diverged = capsys.readouterr().out.splitlines()
  assert compiling == 'compiling ...'
  assert compiled.startswith('compiled ')
  assert epoch == (
    'epoch 2.0  loss 0.2500  test error 3.45 %  staleness 7.0  gap 1.25e-02  '
    'utilisation 43 %  400 batches/s'
  )
  assert diverged == 'epoch 3.0  loss nan: diverged'
  nan = progress.describe({**ROW, 'train_loss': float('nan')})
  assert nan.startswith('epoch 2.0  loss nan: diverged  test')


def test_quiet_progress_prints_nothing(capsys):
  with progress.TrainingProgress('ga', quiet=True) as shown:
    shown.update(at())
  with progress.GridProgress(2, quiet=True) as shown:
    shown('one')
    shown('two')
  with progress.TrainingProgress(quiet=True, console=console(80)) as shown:
    shown.update(at())
  assert capsys.readouterr() == ('', '')


def test_a_grid_fits_a_narrow_terminal():
  shown = console(60)
  with progress.GridProgress(3, console=shown) as grid:
    grid('ga-N16-lr0.1-seed0-0123456789')
    grid('a name that is much too long for a terminal of sixty columns')
  _, last = shown.file.getvalue().rsplit('\r', 1)
  last = re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', last).rstrip()
  assert last.startswith('2/3')
  assert len(last) <= 60


def test_without_a_terminal_a_grids_progress_is_in_lines(capsys):
  with progress.GridProgress(3) as shown:
    for name in 'abc':
      shown(name)
  assert capsys.readouterr().out.splitlines() == [
    '1/3 runs',
    '2/3 runs',
    '3/3 runs',
  ]


@pytest.mark.slow
def test_the_picture_of_the_panel_is_of_a_run(tmp_path):
  path = tmp_path / 'pictures' / 'panel.svg'
  code, out, err = scripts.call(
    'documents.screens', '--epochs=4', f'--picture={path}'
  )
  assert (code, err) == (0, f'device: {accelerators.here()}\n')
  assert out == f'written to {path}\n'
  text = html.unescape(path.read_text()).replace('\xa0', ' ')
  said = ' '.join(re.findall(r'>([^<>]+)</text>', text))
  assert 'epoch 2.0 of 4' in said
  assert 'ga, mlp_bn on digits, 16 workers simulated' in said
  error = re.search(r'test error +([0-9.]+) %', said)
  assert 0 < float(error[1]) < 50
  assert 'url("http' not in text  # nothing is fetched


# Utilisation.


def by_hand(events, num_workers, until):
  """Busy time over all time, ticket by ticket."""
  begun, busy = {}, 0.0
  for row in events[events['time'] <= until]:
    if row['event'] == 0:
      begun[row['ticket_id']] = row['time']
    elif row['ticket_id'] in begun:
      busy += row['time'] - begun.pop(row['ticket_id'])
  busy += sum(until - start for start in begun.values())
  return busy / (num_workers * until)


@pytest.mark.parametrize(
  'policy', ['asynchronous', 'synchronous', 'backup_workers', 'ringmaster']
)
def test_utilisation_is_what_the_trace_says(policy):
  trace = virtual_cluster.schedule(
    policies.make(policy, 4),
    clocks.heterogeneous(1),
    num_workers=4,
    num_batches=200,
  )
  whole, pieces = utilisation.Utilisation(), utilisation.Utilisation()
  whole.take(trace.events)
  applied = trace.applied()
  done = 0
  for batches in (1, 50, 51, 200):
    row = applied[batches - 1]
    until = np.flatnonzero(trace.events['ticket_id'] == row['ticket_id'])[-1]
    pieces.take(trace.events[done : until + 1].tolist())  # as they happen
    done = until + 1
    final = whole.at(batches)
    assert final == pytest.approx(pieces.at(batches))
    wanted = by_hand(trace.events[: until + 1], 4, row['time'])
    assert final == pytest.approx(wanted)
  assert whole.at(201) is None
  if policy == 'asynchronous':
    assert final > 0.98  # at the end nothing is left for some
  if policy == 'synchronous':
    assert final < 0.8


def test_events_are_handed_over_as_they_happen():
  seen = []
  loss = lambda p, s, x, key: (((x - p) ** 2).mean(), s)  # noqa: E731
  result = ga_jax.simulate(
    ga_jax.Job(
      loss,
      np.zeros(()),
      lambda i: np.ones(4, np.float32),
      ga_jax.gap_aware(0.01),
      policies.make('abs', 4),
    ),
    clocks.heterogeneous(0),
    num_workers=4,
    num_batches=20,
    take_events=seen.extend,
  )
  assert [tuple(row) for row in seen] == result.trace.events.tolist()


# The real script in a real terminal.


def in_terminal(columns, *arguments, interrupt=0):
  """What a script writes to a terminal; Ctrl-C after so many epochs' worth."""
  ours, theirs = pty.openpty()
  ioctl(theirs, termios.TIOCSWINSZ, struct.pack('HHHH', 30, columns, 0, 0))
  process = subprocess.Popen(
    [sys.executable, '-m', 'experiments.train', *arguments],
    cwd=ROOT,
    env={**os.environ, 'TERM': 'xterm-256color'},
    stdin=theirs,
    stdout=theirs,
    stderr=theirs,
  )
  os.close(theirs)
  seen, deadline = b'', time.monotonic() + 120
  while time.monotonic() < deadline:
    if select.select([ours], [], [], 0.1)[0]:
      try:
        seen += os.read(ours, 65536)
      except OSError:  # the other end is closed
        break
    if interrupt and b'updates/s' in seen:
      process.send_signal(signal.SIGINT)
      interrupt = 0
  process.kill()  # where it did not end
  os.close(ours)
  return process.wait(), seen.decode()


@pytest.mark.slow
def test_a_terminal_shows_a_panel_that_ends_clean(tmp_path):
  workdir = f'--workdir={tmp_path / "a run"}'
  code, seen = in_terminal(
    60,
    workdir,
    '--model=mlp',
    '--workers=3',
    '--epochs=2000',
    '--evaluate_every=2',
    interrupt=1,
  )
  assert code == 130
  assert seen.count('\x1b[?25l') == seen.count('\x1b[?25h') == 1
  plain = re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', seen)
  assert 'ga, mlp on digits, 3 workers simulated' in plain
  assert 'utilisation 100 %' in plain
  assert 'stopping after the update in hand' in plain
  assert 'nothing to go on with: --checkpoint_every=30s' in plain
  assert seen.rindex('\x1b[?25h') > seen.rindex('╰')


def test_the_pace_of_a_live_run_is_that_of_its_arrivals():
  """It goes on while it is evaluated: 50 batches in 0.5 s here."""
  follow = watch.Watch(None, 1000, 1000, 1000, None, False, control.Control())
  follow.telemetry = dict
  for batches, seconds in ((10, 3.0), (20, 3.1), (60, 3.5)):
    losses = np.ones(2, np.float32)
    block = {'loss': losses, 'time': np.array([0.0, seconds])}
    block['num_batches'] = np.array([batches // 2, batches - batches // 2])
    follow(batches, None, block)
  assert follow.rate() == pytest.approx(100)
