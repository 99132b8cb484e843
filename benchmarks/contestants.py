"""pglab and stable-baselines3 as contestants: one process each, running slices as it is told (see slices.py).

    python benchmarks/contestants.py pglab a2c --members 16
    python benchmarks/contestants.py sb3 sac --threads 1

Alone (without --serve) it prints the work per second of a few slices.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

from slices import Slices, told

STEPS = 32
LONG = 10**12  # steps that are never reached


def pglab_config(options: argparse.Namespace) -> dict[str, Any]:
    """pglab's settings for the work, without evaluations along the way, and with whatever was asked for on the command line."""
    config: dict[str, Any]
    if options.work == "a2c":
        config = {
            "env": {"id": "CartPole-v1", "num_envs": options.envs},
            "agent": {"steps": STEPS, "returns": {"name": "gae", "lam": 0.95}},
            "baseline": "value",
            "learning_rate": 7e-4,
            "max_grad_norm": 0.5,
        }
    else:
        config = {
            "env": {"id": "Pendulum-v1", "num_envs": 1},
            "agent": {
                "name": "actor_critic",
                "auto_entropy": True,
                "critic": {"target_rate": 0.005},
                "replay": {"batch_size": 256, "warmup": 500},
            },
            "estimator": "pathwise",
            "policy": {"activation": "relu"},
            "entropy_weight": 0.1,
            "learning_rate": 1e-3,
        }
    config |= {"discount": 0.99, "seeds": options.members, "total_steps": LONG, "evaluation": {"every": LONG}}
    given = {"device": options.device, "threads": options.threads, "executor": options.executor}
    return config | {name: value for name, value in given.items() if value is not None}


class PglabLoop:
    """pglab's own training loop, `Trainer.run`: logs at its usual intervals, keeps no files, evaluates only at the start.

    It is entered from outside where the loop asks, between two updates, whether to stop.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        import torch

        from pglab.config import Config
        from pglab.training import Trainer
        from pglab.watching import Watcher

        self._between: Callable[[int], bool] | None = None
        self.trainer = Trainer(Config.read(config), watcher=Watcher(stop=self._asked))
        self.synchronize = torch.cuda.synchronize if self.trainer.device.type == "cuda" else lambda: None
        self.threads = torch.get_num_threads()

    def _asked(self) -> bool:
        assert self._between is not None
        return self._between(int(self.trainer.steps.sum()))

    def run(self, between: Callable[[int], bool]) -> None:
        """Train until `between` says that it is enough; it is told the environment steps of all members so far."""
        self._between = between
        self.trainer.run()


def pglab(options: argparse.Namespace, slices: Callable[..., Slices]) -> None:
    """Environment steps of all members together. Of the work `sac` every step is an update once it is warm."""
    loop = PglabLoop(pglab_config(options))
    warm = 4 if options.work == "a2c" else 600
    about = {"threads": loop.threads, "device": str(loop.trainer.device)}
    loop.run(slices(about, warm, loop.synchronize).between)


def sb3(options: argparse.Namespace, slices: Callable[..., Slices]) -> None:
    """The same of stable-baselines3, on a DummyVecEnv; optimizers and all else that is not named are its defaults."""
    import torch
    from stable_baselines3 import A2C, SAC
    from stable_baselines3.common.env_util import make_vec_env

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    model: A2C | SAC
    if options.work == "a2c":
        env = make_vec_env("CartPole-v1", n_envs=options.envs)
        # Its optimizer is RMSprop; MlpPolicy has separate 64-64 tanh networks.
        model = A2C("MlpPolicy", env, learning_rate=7e-4, n_steps=STEPS, gae_lambda=0.95, device="cpu")
        piece, first = 4 * options.envs * STEPS, 0
    else:
        model = SAC(
            "MlpPolicy",
            make_vec_env("Pendulum-v1", n_envs=1),
            learning_rate=1e-3,
            buffer_size=100_000,
            learning_starts=500,
            batch_size=256,
            tau=0.005,
            gamma=0.99,
            train_freq=1,
            gradient_steps=1,
            policy_kwargs={"net_arch": [64, 64]},
            device="cpu",
        )
        piece, first = 50, 600
    model.learn(max(piece, first))
    cut = slices({"threads": torch.get_num_threads(), "device": "cpu"}, 2)
    while not cut.between(model.num_timesteps):
        model.learn(piece, reset_num_timesteps=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("who", choices=["pglab", "sb3"])
    parser.add_argument("work", choices=["a2c", "sac"])
    parser.add_argument("--members", type=int, default=1, help="pglab: members trained at once (default: 1)")
    parser.add_argument("--envs", type=int, default=64, help="a2c: environments per member (default: 64)")
    parser.add_argument("--threads", type=int, help="torch threads (default: the library's own)")
    parser.add_argument("--device", help="pglab: cpu or cuda")
    parser.add_argument("--executor", help="pglab: how updates are executed")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs (default: 3)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each timed run (default: 4)")
    parser.add_argument("--serve", action="store_true", help="run slices as asked for on standard input")
    options = parser.parse_args()

    runs: list[dict[str, Any]] = []
    lengths, answer = told() if options.serve else (iter([options.seconds] * options.rounds), runs.append)

    def slices(about: dict[str, Any], warm: int, synchronize: Callable[[], None] = lambda: None) -> Slices:
        return Slices(lengths, answer, about, warm, synchronize)

    {"pglab": pglab, "sb3": sb3}[options.who](options, slices)
    if not options.serve:
        rates = [run["work"] / run["seconds"] for run in runs[1:]]
        print(json.dumps({**runs[0], "per_second": statistics.median(rates), "runs": rates}, indent=2))


if __name__ == "__main__":
    main()
