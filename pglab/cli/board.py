"""`pglab board`."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from pathlib import Path

from pglab.cli.app import parser
from pglab.errors import PglabError

DESCRIPTION = """\
Look at runs in TensorBoard, on its page of charts arranged for comparing:
bands over seeds, gradient noise, losses, speed. Ctrl-C ends it.

  pglab board runs/cartpole-20260101-120000
  pglab board runs/first runs/second --port 6007
  pglab board                                     # everything in runs
"""


def main(arguments: list[str]) -> int:
    p = parser("board", DESCRIPTION)
    p.add_argument("runs", nargs="*", default=["runs"], metavar="RUNS", help="folders with runs (default: runs)")
    p.add_argument("--port", type=int, metavar="N", help="default: 6006, or the next that is free")
    p.add_argument("--host", default="localhost", help="the interface to listen on (default: localhost alone)")
    p.add_argument("--open", action="store_true", help="open the page in a browser")
    options = p.parse_args(arguments)
    if options.port is not None and not 0 < options.port < 65536:
        raise PglabError(f"--port must lie between 1 and 65535, not {options.port}.")
    folders = [Path(run) for run in options.runs]
    for folder in folders:
        check(folder)
    return show(folders, options)


def check(folder: Path) -> None:
    """PglabError where there is nothing to look at."""
    if not folder.is_dir():
        raise PglabError(f"There is no folder {folder}.")
    if next(folder.rglob("*tfevents*"), None) is None:
        raise PglabError(f"{folder} holds no TensorBoard event files: give a run folder, or a folder of runs.")


def page(folders: list[Path]) -> str:
    """The part of the address behind `#`: the custom-scalars page, showing aggregates where there are any.

    Members stay one click away (the field "Write a regex to filter runs"); a measurement's runs have no aggregate.
    """
    runs = [path.parent for folder in folders for path in folder.rglob("*tfevents*")]
    aggregated = any(run.name.startswith("aggregate") for run in runs)
    # TensorBoard smooths lines by 0.6 unless told otherwise.
    return "custom_scalars&_smoothingWeight=0" + ("&regexInput=aggregate%7Cvariance" if aggregated else "")


def logdir(folders: list[Path]) -> list[str]:
    """TensorBoard's arguments for these folders: one is its root; of several each has a name of its own."""
    if len(folders) == 1:
        return ["--logdir", str(folders[0].resolve())]
    specs: list[str] = []
    names: set[str] = set()
    for folder in dict.fromkeys(folder.resolve() for folder in folders):
        if "," in str(folder):
            raise PglabError(
                f"{folder}: with several folders TensorBoard takes no comma in a path; give one at a time."
            )
        # What stands before the first colon is the name, so it can hold neither.
        name = stem = folder.name.replace(":", "_") or "root"
        count = 1
        while name in names:
            count += 1
            name = f"{stem}-{count}"
        names.add(name)
        specs.append(f"{name}:{folder}")
    return ["--logdir_spec", ",".join(specs)]


def show(folders: list[Path], options: argparse.Namespace) -> int:
    """Serve until Ctrl-C."""
    import threading

    from tensorboard import default, program

    def launch(port: list[str]) -> str:
        board = program.TensorBoard(default.get_plugins())
        board.configure(argv=["pglab board", *logdir(folders), "--host", options.host, *port])
        with contextlib.redirect_stderr(io.StringIO()):  # a note that its usual way of reading files is experimental
            return board.launch()

    try:
        try:
            url = launch([] if options.port is None else ["--port", str(options.port)])
        except program.TensorBoardPortInUseError:
            if options.port is not None:
                raise
            url = launch(["--port", "0"])  # the usual ones are taken: any
    except program.TensorBoardServerException as error:
        raise PglabError(" ".join(str(error).split()).rstrip(".") + ".") from None
    address = f"{url}#{page(folders)}"
    print(f"TensorBoard: {address}\nCtrl-C ends it.", flush=True)
    if options.open:
        import webbrowser

        webbrowser.open(address)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print("Ended.", file=sys.stderr)
    return 0
