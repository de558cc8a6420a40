"""Damages files of runs, at random, and tells what commands make of it."""

import collections
import contextlib
import json
import pathlib
import random
import re
import shutil
import time
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np

from experiments.records import digests, record
from experiments.replaying import computing
from experiments.reporting import figures
from experiments.running import setup
from ga_jax.executors import lengths
from ga_jax.record import arrays, files
from tests import scripts

SMALL = (
  *('--quiet', '--model=mlp', '--batch_size=32', '--epochs=0.4'),
  *('--evaluate_every=0.1', '--workers=2', '--seed=3'),
)
SECONDS = 60.0  # what takes longer hangs
# What a file of JSON may hold where a number, a name or a list should be.
ODD = (
  *(None, True, -1, 0, 0.5, 10**9, 10**13, 10**400, -(10**18), 1e308, 5e-324),
  *('', 'x', '../../x', '\x1b[2J', '\ud800', 'a' * 10_000, [], {}, [[]]),
  *([None], {'x': {}}, [1] * 1000, float('nan'), float('inf')),
)


class Outcome(NamedTuple):
  """What commands made of a damaged folder.

  Attributes:
    told: whether any of them said so.
    wrong: what none of them may do; '' where they did not.
  """

  told: bool
  wrong: str


def finished(root: pathlib.Path, runtime: str) -> pathlib.Path:
  """A run that has ended."""
  folder = root / f'finished-{runtime}'
  done = scripts.call(
    'train', *SMALL, f'--runtime={runtime}', f'--workdir={folder}'
  )
  assert done.code == 0, done.err
  return folder


def interrupted(root: pathlib.Path, runtime: str) -> pathlib.Path:
  """A run that was killed after its second checkpoint but one."""
  folder = root / f'interrupted-{runtime}'
  done = scripts.call(
    'train',
    *SMALL,
    f'--runtime={runtime}',
    '--checkpoint_every=4',
    '--keep_checkpoints=9',
    f'--workdir={folder}',
  )
  assert done.code == 0, done.err
  for name in ('summary.json', 'digests.json', 'trace.npz', 'arrivals.npz'):
    (folder / name).unlink()
  shutil.rmtree(folder / 'params')
  for path in sorted((folder / 'checkpoints').iterdir())[2:]:
    shutil.rmtree(path)
  return folder


def files_of(folder: pathlib.Path) -> dict[str, list[str]]:
  """The files of a run, as paths in its folder; those of Orbax together."""
  found = {}
  for path in sorted(p for p in folder.rglob('*') if p.is_file()):
    name = str(path.relative_to(folder))
    group = re.sub(r'arrays/.*', 'arrays/*', name)
    group = re.sub(r'checkpoints/[^/]*', 'checkpoints/*', group)
    found.setdefault(group, []).append(name)
  return found


def changed(content: bytes, is_json: bool, rng: random.Random) -> bytes:
  """A file with a few flipped bits, cut off, or with another value in it."""
  kind = rng.choice(['flip', 'cut', 'mutate'] if is_json else ['flip', 'cut'])
  if kind == 'mutate':
    return _mutated(content, rng)
  if kind == 'cut' or not content:
    return content[: rng.randrange(len(content) or 1)]
  made = bytearray(content)
  for _ in range(rng.choice([1, 1, 2, 8])):
    made[rng.randrange(len(made))] ^= 1 << rng.randrange(8)
  return bytes(made)


def _mutated(content: bytes, rng: random.Random) -> bytes:
  """JSON, or a line of JSON, with something else at a place in it."""
  lines = content.splitlines() if b'\n{' in content else [content]
  at = rng.randrange(len(lines))
  holder = [json.loads(lines[at])]
  places = list(_places(holder))
  where, key = rng.choice(places)
  kind = rng.randrange(4)
  if kind == 0 and where is not holder:
    del where[key]
  elif kind == 1 and isinstance(where, dict):
    where['strange' if rng.random() < 0.5 else ''] = where.pop(key)
  elif kind == 2:
    where[key] = [where[key]] * 2
  else:
    where[key] = rng.choice(ODD)
  if rng.random() < 0.02:
    lines[at] = b'[' * 100_000
  else:
    lines[at] = json.dumps(holder[0]).encode()
  return b'\n'.join(lines)


def _places(value):
  """Every (list or dict, index or key) inside a value."""
  inner = value.items() if isinstance(value, dict) else enumerate(value)
  for key, one in inner:
    yield value, key
    if isinstance(one, list | dict):
      yield from _places(one)


