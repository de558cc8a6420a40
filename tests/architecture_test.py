"""The house rules: imports go one way, and importing costs little."""

import ast
import pathlib
import subprocess
import sys

import ga_jax

ROOT = pathlib.Path(ga_jax.__file__).parent

# What each part may import from ga_jax, beside `checks`.
MAY_IMPORT = {
  'checks': set(),
  'rules': {'rules'},
  'policies': {'policies'},
  'clocks': {'clocks'},
  'models': {'models'},
  'data': {'data', 'metrics', 'runtimes'},  # of these job.Source only
  'programs': {'programs', 'rules'},
  'compression': {'compression', 'programs', 'rules'},
  'exclusive': set(),
  'locks': set(),
  'audit': {'policies'},
  'trace': {'audit', 'exclusive', 'locks', 'metrics', 'policies'},
  'ledger': {'exclusive', 'policies', 'streams', 'trace'},
  'streams': set(),
  'recovery': {'ledger', 'policies', 'trace'},
  'snapshots': {'exclusive'},
  'metrics': set(),
  'plots': {'plots'},
  'checkpoint': {'exclusive', 'locks', 'saving'},
  'saving': set(),
  'kernel': {'rules', 'statistics'},
  'statistics': set(),
  'sharding': {'rules'},
  'sharded': {
    'kernel',
    'ledger',
    'policies',
    'rules',
    'server',
    'sharding',
    'snapshots',
    'statistics',
  },
  'server': {
    'exclusive',
    'kernel',
    'ledger',
    'policies',
    'rules',
    'snapshots',
    'statistics',
    'trace',
  },
  'runtimes': {
    'checkpoint',
    'clocks',
    'kernel',
    'ledger',
    'locks',
    'policies',
    'programs',
    'recovery',
    'rules',
    'runtimes',
    'server',
    'sharded',
    'sharding',
    'statistics',
    'trace',
  },
}
WITHOUT_JAX = {
  'checks',
  'policies',
  'clocks',
  'audit',
  'exclusive',
  'trace',
  'ledger',
  'locks',
  'streams',
  'snapshots',
  'plots',
}


def imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      yield node.module
      if node.module == 'ga_jax':
        yield from (f'ga_jax.{alias.name}' for alias in node.names)


def test_imports_go_one_way():
  files = [p for p in ROOT.rglob('*.py') if p != ROOT / '__init__.py']
  assert len(files) > 30
  for path in files:
    part = path.relative_to(ROOT).parts[0].removesuffix('.py')
    for name in imports(path):
      if name.startswith('ga_jax.'):
        allowed = {'checks', *MAY_IMPORT[part]}
        assert name.split('.')[1] in allowed, f'{path}: {name}'
      assert not name.startswith('experiments'), f'{path}: {name}'
      if part in WITHOUT_JAX:
        assert name.split('.')[0] not in ('jax', 'optax'), f'{path}: {name}'


def test_every_method_is_one_file_and_one_line():
  from ga_jax import clocks, compression, policies, programs, rules

  for table, folder in (
    (rules.RULES, 'rules'),
    (policies.POLICIES, 'policies'),
    (clocks.CLOCKS, 'clocks'),
    (programs.PROGRAMS, 'programs'),
    (compression.COMPRESSIONS, 'compression'),
  ):
    for make in table.values():
      assert make.__module__.startswith(f'ga_jax.{folder}.')
      assert make.__doc__


def test_import_is_light():
  code = (
    'import time, jax; start = time.process_time(); import ga_jax, sys; '
    'heavy = {"tensorflow", "ray", "sklearn", "matplotlib", "torch"}; '
    'print(time.process_time() - start, sorted(heavy & set(sys.modules)))'
  )
  out = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  ).stdout
  seconds, heavy = out.split(' ', 1)
  assert heavy.strip() == '[]'
  assert float(seconds) < 1.0
