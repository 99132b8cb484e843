"""`pglab evaluate`."""

from __future__ import annotations

from pglab.cli.app import load_plugins, parser, write_json_file

DESCRIPTION = """\
Play episodes with every member of a trained run, through stable-baselines3's
`evaluate_policy` on gymnasium's own environment.

  pglab evaluate runs/CartPole-v1-20260101-120000 --episodes 20
  pglab evaluate agent.safetensors --stochastic
"""


def main(arguments: list[str]) -> int:
    p = parser("evaluate", DESCRIPTION)
    p.add_argument("run", help="a run folder, or an agent file")
    p.add_argument("--episodes", type=int, default=20, metavar="N", help="episodes per member (default: 20)")
    p.add_argument("--stochastic", action="store_true", help="draw actions instead of taking the distribution's mode")
    p.add_argument("--seed", type=int, default=0, help="of the environments (default: 0)")
    p.add_argument("--plugin", action="append", default=[], metavar="FILE.py", help="plug-ins the run was made with")
    p.add_argument("--json", metavar="FILE", help="also write the results as JSON")
    p.add_argument("--quiet", action="store_true", help="print nothing but errors")
    options = p.parse_args(arguments)
    load_plugins(options.plugin)

    from pglab.errors import PglabError

    if options.episodes < 1:
        raise PglabError(f"--episodes must be at least 1, not {options.episodes}.")

    import numpy as np

    from pglab.agent import agent_file, member_count
    from pglab.integrations.stable_baselines3 import evaluate_run
    from pglab.lab.statistics import iqm, stratified_bootstrap_interval

    file = agent_file(options.run)
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
    return 0
