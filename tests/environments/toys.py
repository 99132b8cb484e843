"""Small gymnasium environments with known behaviour, registered under `toys/`."""

import os

import gymnasium
import numpy as np
from gymnasium import spaces


class Counter(gymnasium.Env):
    """Observes (episode, step, length). Episodes have a random length of 1 to 5; even ones terminate, odd are cut."""

    observation_space = spaces.Box(-1e9, 1e9, (3,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self):
        self.episode = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode = 0 if seed is not None else self.episode + 1
        self.length, self.t = int(self.np_random.integers(1, 6)), 0
        return self.obs(), {}

    def step(self, action):
        self.t += 1
        over = self.t == self.length
        even = self.length % 2 == 0
        return self.obs(), 100.0 * self.episode + 10 * self.t + float(action), over and even, over and not even, {}

    def obs(self):
        return np.array([self.episode, self.t, self.length], dtype=np.float32)


class Walk(gymnasium.Env):
    """A random walk whose every step draws; ends at random. Nothing of its state can be read from outside."""

    observation_space = spaces.Dict({"x": spaces.Box(-1e9, 1e9, (2,), np.float64), "n": spaces.Discrete(100, start=1)})
    action_space = spaces.Box(-1.0, 3.0, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        assert options is None
        self._x, self._n = self.np_random.normal(size=2), 1
        return self.obs(), {}

    def step(self, action):
        self._x = 0.9 * self._x + action + self.np_random.normal(size=2)
        self._n += 1
        return self.obs(), float(self._x.sum()), bool(self.np_random.random() < 0.2), self._n > 9, {}

    def obs(self):
        return {"x": self._x.astype(np.float64), "n": np.int64(self._n)}


class Forgetful(Walk):
    """Draws from a generator of its own, so that redoing the actions leads elsewhere."""

    def __init__(self):
        self.own = np.random.default_rng(0)

    def step(self, action):
        return super().step(action + self.own.normal(size=2))


class Masked(gymnasium.Env):
    """Three steps an episode; what is allowed depends on the step, and nothing is at the end."""

    observation_space = spaces.Box(0, 9, (1,), np.float32)

    def __init__(self, ragged=False, forget=False, forbid=False):
        self.action_space = spaces.MultiDiscrete([2, 3]) if ragged else spaces.Discrete(3)
        self.ragged, self.forget, self.forbid = ragged, forget, forbid

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.obs(), {"action_mask": self.mask()}

    def step(self, action):
        self.t += 1
        if self.forbid:
            return self.obs(), 0.0, False, False, {"action_mask": np.zeros(3, dtype=np.int8)}
        info = {} if self.forget else {"action_mask": self.mask()}
        return self.obs(), 0.0, self.t == 3, False, info

    def mask(self):
        row = np.array([[1, 1, 0], [0, 1, 1], [1, 0, 0], [0, 0, 0]], dtype=np.int8)[self.t]
        return (np.array([1, self.t % 2], dtype=np.int8), row) if self.ragged else row

    def obs(self):
        return np.array([self.t], dtype=np.float32)


class Faulty(gymnasium.Env):
    """Does what `fault` says in its third step: nan_reward, inf_obs, raise, unpicklable, die."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.MultiBinary(2)

    def __init__(self, fault=""):
        self.fault = fault

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        self.chosen = self.np_random.random() < 0.5
        return np.zeros(2, dtype=np.float32), {}

    def step(self, action):
        self.t += 1
        fault = self.fault if self.t == 3 else ""
        if fault == "raise":
            raise RuntimeError("the toy broke.")
        if fault == "unpicklable":
            error = RuntimeError("the toy broke")
            error.why = lambda: None
            raise error
        if fault == "die":
            os._exit(7)
        obs = np.array([0.0, np.inf if fault == "inf_obs" else self.t], dtype=np.float32)
        return obs, np.nan if fault == "nan_reward" else 0.0, False, False, {}


for toy in (Counter, Walk, Forgetful, Masked, Faulty):
    gymnasium.register(f"toys/{toy.__name__}-v0", entry_point=toy, disable_env_checker=True)
