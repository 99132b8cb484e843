"""Every config that is shipped holds, and says what the documents say of it."""

from __future__ import annotations

import pytest

from pglab.capabilities import check_fit
from pglab.comparing import read_comparison
from pglab.environments import make_environment
from pglab.lab.comparison import variants_of
from pglab.shipped import shipped_names

TUNED_ON = set(range(8))  # the seeds on which settings were tried


def test_there_are_comparisons() -> None:
    assert {"cartpole", "pendulum"} <= set(shipped_names())


@pytest.mark.parametrize("name", shipped_names())
def test_every_variant_holds_and_reports_on_seeds_that_were_not_tuned_on(name: str) -> None:
    for variant in variants_of(read_comparison(name), [], []):
        config = variant.config()
        check_fit(config, make_environment(config.env.id, 1, 1).spec)
        assert len(config.seed_list) == 8
        assert not TUNED_ON & set(config.seed_list)


def test_in_the_critic_groups_only_the_estimator_differs() -> None:
    for name in shipped_names():
        plain = []
        for variant in variants_of(read_comparison(name), [], ["critic"]):
            data = variant.config().plain()
            plain.append({k: v for k, v in data.items() if k not in ("estimator", "baseline")})
        assert all(p == plain[0] for p in plain)
