"""The house rules: imports go down only, and importing costs little."""

import ast
import collections
import functools
import graphlib
import pathlib
import re
import subprocess
import sys

import pytest

import ga_jax

ROOT = pathlib.Path(ga_jax.__file__).parent.parent

# Rooms and modules that decide, count and draw: on any host, at once.
WITHOUT_JAX = (
  *('ga_jax.guards', 'ga_jax.policies', 'ga_jax.clocks', 'ga_jax.plots'),
  *('ga_jax.record.trace', 'ga_jax.record.audit', 'ga_jax.server.ledger'),
  *('ga_jax.server.streams', 'ga_jax.server.snapshots'),
)


def modules():
  """{module: path} of everything."""
  found = {}
  for package in ('ga_jax', 'experiments'):
    for path in (ROOT / package).rglob('*.py'):
      parts = path.relative_to(ROOT).with_suffix('').parts
      found['.'.join(p for p in parts if p != '__init__')] = path
  return found


MODULES = modules()


def rooms():
  """{room: rooms that it may import}, as the table of docs/design.md says."""
  found = {}
  for line in (ROOT / 'docs' / 'design.md').read_text().splitlines():
    if row := re.fullmatch(r'\| `([\w/]+)` \| .* \| ([\w. -]+) \|', line):
      room = row[1].replace('/', '.')
      package, _, _ = room.partition('.')
      own = {f'{package}.{name}' for name in row[2].split() if name != '-'}
      guards = {'ga_jax.guards'} - ({'ga_jax.guards'} & {room})
      found[room] = own | (set() if room == 'ga_jax.kernels' else guards)
  library = {room for room in found if room.split('.')[0] == 'ga_jax'}
  for room, others in found.items():
    if room not in library:
      others |= library
  return found


ROOMS = rooms()


def room_of(module: str) -> str:
  """The folder of a module."""
  if MODULES[module].name == '__init__.py':
    return module
  return module.rpartition('.')[0]


@functools.cache
def imports(path):
  """What a file imports, of us modules, of others packages."""
  return set(_imports(path))


def _imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      for alias in node.names:
        whole = f'{node.module}.{alias.name}'
        yield whole if whole in MODULES else node.module


def test_every_room_is_in_the_list():
  assert {room_of(module) for module in MODULES} == ROOMS.keys()
  assert len(MODULES) > 200


@pytest.mark.parametrize('room', ROOMS)
def test_rooms_import_what_the_table_says(room):
  found = collections.defaultdict(list)
  for module, path in MODULES.items():
    if room_of(module) == room:
      for name in imports(path):
        if name in MODULES and room_of(name) != room:
          found[room_of(name)].append(f'{module} imports {name}')
  for other, lines in found.items():
    assert other in ROOMS[room], lines
  unused = ROOMS[room] - found.keys() - {'ga_jax.guards'}
  if room.startswith('experiments'):
    unused = {name for name in unused if name.startswith('experiments')}
  assert not unused  # the table says no more than there is


@pytest.mark.parametrize('package', ['ga_jax', 'experiments'])
def test_imports_have_no_circle(package):
  """Neither of modules nor of rooms, whatever the list says."""
  files, rooms = {}, collections.defaultdict(set)
  for module, path in MODULES.items():
    if module.split('.')[0] == package:
      names = {n for n in imports(path) if n in MODULES and n != module}
      files[module] = names
      rooms[room_of(module)] |= {room_of(n) for n in names}
  for room, others in rooms.items():
    others -= {room, 'experiments'}  # `experiments` is empty but for commands
  for graph in (files, rooms):
    list(graphlib.TopologicalSorter(graph).static_order())  # or CycleError


def test_pure_parts_need_no_jax():
  seen = 0
  for module, path in MODULES.items():
    if any(f'{module}.'.startswith(f'{name}.') for name in WITHOUT_JAX):
      packages = {name.split('.')[0] for name in imports(path)}
      assert not packages & {'jax', 'optax'}, module
      seen += 1
  assert seen > 40


def test_commands_alone_stand_at_the_top_of_experiments():
  commands = [m for m in MODULES if m.count('.') == 1 and 'experiments.' in m]
  commands = [m for m in commands if MODULES[m].name != '__init__.py']
  assert len(commands) == 9
  for module in commands:
    assert "if __name__ == '__main__':" in MODULES[module].read_text(), module
    assert all(module not in imports(path) for path in MODULES.values()), module


def test_importing_ga_jax_is_fast_and_loads_nothing_heavy():
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