class Trial:
  """A run, and what commands say of copies of it that were damaged."""

  def __init__(self, folder: pathlib.Path, scratch: pathlib.Path):
    """Looks at the run as it is.

    Args:
      folder: of the run.
      scratch: where copies are made; always under the same name.
    """
    self.folder = folder
    self._at = scratch / 'run'
    self._missing = None  # what a report says of the run as it is
    self._ended = (folder / 'summary.json').exists()
    with self._copy():
      self._said = self._commands()
    for command, (_, told) in self._said.items():
      assert not told, command

  def damaged(self, name: str, content: bytes, forged: bool) -> Outcome:
    """What commands make of the run with other bytes in a file.

    Args:
      name: of the file.
      content: of the file.
      forged: whether the digests are made to agree, as somebody would who means
        it; then nothing need be told.
    """
    if (self.folder / name).read_bytes() == content:
      return Outcome(False, '')
    with self._copy():
      (self._at / name).write_bytes(content)
      if forged:
        forge(self._at, name)
      began = time.monotonic()
      try:
        found = self._commands()
      except Exception as error:
        return Outcome(False, f'a traceback: {type(error).__name__}: {error}')
      if time.monotonic() - began > SECONDS:
        return Outcome(False, 'it took too long')
    silent = [
      command
      for command, (result, told) in found.items()
      if not told and result != self._said[command][0]
    ]
    if silent and not forged:
      return Outcome(False, f'{", ".join(silent)} said something else')
    return Outcome(any(told for _, told in found.values()), '')

  @contextlib.contextmanager
  def _copy(self):
    shutil.copytree(self.folder, self._at)
    try:
      yield
    finally:
      shutil.rmtree(self._at)

  def _commands(self) -> dict[str, tuple[Any, bool]]:
    """By command what came out, and whether it said that something is wrong."""
    workdir, found = f'--workdir={self._at}', {}
    commands = [('report',)]
    commands += [('verify',), ('replay', '--quiet')] * self._ended
    commands += [('train', '--resume', '--quiet')] * (not self._ended)
    for command, *more in commands:
      done = scripts.call(command, *more, workdir)
      told = bool(done.code or done.err)
      if done.code not in (0, 1, 2) or 'Traceback' in done.err:
        raise AssertionError(f'{command}: exit code {done.code}: {done.err}')
      if command == 'report' and not done.code:
        result, missing = self._page()
        told = told or missing != self._missing
      else:
        result = self._result(done, command)
      found[command] = result, told
    return found

  def _page(self) -> tuple[str, str]:
    """What a report shows, and what it says is not there or was changed."""
    page = (self._at / 'report.html').read_text().partition('<main>')[2]
    shown, _, missing = page.partition('<section id="missing">')
    missing = missing.partition('</section>')[0]
    if self._missing is None:
      self._missing = missing
    return shown, missing

  def _result(self, done, command):
    if command != 'train' or done.code:
      return done.out
    return results_of(self._at)


def forge(folder: pathlib.Path, name: str):
  """Has manifests and digests agree with a file that was changed."""
  for parent in (folder / name).parents:
    path = parent / 'manifest.json'
    if path.exists() and path != folder / name:
      manifest = json.loads(path.read_text())
      manifest['files'] = {
        one: [(parent / one).stat().st_size, files.sha256(str(parent / one))]
        for one in arrays.contents(str(parent))
      }
      path.write_text(json.dumps(manifest))
  if (folder / 'digests.json').exists() and name != 'digests.json':
    digests.write(str(folder))


def results_of(folder: pathlib.Path):
  """What a run came to, but for the times that it took."""
  settings = record.load_settings(str(folder))
  params = record.load_params(str(folder), settings)
  found = [*jax.tree.leaves(params), record.load_trace(str(folder)).events]
  found += record.load_arrivals(str(folder)).values()
  summary = record.load_json(str(folder), 'summary.json')
  for key in ('wall_seconds', 'updates_per_second', 'compilation'):
    summary.pop(key)
  summary.pop('worker_seconds', None)
  summary.pop('refused', None)
  return json.dumps(summary, sort_keys=True), [
    np.asarray(x).tobytes() for x in found
  ]


@contextlib.contextmanager
def quick():
  """Computes and traces only once what is the same, and draws no figures."""
  with contextlib.ExitStack() as stack:
    for module, name, key_fn in (
      (computing, 'computed', lambda s, t, *a, **_: (s, t.events.tobytes(), a)),
      (setup, 'initial', lambda settings: settings),
      (setup, 'job_of', lambda settings, method: settings),
      (lengths, 'unrolled_convolutions', id),
    ):
      once = _once(getattr(module, name), key_fn)
      stack.enter_context(mock.patch.object(module, name, once))
    stack.enter_context(mock.patch.object(figures, 'of', return_value=[]))
    yield


def _once(made_fn, key_fn):
  """A function that remembers what it returned, and its arguments."""
  kept = {}

  def remembered(*args, **more):
    key = repr(key_fn(*args, **more))
    if key not in kept:
      kept[key] = made_fn(*args, **more), args
    return kept[key][0]

  return remembered


def campaign(trial: Trial, number: int, seed: int, forged: bool = False):
  """Damages every file of a run so often.

  Returns:
    {file: (tried, told, harmless)}, and what was wrong, in lines.
  """
  table, wrong = {}, []
  for group, names in files_of(trial.folder).items():
    rng = random.Random(f'{group} {seed}')
    counts = collections.Counter()
    for _ in range(number):
      name = rng.choice(names)
      content = (trial.folder / name).read_bytes()
      made = changed(content, name.endswith(('.json', '.jsonl')), rng)
      outcome = trial.damaged(name, made, forged)
      if outcome.wrong:
        wrong.append(f'{name}: {outcome.wrong}: {made[:200]!r}')
      counts['told' if outcome.told else 'harmless'] += not outcome.wrong
    table[group] = number, counts['told'], counts['harmless']
  return table, wrong
