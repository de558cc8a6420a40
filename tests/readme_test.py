"""What the README shows as code runs."""

import pathlib
import re

import pytest

README = pathlib.Path(__file__).parent.parent / 'README.md'
BLOCKS = re.findall(r'```python\n(.*?)```', README.read_text(), re.DOTALL)


def test_there_are_examples():
  assert len(BLOCKS) >= 2


@pytest.mark.parametrize('block', BLOCKS)
def test_example_runs(block, capsys):
  exec(compile(block, 'README.md', 'exec'), {})
  assert capsys.readouterr().out
