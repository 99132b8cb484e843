"""`pglab compare`."""

from __future__ import annotations

import shlex

from pglab.cli.app import OVERRIDES, add_common, load_plugins, overrides, parser, split, write_json_file

DESCRIPTION = """\
Train every variant of a comparison on the same seeds, several at a time, and
write a table per group, learning curves and gradient noise.

  pglab compare cartpole
  pglab compare cartpole --only value leave_one_out --seeds 4
  pglab compare cartpole --tune learning_rate=[3e-4,1e-3,3e-3]
  pglab compare my_comparison.yaml --total_steps 100000
"""


def main(arguments: list[str]) -> int:
    p = parser("compare", DESCRIPTION, OVERRIDES)
    p.add_argument("comparison", help="a comparison file, or a shipped name such as cartpole")
    p.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these variants or groups")
    p.add_argument(
        "--tune",
        action="append",
        default=[],
        metavar="FIELD=[...]",
        help="give every variant this grid; it is chosen on seeds of its own and reported on the comparison's; may be repeated",
    )
    p.add_argument("--jobs", type=int, metavar="N", help="variants trained at the same time (default: one per core)")
    add_common(p)
    options, laid = split(p, arguments)
    load_plugins(options.plugin)

    from pglab.cli.showing import show_compared
    from pglab.comparing import compare
    from pglab.devices import available_cores
    from pglab.errors import PglabError

    tune: dict[str, list[float]] = {}
    for word in options.tune:
        ((path, values),) = overrides([f"--{word}"]) if "=" in word else ((word, None),)
        if not isinstance(values, list) or not values:
            raise PglabError(f"--tune {word!r} needs a field and a list, such as learning_rate=[3e-4,1e-3].")
        try:
            tune[path] = [float(v) for v in values]
        except (TypeError, ValueError):
            raise PglabError(f"--tune {word!r}: the grid must hold numbers, not {values}.") from None
    if options.plugin:
        laid = [*laid, ("plugins", options.plugin)]
    if options.jobs is not None and options.jobs < 1:
        raise PglabError(f"--jobs must be at least 1, not {options.jobs}.")
    compared = compare(
        options.comparison,
        root=options.runs,
        workers=options.jobs or available_cores(),
        overrides=laid,
        only=options.only,
        tune=tune or None,
        command=shlex.join(["pglab", "compare", *arguments]),
        plugins=options.plugin,
        quiet=options.quiet,
    )
    write_json_file(options.json, {"folder": str(compared.folder), **compared.results()})
    return show_compared(compared, options.quiet)
