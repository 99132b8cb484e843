"""Episodes of a trained member to look at: recorded as MP4 files, or played in a window, by gymnasium's own renderers.

gymnasium's `RecordVideo` writes with moviepy, which brings a whole ffmpeg program (imageio-ffmpeg, 68 MB to download).
PyAV (36 MB) has the same encoder as a library: frames are encoded as they are drawn, an episode of any length takes the
memory of its MP4 only, and the bytes stay in memory until the episode is over, so nothing half written is ever on disk.
Pillow, which matplotlib brings, would cost nothing, but its animations (GIF, WebP) are two to ten times as large, leave
out frames that repeat, and few players can seek in them.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from pglab.agent import LoadedAgent, load_agent
from pglab.errors import PglabError
from pglab.integrations.stable_baselines3 import single_environment
from pglab.tracking.files import atomic_write, file_error

FPS = 30
"""Frames a second where the environment does not say."""
UNSEEN = ("dummy", "offscreen")
"""SDL's video drivers that draw into memory."""


@dataclass(frozen=True)
class Episode:
    """An episode that was recorded or shown."""

    steps: int
    return_: float
    path: Path | None = None
    """Its video."""


def record(
    run: str | Path, folder: str | Path, member: int = 0, episodes: int = 1, deterministic: bool = True, seed: int = 0
) -> list[Episode]:
    """Record episodes of one member of a run as MP4 files, whose frames are the beginning and what followed each step.

    Episode number i is reset with `seed + i`: it starts as the first episode of environment i does in `evaluate_run`.

    Args:
        run: a run folder or an agent file.
        folder: where the files go (made if missing); of two of the same name the newer one stays.
        member: index in the population.
        episodes: how many.
        deterministic: the mode of the policy's distribution, else draws.
        seed: of the environment.

    Raises:
        PglabError: PyAV or the renderer's own dependency is missing, the environment cannot be rendered, there is no
            such agent or member, or the folder cannot be written.
    """
    _av()
    agent = load_agent(run, member)
    target = Path(folder)
    found = []
    with _environment(agent, "rgb_array") as env:
        fps = env.metadata.get("render_fps") or FPS
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", str(agent.config.env.id))
        for i in range(episodes):
            steps, return_, content = _recorded(env, agent, seed + i, deterministic, fps)
            path = target / f"{name}-member-{member}-episode-{i}.mp4"
            _keep(content, path)
            found.append(Episode(steps, return_, path))
    return found


def show(
    run: str | Path, member: int = 0, episodes: int = 1, deterministic: bool = True, seed: int = 0
) -> list[Episode]:
    """Play episodes of one member in a window, at the environment's own speed; arguments and errors as `record`'s.

    Raises:
        PglabError: also where no window can be opened.
    """
    check_display(os.environ, sys.platform)
    agent = load_agent(run, member)
    with _environment(agent, "human") as env:
        return [Episode(*_play(env, agent, seed + i, deterministic, _check_window)) for i in range(episodes)]


class Mp4:
    """An MP4 (H.264) in the making, in memory."""

    def __init__(self, fps: float) -> None:
        self._file = io.BytesIO()
        self._rate = Fraction(fps).limit_denominator(1000)
        self._container: Any = None
        self._stream: Any = None

    def add(self, picture: np.ndarray) -> None:
        """Encode one more frame, `[H, W, 3]` uint8; all of one video have the same size."""
        av = _av()
        # Players want colours at half the resolution, which needs even sides: an odd one is drawn out by a pixel.
        height, width, _ = picture.shape
        picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        if self._container is None:
            self._container = av.open(self._file, "w", format="mp4")
            self._stream = self._container.add_stream("libx264", rate=self._rate)
            self._stream.height, self._stream.width, self._stream.pix_fmt = *picture.shape[:2], "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        self._container.mux(self._stream.encode(frame))

    def finish(self) -> bytes:
        """The file. At least one frame must have been added."""
        self._container.mux(self._stream.encode())
        self._container.close()
        return self._file.getvalue()


def check_display(variables: Mapping[str, str], platform: str) -> None:
    """PglabError where these environment variables say that no window can be seen."""
    driver = variables.get("SDL_VIDEODRIVER", "")
    screen = driver or variables.get("DISPLAY") or variables.get("WAYLAND_DISPLAY")
    why = ""
    if driver in UNSEEN:
        why = f"SDL_VIDEODRIVER={driver} draws into memory"
    elif platform.startswith(("linux", "freebsd")) and not screen:
        why = "this machine has no display (neither DISPLAY nor WAYLAND_DISPLAY is set)"
    if why:
        raise PglabError(f"No window can be opened: {why}. Record a video instead, with --video.")


