"""`pglab train`."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path

from pglab.cli.app import OVERRIDES, add_common, load_plugins, parser, split, write_json_file

DESCRIPTION = """\
Train one config: all its seeds, and every swept value, at once in one process.

  pglab train --env.id CartPole-v1 --baseline value
  pglab train cartpole/value --seeds 16 --total_steps 100000
  pglab train my_config.yaml --learning_rate [3e-4,1e-3]
"""


def main(arguments: list[str]) -> int:
    p = parser("train", DESCRIPTION, OVERRIDES)
    p.add_argument("config", nargs="?", help="a YAML file, or a shipped variant such as cartpole/value")
    p.add_argument("--name", help="names the run folder (default: the environment)")
    add_common(p)
    options, overrides = split(p, arguments)
    load_plugins(options.plugin)

    from pglab.config import Config, override
    from pglab.errors import PglabError
    from pglab.shipped import config_data

    data = config_data(options.config)
    for path, value in overrides:
        data = override(data, path, value)
    if "env" not in data:
        raise PglabError("No environment: name one with --env.id, for example --env.id CartPole-v1, or give a config.")
    if options.plugin:
        data["plugins"] = options.plugin
    config = Config.read(data)

    from pglab.cli.showing import expect, opening, show_trained, watcher_on
    from pglab.tracking import MultiProgress, unique_run_path
    from pglab.training import train

    title = options.name or config.env.id.replace("/", "-")
    folder = unique_run_path(options.runs, title)
    try:
        with MultiProgress(quiet=options.quiet) as progress:
            watcher = watcher_on(progress, title)
            expect(progress, title, config)
            if not options.quiet:
                progress.note(opening(config))
            trained = train(config, folder, shlex.join(["pglab", "train", *arguments]), watcher)
            progress.end(title, "done" if trained.finished else "stopped")
    except BaseException:
        _remove_if_empty(folder)
        raise
    write_json_file(options.json, {"folder": str(folder), **trained.results()})
    if not options.quiet:
        show_trained(trained, folder)
    return 0 if trained.finished else 130


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()
