"""Named methods: which rule, policy, worker program and compression.

Question: which methods are there, whose are they, and what do they cost?

  python -m experiments.methods

prints for each method its parts, what it does, the paper, the copies of the
parameters that a simulated run of N workers keeps (the server's own, the
optimiser's state with an open round, one snapshot per version that a worker
still holds, what worker programs keep), the bytes of one submission of a
million float32 parameters, and what it needs to know.
All but the sentence and the paper is measured from the parts themselves.
"""

from absl import flags

from experiments.catalogue import methods
from experiments.reporting import method_tables
from experiments.running import accelerators
from experiments.script import launch

_MARKDOWN = flags.DEFINE_bool(
  'markdown', False, 'print the tables of docs/methods instead'
)


def main(_):
  if _MARKDOWN.value:
    for page in ('', *methods.FAMILIES):
      print(f'docs/methods/{page or "index"}.md:\n')
      print(f'{method_tables.markdown(page)}\n')
    return
  for row in method_tables.rows():
    name, built, about, paper, state, snapshots, worker, message, needed = row
    print(f'{name:21} {about}')
    print(f'{"":21} {paper}; {built}')
    print(
      f'{"":21} copies: 1 parameters + {state} state + {snapshots} snapshots'
      f'{"" if worker == "0" else f" + N x {worker} at workers"}; '
      f'{message} bytes per million; needs {needed}'
    )


if __name__ == '__main__':
  launch.launch(main, accelerators.check)
