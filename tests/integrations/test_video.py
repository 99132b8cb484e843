"""Episodes recorded and shown, through gymnasium's own renderers."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from pglab.__main__ import main
from pglab.errors import PglabError
from pglab.integrations import video
from pglab.integrations.stable_baselines3 import evaluate_run
from pglab.integrations.video import Mp4, check_display, record, show
from pglab.tracking.files import read_json
from pglab.training import train


def needs(*modules: str) -> None:
    for module in modules:
        pytest.importorskip(module, reason=f"{module} is not installed: pip install -e '.[video]'")


def run_of(env: dict[str, Any], folder: Path, **settings: Any) -> Path:
    config = {"seeds": 1, "total_steps": 200, "evaluation": {"final_episodes": 1}, **settings}
    train({"env": {"num_envs": 2, **env}, **config}, folder)
    return folder


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of({"id": "pglab/CartPole-v1"}, tmp_path_factory.mktemp("runs") / "cartpole", seeds=2)


@pytest.fixture
def lqr(tmp_path: Path) -> Path:
    return run_of({"id": "pglab/LQR-v0"}, tmp_path / "lqr")


def frames(path: Path) -> tuple[np.ndarray, float]:
    """The video's frames `[T, H, W, 3]`, and how many are shown a second."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.average_rate is not None
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(stream)]), float(stream.average_rate)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence that was the answer."""
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("pglab: error: ")
    return lines[0]


def test_a_video_has_the_beginning_and_a_frame_for_every_step(cartpole: Path, tmp_path: Path) -> None:
    needs("av", "pygame")
    before = dict(os.environ)
    found = record(cartpole, tmp_path / "new" / "folder", member=1, episodes=2)
    assert dict(os.environ) == before
    played = evaluate_run(cartpole, 2, deterministic=True, seed=0)[1]["returns"]
    assert sorted(e.return_ for e in found) == sorted(played)  # the first episodes of environments 0 and 1
    for episode in found:
        assert episode.path is not None
        shown, rate = frames(episode.path)
        assert len(shown) == episode.steps + 1 == episode.return_ + 1
        assert shown.shape[1:] == (400, 600, 3)
        assert rate == 50
        assert shown.mean() > 200  # white
        assert np.abs(shown[0].astype(int) - shown[-1].astype(int)).max() > 50  # the pole has moved
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == [
        "pglab-CartPole-v1-member-1-episode-0.mp4",
        "pglab-CartPole-v1-member-1-episode-1.mp4",
    ]


def test_pictures_of_odd_sides_come_out_even_and_in_their_colours(tmp_path: Path) -> None:
    needs("av")
    writer = Mp4(fps=12.5)
    for i in range(5):
        writer.add(np.full((33, 51, 3), (250, 40 * i, 10), np.uint8))
    (tmp_path / "odd.mp4").write_bytes(writer.finish())
    shown, rate = frames(tmp_path / "odd.mp4")
    assert shown.shape == (5, 34, 52, 3)
    assert rate == 12.5
    for i in range(5):
        assert np.abs(shown[i].astype(int) - (250, 40 * i, 10)).max() < 12


def test_evaluation_says_the_same_with_a_video(cartpole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs("av", "pygame")
    arguments = ["evaluate", str(cartpole), "--episodes", "3"]
    assert main([*arguments, "--json", str(cartpole / "plain.json")]) == 0
    plain = capsys.readouterr().out
    assert main([*arguments, "--json", str(cartpole / "video.json"), "--video"]) == 0
    path = cartpole / "videos" / "pglab-CartPole-v1-member-0-episode-0.mp4"
    with_video = capsys.readouterr().out
    assert with_video.startswith(plain)
    assert with_video[len(plain) :].startswith(f"Video: {path} (")
    numbers = read_json(cartpole / "video.json")
    (kept,) = numbers.pop("videos")
    assert numbers == read_json(cartpole / "plain.json")
    assert kept["file"] == str(path)
    assert len(frames(path)[0]) == kept["steps"] + 1


def test_a_failed_recording_leaves_nothing(cartpole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("av", "pygame")
    from gymnasium.envs.classic_control.cartpole import CartPoleEnv

    drawn, calls = CartPoleEnv.render, []

    def render(self: CartPoleEnv) -> Any:
        calls.append(1)
        if len(calls) > 5:
            raise OSError("the renderer broke")
        return drawn(self)

    monkeypatch.setattr(CartPoleEnv, "render", render)
    with pytest.raises(PglabError, match=r"CartPole-v1 cannot be rendered: OSError: the renderer broke\."):
        record(cartpole, tmp_path / "videos")
    monkeypatch.setattr(CartPoleEnv, "render", lambda self: "a string")
    with pytest.raises(PglabError, match="renders str, not images"):
        record(cartpole, tmp_path / "videos")
    assert not (tmp_path / "videos").exists()
    monkeypatch.setattr(CartPoleEnv, "render", drawn)
    (tmp_path / "file").write_text("kept")
    with pytest.raises(PglabError, match="Cannot write"):
        record(cartpole, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"

    def full(path: Any, writer: Any) -> None:
        raise PglabError("Cannot write it: No space left on device.")

    monkeypatch.setattr(video, "atomic_write", full)
    with pytest.raises(PglabError, match="No space"):
        record(cartpole, tmp_path / "videos")
    assert not (tmp_path / "videos").exists()


def test_what_cannot_be_rendered_is_said_with_what_can(lqr: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs("av")
    assert main(["evaluate", str(lqr), "--video"]) == 2
    message = said(capsys)
    assert "pglab/LQR-v0 cannot be rendered" in message
    assert "CartPole-v1" in message
    assert not (lqr / "videos").exists()


def test_what_is_missing_is_said_with_the_command_that_brings_it(
    cartpole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "videos"
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "av", None)
        assert main(["evaluate", str(cartpole), "--video", str(folder)]) == 2
    assert "pip install av" in said(capsys)
    needs("av")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pygame", None)
        assert main(["evaluate", str(cartpole), "--video", str(folder)]) == 2
    message = said(capsys)
    assert "pygame" in message
    assert "pip install" in message
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--member", "1"], ("--member", "--video")),
        (["--video-episodes", "1"], ("--video-episodes", "--render human")),
        (["--video", "--video-episodes", "0"], ("--video-episodes", "at least 1")),
        (["--video", "--render", "human"], ("not allowed with", "--video")),
        (["--render", "ascii"], ("ascii", "human")),
    ],
)
def test_options_that_make_no_sense(
    arguments: list[str], parts: tuple[str, ...], cartpole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(cartpole), *arguments]) == 2
    message = said(capsys)
    for part in parts:
        assert part in message


def test_a_member_that_is_not_there(cartpole: Path, tmp_path: Path) -> None:
    needs("av")
    with pytest.raises(PglabError, match="has members 0 to 1, not 2"):
        record(cartpole, tmp_path / "videos", member=2)
    with pytest.raises(PglabError, match="has members 0 to 1, not -1"):
        record(cartpole, tmp_path / "videos", member=-1)


def test_no_window_without_a_display(
    cartpole: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("only where a display is named by a variable")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    assert main(["evaluate", str(cartpole), "--render", "human"]) == 2
    assert "No window can be opened: this machine has no display" in said(capsys)


def test_which_variables_name_a_display() -> None:
    for variables, platform in (
        ({"DISPLAY": ":0"}, "linux"),
        ({"WAYLAND_DISPLAY": "wayland-0"}, "linux"),
        ({"SDL_VIDEODRIVER": "kmsdrm"}, "linux"),
        ({}, "darwin"),
        ({}, "win32"),
    ):
        check_display(variables, platform)
    with pytest.raises(PglabError, match="neither DISPLAY nor WAYLAND_DISPLAY"):
        check_display({"DISPLAY": ""}, "linux")
    with pytest.raises(PglabError, match="SDL_VIDEODRIVER=dummy"):
        check_display({"DISPLAY": ":0", "SDL_VIDEODRIVER": "dummy"}, "linux")


def test_a_window_shows_the_episode(cartpole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With SDL's driver that draws into memory, and a clock that does not wait."""
    needs("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    with pytest.raises(PglabError, match="SDL_VIDEODRIVER=dummy"):
        show(cartpole)
    monkeypatch.setattr(video, "check_display", lambda *_: None)
    with pytest.raises(PglabError, match="the display does not answer"):
        show(cartpole)
    monkeypatch.setattr(video, "_check_window", lambda: None)
    made = []
    make = gymnasium.make

    def spy(*args: Any, **kwargs: Any) -> gymnasium.Env:
        made.append(kwargs.get("render_mode"))
        return make(*args, **kwargs)

    monkeypatch.setattr(gymnasium, "make", spy)
    monkeypatch.setitem(gymnasium.envs.classic_control.CartPoleEnv.metadata, "render_fps", 100_000)
    episodes = show(cartpole, member=1, episodes=2)
    assert made == [None, "human"]
    assert [e.path for e in episodes] == [None, None]
    assert [e.return_ for e in episodes] == [float(e.steps) for e in episodes]
    assert sorted(e.return_ for e in episodes) == sorted(
        evaluate_run(cartpole, 2, deterministic=True, seed=0)[1]["returns"]
    )
