"""Height and width of every picture of a source: as a prepared set knows them, else by each picture's header, once."""

from __future__ import annotations

import hashlib
import io

import numpy as np
from tqdm import tqdm

from ldm.core.cache import cache_folder
from ldm.core.errors import UserError
from ldm.core.files import write_file
from ldm.data.images import size_of
from ldm.data.sources.source import Source


def picture_sizes(source: Source) -> np.ndarray:
    """(count, 2) uint32, height and width, upright; (0, 0) of pictures that cannot be read.

    What was found is kept in the user's cache, by the contents of the source.
    """
    stored = source.stored_sizes()
    if stored is not None:
        return stored
    digest = hashlib.sha256(f"{source.digest} {len(source)}".encode()).hexdigest()
    known = cache_folder("sizes") / f"{digest}.npy"
    try:
        kept: np.ndarray = np.load(known, allow_pickle=False)
        if kept.shape == (len(source), 2):
            return kept
    except (OSError, ValueError, EOFError):
        pass  # not known yet, or cut off: looked at below
    names = tqdm(range(len(source)), desc=f"sizes of {source.name}", unit=" pictures", delay=2.0, leave=False)
    found = np.array([_size(source, index) for index in names], np.uint32).reshape(-1, 2)
    buffer = io.BytesIO()
    np.save(buffer, found, allow_pickle=False)
    try:
        write_file(known, buffer.getvalue())
    except OSError as error:
        tqdm.write(f"the pictures' sizes could not be kept in {known.parent} ({error.strerror}); every start looks at all headers")
    return found


def _size(source: Source, index: int) -> tuple[int, int]:
    """An unreadable picture is counted when it is used; another then stands in for it."""
    try:
        record = source.record(index)
        return size_of(record.image, record.name, suffix=record.suffix)
    except UserError:
        return 0, 0
