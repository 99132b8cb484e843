"""Threads: as many as are wanted, or as the rows of an update can feed."""

from __future__ import annotations

import os

import pytest
import torch

from pglab import devices
from pglab.config import Config
from pglab.devices import ROWS_PER_THREAD, pick_threads
from pglab.errors import PglabError
from pglab.training import Trainer
from pglab.watching import Watcher

CPU = torch.device("cpu")


@pytest.fixture
def four_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)


@pytest.mark.parametrize("wanted", [1, 3, 64])
def test_a_number_of_threads_is_taken_as_it_is(four_cores, wanted):
    assert pick_threads(wanted, 1, CPU) == wanted


@pytest.mark.parametrize(
    ("rows", "threads"),
    [
        (0, 1),
        (1, 1),
        (2 * ROWS_PER_THREAD - 1, 1),
        (2 * ROWS_PER_THREAD, 2),
        (3 * ROWS_PER_THREAD, 3),
        (4 * ROWS_PER_THREAD, 4),
        (99 * ROWS_PER_THREAD, 4),
    ],
)
def test_auto_is_one_thread_per_so_many_rows_and_at_most_one_per_core(four_cores, rows, threads):
    assert pick_threads("auto", rows, CPU) == threads
    assert pick_threads("auto", rows, torch.device("cuda")) == 1


def test_auto_counts_the_rows_of_all_members_and_of_one_minibatch(four_cores, monkeypatch):
    asked, notes = [], []

    before = torch.get_num_threads()
    config = {
        "env": {"id": "CartPole-v1", "num_envs": 4},
        "agent": {"name": "on_policy", "steps": 8, "minibatches": 2, "epochs": 2},
        "policy": {"hidden": [4]},
        "seeds": 3,
    }
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(devices, "ROWS_PER_THREAD", 24)
    try:
        Trainer(Config.read(config), watcher=Watcher(note=notes.append))
        Trainer(Config.read(config | {"threads": 3}))
    finally:
        monkeypatch.undo()
        torch.set_num_threads(before)
    assert asked == [2, 3]  # 4 x 8 / 2 x 3 = 48 rows
    assert "2 torch threads (48 rows an update)" in notes[0]


def test_keeping_memory_may_be_asked_for_again_and_does_nothing_elsewhere(monkeypatch):
    devices.keep_memory()
    devices.keep_memory()
    monkeypatch.setattr(devices.sys, "platform", "darwin")
    monkeypatch.setattr(devices.ctypes, "CDLL", None)
    devices.keep_memory.__wrapped__()


@pytest.mark.parametrize("given", [0, -1, "foo", True, 1.5])
def test_a_wrong_number_of_threads_is_refused_in_one_sentence(given: object) -> None:
    with pytest.raises(PglabError) as caught:
        Config.read({"env": {"id": "CartPole-v1"}, "threads": given})
    assert str(caught.value) == f"config: threads: must be auto or a number of at least 1, not {given!r}."
