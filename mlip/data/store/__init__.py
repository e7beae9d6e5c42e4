"""The packed store: every structure of a data set in memory-mapped arrays, built once.

Text is parsed once per file version and option set; afterwards a batch is a handful of slices.
Where files can be read at random, the store may also be an index of them.
"""

from mlip.data.store.build import build, merge
from mlip.data.store.cache import open_store
from mlip.data.store.columns import JoinedColumn
from mlip.data.store.layout import COLUMNS, LEFT, SUMMARIES, VERSION
from mlip.data.store.reader import Store

__all__ = [
    "COLUMNS",
    "LEFT",
    "SUMMARIES",
    "VERSION",
    "JoinedColumn",
    "Store",
    "build",
    "merge",
    "open_store",
]
