"""Predictions as Parquet files, one for each part of the images, which several processes write at once.

<run>/predictions/<time>/parts/
    000000.parquet        one row per image: the columns of `predictions.csv`, its size, its regions, or an error
"""

from collections.abc import Iterable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adlight.runs.files import write_atomically
from adlight.types import UserError

if TYPE_CHECKING:  # an extra
    import pyarrow


class PartFolder:
    """A folder of parts, which need not exist yet; a file exists only once its part is complete."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def clear(self) -> None:
        """Delete all parts."""
        for number in self._numbers():
            self._file(number).unlink()

    def write(self, number: int, entries: Iterable[dict[str, Any]]) -> None:
        """Write a part."""
        import pyarrow
        from pyarrow import parquet

        buffer = pyarrow.BufferOutputStream()
        parquet.write_table(pyarrow.Table.from_pylist(list(entries), _schema()), buffer)
        write_atomically(self._file(number), buffer.getvalue().to_pybytes())

    def entries(self) -> Iterator[dict[str, Any]]:
        """Read the entries of all parts, in order."""
        for number in self._numbers():
            for row in self._open(number).read().to_pylist():
                error = row.pop("error")
                yield row if error is None else {"path": row["path"], "error": error}

    def count(self) -> int:
        """Count the entries."""
        return sum(self._open(number).metadata.num_rows for number in self._numbers())

    def remaining(self, paths: Iterator[Path], size: int) -> Iterator[tuple[int, list[str]]]:
        """Yield number and images of each missing part of `size` images; raise a UserError if images have changed."""
        for number in count():
            images = [str(path) for path in islice(paths, size)]
            written = self._open(number).read(["path"])["path"].to_pylist() if self._file(number).exists() else None
            if written not in (None, images) or (not images and any(other >= number for other in self._numbers())):
                raise UserError(f"the images have changed since {self.path} was begun: predict again, without resume")
            if not images:
                return
            for path in images:
                _check_utf8(path)
            if written is None:
                yield number, images

    def _file(self, number: int) -> Path:
        return self.path / f"{number:06}.parquet"

    def _open(self, number: int) -> "pyarrow.parquet.ParquetFile":
        from pyarrow import parquet

        return parquet.ParquetFile(self._file(number))

    def _numbers(self) -> list[int]:
        return sorted(int(path.stem) for path in self.path.glob("*.parquet"))


def _check_utf8(path: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{path!r} is not UTF-8, which Parquet needs: rename it, or leave out engine=ray") from error


def _schema() -> "pyarrow.Schema":
    import pyarrow as pa

    integers = pa.list_(pa.int64())
    pixels = pa.struct([("size", integers), ("counts", integers)])
    region = pa.struct([("bbox", integers), ("area", pa.int64()), ("score", pa.float64()), ("segmentation", pixels)])
    words, numbers = ("path", "threshold_source", "error"), ("score", "threshold", "pixel_threshold", "area")
    columns = {
        **dict.fromkeys(words, pa.string()),
        **dict.fromkeys(numbers, pa.float64()),
        **{"anomalous": pa.bool_(), "width": pa.int64(), "height": pa.int64()},
        **{"boxes": pa.list_(integers), "regions": pa.list_(region)},
    }
    return pa.schema(columns)
