"""`pglab evaluate`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pglab.cli.app import load_plugins, parser, write_json_file

if TYPE_CHECKING:
    from pglab.integrations.video import Episode

DESCRIPTION = """\
Play episodes with every member of a trained run, through stable-baselines3's
`evaluate_policy` on gymnasium's own environment.

  pglab evaluate runs/CartPole-v1-20260101-120000 --episodes 20
  pglab evaluate agent.safetensors --stochastic
  pglab evaluate runs/CartPole-v1-20260101-120000 --video

--video records episodes as MP4 files (pip install av pygame-ce), --render
human plays them in a window. These are episodes besides the evaluated ones.
"""


def main(arguments: list[str]) -> int:
    p = parser("evaluate", DESCRIPTION)
    p.add_argument("run", help="a run folder, or an agent file")
    p.add_argument("--episodes", type=int, default=20, metavar="N", help="episodes per member (default: 20)")
    p.add_argument("--stochastic", action="store_true", help="draw actions instead of taking the distribution's mode")
    p.add_argument("--seed", type=int, default=0, help="of the environments (default: 0)")
    p.add_argument("--plugin", action="append", default=[], metavar="FILE.py", help="plug-ins the run was made with")
    seen = p.add_mutually_exclusive_group()
    seen.add_argument(
        "--video",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="record episodes (default folder: videos, beside the agent)",
    )
    seen.add_argument("--render", choices=["human"], help="human: play episodes in a window")
    p.add_argument("--video-episodes", type=int, metavar="N", help="how many are recorded or shown (default: 1)")
    p.add_argument("--member", type=int, metavar="N", help="of which member (default: 0)")
    p.add_argument("--json", metavar="FILE", help="also write the results as JSON")
    p.add_argument("--quiet", action="store_true", help="print nothing but errors")
    options = p.parse_args(arguments)
    load_plugins(options.plugin)

    from pglab.errors import PglabError

    if options.episodes < 1:
        raise PglabError(f"--episodes must be at least 1, not {options.episodes}.")
    if options.video_episodes is not None and options.video_episodes < 1:
        raise PglabError(f"--video-episodes must be at least 1, not {options.video_episodes}.")
    if options.video is None and options.render is None:
        for name, value in (("--video-episodes", options.video_episodes), ("--member", options.member)):
            if value is not None:
                raise PglabError(f"{name} is about what is recorded or shown: give --video or --render human as well.")

    import numpy as np

    from pglab.agent import agent_file, member_count
    from pglab.integrations.stable_baselines3 import evaluate_run
    from pglab.lab.statistics import iqm, stratified_bootstrap_interval

    file = agent_file(options.run)
    seen_episodes = _look(options, file)  # first, so that what cannot be rendered is said before the long part
    found = evaluate_run(file, options.episodes, not options.stochastic, options.seed)
    returns = np.array([row["returns"] for row in found])  # [P, E]
    scores = returns.mean(1)
    low, high = stratified_bootstrap_interval(scores)
    summary = {
        "run": str(options.run),
        "episodes": options.episodes,
        "deterministic": not options.stochastic,
        "iqm": float(iqm(scores)),
        "interval": [low, high],
        "worst": float(scores.min()),
        "members": found,
    }
    if options.video is not None:
        summary["videos"] = [{"file": str(e.path), "steps": e.steps, "return": e.return_} for e in seen_episodes]
    write_json_file(options.json, summary)
    if not options.quiet:
        from rich.console import Console

        from pglab.lab.tables import Column, rich_table

        console = Console(highlight=False)
        rows = [{"member": i, **{k: v for k, v in row.items() if k != "returns"}} for i, row in enumerate(found)]
        swept = [Column(k) for k in found[0] if k not in ("seed", "mean", "std", "returns")]
        columns = [
            Column("member"),
            Column("seed"),
            *swept,
            Column("mean", "mean return", ".1f"),
            Column("std", "std", ".1f"),
        ]
        console.print(rich_table(rows, columns, title=f"{options.episodes} episodes a member"))
        console.print(
            f"IQM {summary['iqm']:.1f} (95 % interval {low:.1f} to {high:.1f}), worst member {summary['worst']:.1f}, "
            f"{member_count(file)} members.",
            markup=False,
        )
        for episode in seen_episodes:
            what = "Shown" if episode.path is None else f"Video: {episode.path}"
            console.print(f"{what} ({episode.steps} steps, return {episode.return_:.1f})", markup=False, soft_wrap=True)
    return 0


def _look(options: argparse.Namespace, file: Path) -> list[Episode]:
    """Record or show what the options ask for."""
    if options.video is None and options.render is None:
        return []
    from pglab.integrations.video import record, show

    member, episodes = options.member or 0, options.video_episodes or 1
    if options.render is not None:
        return show(file, member, episodes, not options.stochastic, options.seed)
    folder = options.video or file.parent / "videos"
    return record(file, folder, member, episodes, not options.stochastic, options.seed)
