"""The house rules: imports go down only, and importing costs little."""

import ast
import collections
import graphlib
import pathlib
import subprocess
import sys

import pytest

import ga_jax

ROOT = pathlib.Path(ga_jax.__file__).parent.parent

# Who may import whom: a room is a folder, the lowest stand first. A room may
# always import itself and, but for `kernels`, `ga_jax.guards`.
MAY_IMPORT = {
  'ga_jax.kernels': '',
  'ga_jax.guards': '',
  'ga_jax.clocks': '',
  'ga_jax.models': '',
  'ga_jax.plots': '',
  'ga_jax.policies.parts': '',
  'ga_jax.policies': 'policies.parts',
  'ga_jax.record': 'policies.parts',
  'ga_jax.rules.parts': 'kernels',
  'ga_jax.rules': 'kernels rules.parts',
  'ga_jax.programs': 'rules.parts',
  'ga_jax.compression': 'programs rules.parts',
  'ga_jax.server': 'policies.parts record rules.parts',
  'ga_jax.job': 'policies.parts programs rules.parts server',
  'ga_jax.data': 'job record',
  'ga_jax.workers': 'job server',
  'ga_jax.executors': (
    'job kernels policies.parts record rules.parts server workers'
  ),
  'ga_jax.simulation': (
    'clocks executors job policies.parts record server workers'
  ),
  'ga_jax.live': 'executors job policies.parts record server workers',
  'ga_jax.live.ray': (
    'executors job live policies.parts programs server workers'
  ),
  'ga_jax': (
    'clocks compression job live live.ray policies programs record rules '
    'server simulation'
  ),
}
# Of `experiments`; every one may import all of `ga_jax`.
EXPERIMENTS = {
  'experiments.catalogue': '',
  'experiments.settings': 'catalogue',
  'experiments.tasks': 'settings',
  'experiments.running': 'catalogue settings tasks',
  'experiments.records': 'catalogue running settings tasks',
  'experiments.screens': 'records running settings tasks',
  'experiments.replaying': 'catalogue records running screens settings tasks',
  'experiments.script': 'catalogue records running settings',
  'experiments.reporting': 'catalogue records running settings tasks',
  'experiments.studies': (
    'catalogue records reporting running screens settings tasks'
  ),
  'experiments.bench': ('catalogue reporting running script settings tasks'),
  'experiments.documents': (
    'catalogue records reporting running screens script settings studies tasks'
  ),
  # The commands.
  'experiments': (
    'catalogue documents records replaying reporting running screens script '
    'settings studies tasks'
  ),
}
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


def room_of(module: str) -> str:
  """The folder of a module."""
  if MODULES[module].name == '__init__.py':
    return module
  return module.rpartition('.')[0]


def imports(path):
  """What a file imports, of us modules, of others packages."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      for alias in node.names:
        whole = f'{node.module}.{alias.name}'
        yield whole if whole in MODULES else node.module


def allowed(room: str) -> set[str]:
  """The rooms that a room may import."""
  if room in MAY_IMPORT:
    own = {f'ga_jax.{name}' for name in MAY_IMPORT[room].split()}
    guards = set() if room == 'ga_jax.kernels' else {'ga_jax.guards'}
    return own | {room} | guards
  own = {f'experiments.{name}' for name in EXPERIMENTS[room].split()}
  return own | {room, *MAY_IMPORT}


def test_every_room_is_in_the_list():
  rooms = {room_of(module) for module in MODULES}
  assert rooms == MAY_IMPORT.keys() | EXPERIMENTS.keys()
  assert len(MODULES) > 200


@pytest.mark.parametrize('room', [*MAY_IMPORT, *EXPERIMENTS])
def test_rooms_import_what_they_may(room):
  wrong = [
    f'{module} imports {name}'
    for module, path in MODULES.items()
    if room_of(module) == room
    for name in imports(path)
    if name in MODULES and room_of(name) not in allowed(room)
  ]
  assert not wrong
  assert allowed(room) <= MAY_IMPORT.keys() | EXPERIMENTS.keys()


@pytest.mark.parametrize('package', ['ga_jax', 'experiments'])
def test_no_circle(package):
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
