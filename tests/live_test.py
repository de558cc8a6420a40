"""What the server of a live run asks: the time, leases, and who is there."""

import itertools

import pytest

from ga_jax.live import leases, roster, stopwatch
from ga_jax.server import ledger
from ga_jax.workers import worker


def ticket(ticket_id=0, worker_id=0):
  return ledger.Ticket(ticket_id, worker_id, 0, 0, 1, 0)


def test_no_two_events_have_the_same_time():
  clock = stopwatch.Stopwatch(iter([5.0, 6.0, 6.0, 5.5, 9.0]).__next__)
  times = [clock.now() for _ in range(4)]
  assert times == sorted(set(times))
  assert (times[0], times[-1]) == (1.0, 4.0)
  assert clock.latest == 4.0


def test_the_time_of_a_run_goes_on_in_another_process():
  clock = stopwatch.Stopwatch(iter([100.0, 100.0, 103.0]).__next__)
  clock.set(40.0)
  assert clock.latest == 40.0
  assert clock.now() == 43.0


def test_leases_are_over_in_the_order_of_their_ends():
  waited_for = {ticket(0), ticket(1, 1), 7}
  some = leases.Leases(2.0, waited_for.__contains__)
  assert some.first_end() is None
  some.begin(7, 0.0)
  some.begin(ticket(1, 1), 0.0)
  some.begin(ticket(0), 1.0)
  some.begin(ticket(2), 1.5)
  assert some.first_end() == 2.0
  assert list(some.over(lambda: 1.9)) == []
  assert list(some.over(lambda: 2.0)) == [7, ticket(1, 1)]
  assert some.first_end() == 3.0
  waited_for.remove(ticket(0))  # its answer came
  assert some.first_end() is None
  assert list(some.over(lambda: 99.0)) == []


def test_the_end_of_a_lease_may_end_the_wait_for_another():
  waited_for = {1, 2}
  some = leases.Leases(1.0, waited_for.__contains__)
  some.begin(1, 0.0)
  some.begin(2, 0.0)
  over = some.over(itertools.count(5).__next__)
  assert next(over) == 1
  waited_for.clear()
  assert not list(over)


def test_leases_without_an_end_are_not_kept():
  some = leases.Leases(float('inf'), lambda holder: True)
  some.begin(ticket(), 0.0)
  assert some.first_end() is None


class Pool:
  """Workers that do nothing but remember."""

  may_return = False

  def __init__(self):
    self.said = []  # (worker_id, order or None)

  def hire(self, worker_id, deliver):
    deliver(worker.Here(worker_id))
    return Handle(worker_id, self.said)


class Handle:
  """One of them."""

  def __init__(self, worker_id, said):
    self._worker_id, self._said = worker_id, said

  def give(self, order):
    self._said.append((self._worker_id, order))

  def dismiss(self):
    self._said.append((self._worker_id, None))


@pytest.fixture
def there():
  """(pool, messages, roster) with worker 0, who has entered."""
  pool, messages = Pool(), []
  one = roster.Roster(pool, messages.append, depth=1)
  one.hire(0)
  assert one.enter(0)
  return pool, messages, one


def test_a_worker_is_hired_once_and_enters_once(there):
  _, messages, one = there
  one.hire(0)
  assert messages == [worker.Here(0)]
  assert not one.enter(0)
  assert not one.enter(1)  # nobody hired it
  assert one.is_here(0)
  assert not one.is_here(1)


def test_a_worker_has_one_order_in_hand_and_others_ahead(there):
  pool, _, one = there
  order = worker.Order(ticket(), None, None, None)
  for free in (True, True, False):
    assert one.is_free(0) == free
    if free:
      one.give(order)
  assert pool.said == [(0, order)] * 2
  one.answered(0)
  assert one.is_free(0)
  for _ in range(5):  # answers that nobody asked for count for nothing
    one.answered(0)
  one.give(order)
  one.give(order)
  assert not one.is_free(0)


def test_a_worker_that_comes_back_has_nothing_in_hand(there):
  _, _, one = there
  one.give(worker.Order(ticket(), None, None, None))
  one.give(worker.Order(ticket(), None, None, None))
  one.died(worker.Died(0, 'the network', gone=False))
  one.leave(0)
  assert not one.is_free(0)
  assert one.enter(0)
  assert one.is_free(0)


def test_a_worker_that_is_gone_must_be_hired_again(there):
  _, _, one = there
  one.died(worker.Died(0, 'the disk'))
  one.leave(0)
  assert one.last_error == 'the disk'
  assert not one.enter(0)
  assert not one.dismiss(0)
  one.hire(0)
  assert one.enter(0)


def test_a_worker_that_was_dismissed_takes_no_orders(there):
  pool, _, one = there
  assert one.dismiss(0)
  one.leave(0)
  assert not one.dismiss(0)
  assert pool.said == [(0, None)]
  assert not one.is_free(0)


def test_nobody_is_left_where_nobody_is_here_and_nobody_may_come(there):
  pool, _, one = there
  assert not one.deserted
  one.leave(0)
  assert one.deserted
  pool.may_return = True
  assert not one.deserted
