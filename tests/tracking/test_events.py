"""Event files: one event per step with everything in it, their size, histograms, and texts of hostile content."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from board_server import ask, serve
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from pglab.tracking.comparison_events import RUN, write_comparison
from pglab.tracking.events import event_files
from pglab.tracking.histograms import histogram
from pglab.tracking.layout import default_layout
from pglab.tracking.markdown import fenced, printable
from pglab.tracking.run_folder import RunFolder
from pglab.tracking.tracker import MemberLabel, Tracker

HOSTILE = "<script>alert(1)</script>\n```\n# heading\n[x](javascript:alert(1))\n````\n../../etc \x1b[31mred\x9b\u202e"


def events(run: Path) -> list:
    (path,) = event_files(run)
    return [event for event in EventFileLoader(str(path)).Load() if event.HasField("summary")]


DEFAULT = [f"charts/{x}" for x in ("episodic_return", "episodic_length", "steps", "learning_rate", "progress")]
DEFAULT += ["losses/policy_loss", "losses/value_loss", "losses/explained_variance", "policy/entropy", "gradient/norm"]
MORE = ["losses/critic_loss", "policy/entropy_weight"]
MORE += [f"probe/{x}" for x in ("nsr", "cosine_halves", "trace", "trace_without_baseline", "baseline_gain")]


def long_run(folder: RunFolder, everything: bool) -> None:
    """What a run of a million steps logs by default: 8 members, a line every 5000 steps; or with all that can be asked for."""
    rng = np.random.default_rng(0)
    with Tracker(folder, [MemberLabel(seed) for seed in range(8)]) as tracker:
        tracker.layout(default_layout(probe=everything))
        tracker.text("config", fenced("x: 1\n" * 200, "yaml"))
        tracker.begin([{"estimator": "rebar", "learning_rate": 1e-3}] * 8, "long")
        for line in range(200):
            step = 5_000 * (line + 1)
            values = {tag: rng.lognormal(size=8) for tag in [*DEFAULT, *(MORE if everything else [])]}
            weights = {"policy/importance_weights": rng.lognormal(0.0, 0.2, (8, 128))} if everything else {}
            tracker.log(step, {**values, "charts/SPS": 1e5}, histograms=weights)
            if line % 4 == 0:
                tracker.log(step, {"eval/return": rng.normal(size=8), "eval/length": np.ones(8)})
        tracker.end()


@pytest.mark.parametrize("everything", [False, True])
def test_a_run_of_a_million_steps_is_small(tmp_path: Path, everything: bool) -> None:
    folder = RunFolder.create(tmp_path / "run", {}, "pglab")
    long_run(folder, everything)
    sizes = {path.parent.name: path.stat().st_size for path in event_files(folder.tensorboard)}
    print(sizes, sum(sizes.values()))
    assert len(sizes) == 9
    assert max(sizes.values()) < 300_000
    assert everything or sum(sizes.values()) < 1_000_000


def test_a_step_is_one_event_histograms_included(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", {}, "pglab")
    norms, weights = np.array([1.0, 3.0, np.inf, 2.0]), np.array([[1.0, np.nan], [1.5, 0.5], [1.0, 1.0], [2.0, np.nan]])
    with Tracker(folder, [MemberLabel(seed) for seed in range(4)]) as tracker:
        for step in (1, 2, 3):
            values = {"gradient/norm": norms, "charts/SPS": 1.0, "losses/policy_loss": np.ones(4)}
            tracker.log(step, values, histograms={"policy/importance_weights": weights})
    for run in ("aggregate", "seed1"):
        assert [event.step for event in events(folder.tensorboard / run)] == [1, 2, 3]
    found = EventAccumulator(str(folder.tensorboard / "aggregate"), size_guidance={"histograms": 0}).Reload()
    assert set(found.Tags()["histograms"]) == {"gradient/norm/members", "policy/importance_weights"}
    assert "gradient/norm" in found.Tags()["scalars"]
    (first, *_) = found.Histograms("gradient/norm/members")
    assert sum(first.histogram_value.bucket) == 3  # the infinite one is left out
    (first, *_) = found.Histograms("policy/importance_weights")
    assert sum(first.histogram_value.bucket) == 6
    assert EventAccumulator(str(folder.tensorboard / "seed1")).Reload().Tags()["histograms"] == []


@pytest.mark.parametrize("values", [[2.0], [2.0, 2.0], [2.0, 2.0 + 1e-12], [-1e300, 1e300], [0.0, 0.0, 0.0]])
def test_a_histogram_counts_every_value(values: list[float]) -> None:
    found = histogram(np.array(values))
    assert sum(found.bucket) == len(values)
    assert list(found.bucket_limit) == sorted(found.bucket_limit)
    assert found.bucket_limit[-1] == found.max == max(values)
    assert histogram(np.array([np.nan, np.inf])) is None


def test_swept_settings_have_histograms_of_their_own(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", {}, "pglab")
    with Tracker(folder, [MemberLabel(s, {"rate": r}) for r in (0.1, 0.2) for s in (0, 1)]) as tracker:
        tracker.log(1, {"gradient/norm": np.array([1.0, 2.0, 3.0, 4.0]), "charts/SPS": 1.0})
    for rate, top in ((0.1, 2.0), (0.2, 4.0)):
        found = EventAccumulator(str(folder.tensorboard / f"aggregate_rate={rate}")).Reload()
        assert found.Histograms("gradient/norm/members")[0].histogram_value.bucket_limit[-1] == pytest.approx(top)
    assert EventAccumulator(str(folder.tensorboard / "aggregate")).Reload().Tags()["histograms"] == []


def test_noise_is_pooled_over_seeds_and_probed_noise_is_a_median(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", {}, "pglab")
    measured = {
        "gradient/nsr": np.array([2.0, np.inf, 2.0]),
        "gradient/nsr_low": np.array([1.0, 5.0, 1.0]),
        "gradient/nsr_high": np.array([4.0, np.inf, 4.0]),
        "gradient/trace_variance": np.array([2.0, 2.0, 2.0]),
        "gradient/squared_norm": np.array([1.0, -0.5, 1.0]),
    }
    with Tracker(folder, [MemberLabel(seed) for seed in range(3)]) as tracker:
        tracker.log(1, measured)
        tracker.log(2, {"probe/nsr": np.array([1.0, np.inf, 3.0])})
    found = EventAccumulator(str(folder.tensorboard / "aggregate")).Reload()
    value = {tag: found.Scalars(tag)[0].value for tag in found.Tags()["scalars"]}
    assert value["gradient/nsr"] == pytest.approx(2.0 / 0.5)
    assert value["gradient/nsr_low"] == pytest.approx(2.0)
    assert value["gradient/nsr_high"] == np.inf
    assert value["probe/nsr"] == value["probe/nsr/median"] == 3.0
    assert not any(np.isnan(v) for v in value.values())


def test_hostile_text_stays_one_block_of_code(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", {}, "pglab")
    with Tracker(folder, [MemberLabel(0)]) as tracker:
        tracker.text("config", fenced(HOSTILE, "yaml"))
        tracker.log(1, {"a": 1.0})
    write_comparison(folder.path, default_layout(), {"bare": HOSTILE})
    url = serve(folder.path, 2)
    runs = ask(url, "data/plugin/text/tags")
    assert set(runs) == {RUN, "tensorboard/aggregate"}
    (text,) = ask(url, "data/plugin/text/text", run="tensorboard/aggregate", tag="config/text_summary")
    page = text["text"]
    assert page.count("<pre>") == page.count("</pre>") == 1
    around = page[: page.index("<pre>")] + page[page.index("</pre>") + 6 :]
    assert set(re.findall(r"\w+", around)) == {"table", "tbody", "tr", "td"}  # TensorBoard's own
    for tag in ("<script", "<h1", "<a "):
        assert tag not in page
    assert "&lt;script&gt;" in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "\\x1b[31mred\\x9b\\u202e" in page
    # Outside of a fence TensorBoard itself lets no HTML through.
    (bare,) = ask(url, "data/plugin/text/text", run=RUN, tag="bare/text_summary")
    assert "<script" not in bare["text"]
    assert 'href="javascript' not in bare["text"]


def test_printable_keeps_letters_of_all_kinds() -> None:
    assert printable("naïve Δθ\n日本") == "naïve Δθ\n日本"
    assert printable("a\x00\x7f\u2028b") == "a\\x00\\x7f\\u2028b"


def test_a_comparison_s_own_run_is_replaced_not_added_to(tmp_path: Path) -> None:
    png = tmp_path / "curve.png"
    from matplotlib.image import imsave

    imsave(png, np.zeros((7, 11, 3)))
    write_comparison(tmp_path, default_layout(), {"comparison": "`x`"})
    write_comparison(tmp_path, default_layout(), {"comparison": "`x`", "table": "**t**"}, [png])
    assert len(event_files(tmp_path)) == 1
    found = EventAccumulator(str(tmp_path / RUN)).Reload()
    assert found.Tags()["images"] == ["figures/curve"]
    (image,) = found.Images("figures/curve")
    assert (image.width, image.height) == (11, 7)
    assert image.encoded_image_string == png.read_bytes()
