"""`pglab resume`."""

from __future__ import annotations

from pathlib import Path

from pglab.cli.app import add_common, load_plugins, parser, write_json_file

DESCRIPTION = """\
Go on with a run, or with the unfinished variants of a comparison, from the
newest checkpoint. The result is what an uninterrupted run would have given.

  pglab resume runs/CartPole-v1-20260101-120000
"""


def main(arguments: list[str]) -> int:
    p = parser("resume", DESCRIPTION)
    p.add_argument("folder", help="a run folder or a comparison's folder")
    p.add_argument("--jobs", type=int, metavar="N", help="comparison: variants trained at the same time")
    add_common(p)
    options = p.parse_args(arguments)
    load_plugins(options.plugin)
    folder = Path(options.folder)

    if (folder / "comparison.yaml").is_file():
        from pglab.cli.showing import show_compared
        from pglab.comparing import resume_comparison
        from pglab.devices import available_cores

        compared = resume_comparison(folder, options.jobs or available_cores(), options.quiet, options.plugin)
        write_json_file(options.json, {"folder": str(folder), **compared.results()})
        return show_compared(compared, options.quiet)

    from pglab.cli.showing import expect, show_trained, watcher_on
    from pglab.config import Config
    from pglab.tracking import MultiProgress, RunFolder
    from pglab.training import resume

    run = RunFolder.open(folder)
    config = Config.read(run.config(), where=str(run.config_path))

    with MultiProgress(quiet=options.quiet) as progress:
        expect(progress, folder.name, config)
        trained = resume(folder, watcher_on(progress, folder.name))
        progress.end(folder.name, "done" if trained.finished else "stopped")
    write_json_file(options.json, {"folder": str(folder), **trained.results()})
    if not options.quiet:
        show_trained(trained, folder)
    return 0 if trained.finished else 130
