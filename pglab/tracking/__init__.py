"""What a run leaves behind, and what is seen of it while it runs."""

from pglab.tracking.files import atomic_write
from pglab.tracking.log import Series, read_log
from pglab.tracking.run_folder import RunFolder, unique_run_path
from pglab.tracking.terminal import MultiProgress
from pglab.tracking.tracker import MemberLabel, Tracker

__all__ = [
    "MemberLabel",
    "MultiProgress",
    "RunFolder",
    "Series",
    "Tracker",
    "atomic_write",
    "read_log",
    "unique_run_path",
]