def _check_window() -> None:
    """PglabError where pygame has nothing to show its window on: SDL then quietly draws into memory."""
    pygame = sys.modules.get("pygame")
    if pygame is not None and pygame.display.get_init() and pygame.display.get_driver() in UNSEEN:
        raise PglabError("No window can be opened: the display does not answer. Record a video instead, with --video.")


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise PglabError("Writing a video needs PyAV, which is not installed: pip install av.") from None
    return av


@contextmanager
def _environment(agent: LoadedAgent, mode: str) -> Iterator[gymnasium.Env]:
    """One environment of the agent's config with this render mode; whatever goes wrong in it is a PglabError."""
    env_id, kwargs = single_environment(agent.config.env)
    with _drawing(seen=mode == "human"):
        try:
            # Asked of the environment itself: classes that know no renderer take no `render_mode`.
            with closing(gymnasium.make(env_id, **kwargs)) as plain:
                modes = plain.metadata.get("render_modes") or []
            if mode not in modes:
                raise PglabError(
                    f"{agent.config.env.id} cannot be rendered: it has no render mode {mode}. Gymnasium's own environments "
                    "have one, such as FrozenLake-v1 and, under these names or as pglab/..., Acrobot-v1, CartPole-v1, "
                    "MountainCar-v0, MountainCarContinuous-v0 and Pendulum-v1."
                )
            with closing(gymnasium.make(env_id, render_mode=mode, **kwargs)) as env:
                yield env
        except PglabError:
            raise
        except gymnasium.error.DependencyNotInstalled as error:  # says itself what to install
            raise PglabError(f"{env_id} cannot be rendered: {_sentence(error)}") from None
        except Exception as error:
            raise PglabError(f"{env_id} cannot be rendered: {type(error).__name__}: {_sentence(error)}") from error


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".") + "."


@contextmanager
def _drawing(seen: bool) -> Iterator[None]:
    """Settings for SDL, which draws for pygame: no greeting on stdout, no sound, and no window unless `seen`."""
    settings = {"PYGAME_HIDE_SUPPORT_PROMPT": "1", "SDL_AUDIODRIVER": "dummy"}
    if not seen:
        settings["SDL_VIDEODRIVER"] = "dummy"
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _play(
    env: gymnasium.Env, agent: LoadedAgent, seed: int, deterministic: bool, look: Callable[[], None]
) -> tuple[int, float]:
    """Play an episode, looking at its beginning and after every step; its number of steps and its return."""
    obs, _ = env.reset(seed=seed)
    look()
    steps, return_, over = 0, 0.0, False
    while not over:
        action, _ = agent.predict(obs, deterministic=deterministic)
        obs, reward, terminated, truncated, _ = env.step(action)
        look()
        steps, return_, over = steps + 1, return_ + float(reward), terminated or truncated
    return steps, return_


def _recorded(
    env: gymnasium.Env, agent: LoadedAgent, seed: int, deterministic: bool, fps: float
) -> tuple[int, float, bytes]:
    """Play an episode; its number of steps, its return and its video."""
    video = Mp4(fps)
    steps, return_ = _play(env, agent, seed, deterministic, lambda: video.add(_picture(env)))
    return steps, return_, video.finish()


def _keep(content: bytes, path: Path) -> None:
    """Write the whole file, or nothing: a folder made for it goes again where it cannot be written."""
    new = not path.parent.exists()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise file_error(path.parent, error) from error
    try:
        atomic_write(path, lambda file: file.write(content))
    except PglabError:
        if new:
            with suppress(OSError):
                path.parent.rmdir()
        raise


def _picture(env: gymnasium.Env) -> np.ndarray:
    """What the environment looks like now. Raises PglabError where it renders anything but an RGB image."""
    drawn: Any = env.render()
    if not isinstance(drawn, np.ndarray) or drawn.dtype != np.uint8 or drawn.ndim != 3 or drawn.shape[2] != 3:
        said = f"{drawn.dtype} of shape {drawn.shape}" if isinstance(drawn, np.ndarray) else type(drawn).__name__
        raise PglabError(
            f"{env.spec.id if env.spec else 'The environment'} renders {said}, not images: no video of it."
        )
    return drawn
