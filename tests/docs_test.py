"""What the README and the documentation show as code runs."""

import pathlib
import re

import jax
import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = ('README.md', 'docs/your_own.md')
BLOCKS = [
  pytest.param(page, block, id=f'{page}-{i}')
  for page in PAGES
  for i, block in enumerate(
    re.findall(r'```python\n(.*?)```', (ROOT / page).read_text(), re.DOTALL)
  )
]
LONGEST = 30  # lines of an example, empty ones not counted


@pytest.fixture(autouse=True)
def relaxed():
  """What users run with."""
  with jax.numpy_rank_promotion('allow'), jax.numpy_dtype_promotion('standard'):
    yield


def test_there_are_examples():
  assert len(BLOCKS) >= 7


@pytest.mark.parametrize(('page', 'block'), BLOCKS)
def test_example_runs(page, block, capsys):
  assert sum(map(bool, block.split('\n'))) <= LONGEST
  exec(compile(block, page, 'exec'), {'__name__': 'example'})
  assert capsys.readouterr().out
