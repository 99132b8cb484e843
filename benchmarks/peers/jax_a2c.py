"""The JAX peer: rejax (https://github.com/keraJLi/rejax) on gymnax's environments, the whole training loop compiled.

Run it with the interpreter of `benchmarks/peers/.venv` (see setup.sh):

    benchmarks/peers/.venv/bin/python benchmarks/peers/jax_a2c.py --members 16
    benchmarks/peers/.venv/bin/python benchmarks/peers/jax_a2c.py --work sac

prints JSON: seconds of compilation, and work per second without it (`a2c`: environment steps, `sac`: updates; of all
members together), the median of several timed runs.

The work `a2c` is rejax's PPO with one epoch and one minibatch: CartPole-v1, separate 64-64 tanh networks, 64
environments x 32 steps per update, Adam, GAE (0.99, 0.95), no normalisation, no evaluation, no entropy bonus. Its
structure does a few things more and a few less than that, which no option changes:

- the batch is permuted and gathered, although there is one minibatch;
- ratio and clipping (all ratios are 1 at the first and only epoch), whitened advantages, clipped value loss;
- the entropy is computed and weighs 0; gradients are clipped by value, element by element;
- every environment step computes a reset too and selects (gymnax does so for every environment);
- V is computed along the rollout and at its last observation. At a time limit nothing is bootstrapped: gymnax before
  1.0 (rejax 0.1.3 does not run with newer ones) does not tell it from an end, so V(final observation) is never needed.

The work `sac` is rejax's SAC on Pendulum-v1: one environment, one update of critics, actor and entropy weight per step,
batch 256, 64-64 relu, twin critics. rejax draws the batch *without* replacement, which sorts the whole replay buffer at
every update; `--draw with` draws with replacement, as stable-baselines3 and pglab do, and is otherwise the same.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import rejax
from rejax.buffers import ReplayBuffer
from slices import Slices, told

STEPS = 32
PACKAGES = ("jax", "jaxlib", "rejax", "gymnax", "flax", "optax", "numpy")


def a2c(updates: int, envs: int) -> Any:
    """rejax's PPO set to the work `a2c`; one call of `train` does so many updates."""
    steps = updates * envs * STEPS
    return rejax.PPO.create(
        env="CartPole-v1",
        agent_kwargs={"activation": "tanh", "hidden_layer_sizes": (64, 64)},
        num_envs=envs,
        num_steps=STEPS,
        num_epochs=1,
        num_minibatches=1,
        learning_rate=7e-4,
        max_grad_norm=0.5,
        gamma=0.99,
        gae_lambda=0.95,
        ent_coef=0.0,
        total_timesteps=steps,
        eval_freq=steps,
        skip_initial_evaluation=True,
    )


def sac(updates: int, draw: str) -> Any:
    """rejax's SAC set to the work `sac`; one call of `train` does so many updates."""
    if draw == "with":

        def sample(self: Any, num: int, rng: Any) -> Any:
            index = jax.random.randint(rng, (num,), 0, self.num_entries)
            return jax.tree.map(lambda rows: rows[index], self.data)

        ReplayBuffer.sample = sample
    return rejax.SAC.create(
        env="Pendulum-v1",
        agent_kwargs={"activation": "relu"},
        hidden_layer_sizes=(64, 64),
        num_envs=1,
        batch_size=256,
        buffer_size=100_000,
        fill_buffer=500,
        learning_rate=1e-3,
        gamma=0.99,
        polyak=0.995,
        total_timesteps=updates,
        eval_freq=updates,
        skip_initial_evaluation=True,
    )


def compiled(algorithm: Any, members: int, seed: int) -> tuple[Callable[[Any], Any], Any, float]:
    """One compiled call of training for all members, the state to begin with, and the seconds it took to compile."""
    algorithm = algorithm.replace(eval_callback=lambda *_: ())

    def train(state: Any) -> Any:
        return algorithm.train(train_state=state)[0]

    key, initial = jax.random.key(seed), algorithm.init_state
    if members > 1:
        key, initial, train = jax.random.split(key, members), jax.vmap(initial), jax.vmap(train)
    state = jax.jit(initial)(key)
    began = time.perf_counter()
    # The state is given away: replay buffers are changed in place, as within one long call.
    call = jax.jit(train, donate_argnums=0).lower(state).compile()
    return call, state, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", choices=["a2c", "sac"], default="a2c")
    parser.add_argument("--members", type=int, default=1, help="seeds trained at once with vmap (default: 1)")
    parser.add_argument("--envs", type=int, default=64, help="a2c: environments per member (default: 64)")
    parser.add_argument("--draw", choices=["with", "without"], default="without", help="sac: replacement in the batch")
    parser.add_argument("--updates", type=int, help="updates in one compiled call (default: about 0.1 s of them)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=5, help="timed runs (default: 5)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each timed run (default: 4)")
    parser.add_argument("--serve", action="store_true", help="run slices as asked for on standard input")
    options = parser.parse_args()

    jax.config.update("jax_platforms", options.device)
    lengths, answer = told() if options.serve else (iter([options.seconds] * options.rounds), None)
    if options.work == "a2c":
        updates = options.updates or (64 if options.device == "cuda" else max(1, 16 // options.members))
        algorithm, unit = a2c(updates, options.envs), options.envs * STEPS
    else:
        updates = options.updates or max(1, 100 // options.members)
        algorithm, unit = sac(updates, options.draw), 1
    call, state, compile_seconds = compiled(algorithm, options.members, options.seed)
    about = {
        "work": options.work,
        "members": options.members,
        "device": str(jax.devices()[0]),
        "compile_seconds": compile_seconds,
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}},
    }
    runs: list[dict[str, Any]] = []
    warm = 3 if options.work == "a2c" else 3 + 600 // updates  # sac: until the buffer is filled
    slices = Slices(lengths, answer or runs.append, about, warm)
    done = 0
    while True:
        state = jax.block_until_ready(call(state))
        done += updates * unit * options.members
        if slices.between(done):
            break
    if not options.serve:
        rates = [run["work"] / run["seconds"] for run in runs[1:]]
        name = "steps_per_second" if options.work == "a2c" else "updates_per_second"
        print(json.dumps({**about, name: statistics.median(rates), "runs": rates}, indent=2))


if __name__ == "__main__":
    main()
