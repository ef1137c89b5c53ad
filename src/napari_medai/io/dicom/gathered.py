"""The headers of many files: in tables as far as they are alike, each made into an object when it is asked for.

A listing of ten thousand slices needs the first slice of each series and, of the others, their instance UIDs and
positions; those are columns of the tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from napari_medai.core.errors import ReadError
from napari_medai.core.stage import Progress
from napari_medai.io.dicom.bulk import Kin, Numbers, Table, read_tables
from napari_medai.io.dicom.elements import Found
from napari_medai.io.dicom.headers import Header, NotDicomError, header_of, read_header, text
from napari_medai.io.dicom.remote import as_if_whole
from napari_medai.io.dicom.whitelist import OF_EACH_SLICE, TAGS, WANTED

# Fewer files are read one by one.
_TABLED = 16
# Threads hide the delay of network drives; parsing itself holds Python's lock.
_THREADS = 4
# Files that a thread reads between two words about the progress.
_SHARE = 128


@dataclass(frozen=True, eq=False)
class Rows:
    """Those of some headers that are in one table, or one that is in none.

    Attributes
    ----------
    at : (rows,) array of int
        Their numbers among these headers, in rising order.
    sizes : (rows,) array of int
        Lengths of the files in bytes.
    kin : Kin or None
        What the files of the table share.
    """

    at: Numbers
    sizes: NDArray[np.int64]
    kin: Kin | None = None


class Headers(Sequence[Header]):
    """Headers in the order of their paths; an object is made of each when it is asked for first.

    Parameters
    ----------
    source : _Source
        The files, and in which tables they are.
    numbers : (headers,) array of int
        Which of the files.
    """

    def __init__(self, source: _Source, numbers: Numbers) -> None:
        self._source, self._numbers = source, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, key: int) -> Header: ...
    @overload
    def __getitem__(self, key: slice) -> Headers: ...
    def __getitem__(self, key: int | slice) -> Header | Headers:
        return self.part(self._numbers[key]) if isinstance(key, slice) else self._source.header(int(self._numbers[key]))

    def __iter__(self) -> Iterator[Header]:
        return iter(self._source.headers(self._numbers))

    def part(self, numbers: Numbers) -> Headers:
        """Some of them, by the numbers of their files."""
        return Headers(self._source, numbers)

    @property
    def paths(self) -> list[str]:
        """Of the files."""
        return [self._source.paths[n] for n in self._numbers.tolist()]

    def texts(self, keyword: str) -> list[str]:
        """An element of each as text, as `Header.text` gives it."""
        texts: list[str] = self._source.texts(TAGS[keyword])[self._numbers].tolist()
        return texts

    def by_pixels(self) -> tuple[Headers, list[Header]]:
        """Those of files with pixels, and the others."""
        without = {n for n, header in self._source.alone.items() if not header.pixel_keyword}
        others = [n for n in self._numbers.tolist() if n in without] if without else []
        kept = self._numbers[~np.isin(self._numbers, others)] if others else self._numbers
        return self.part(kept), [self._source.header(n) for n in others]

    def by_text(self, keyword: str, otherwise: Any = None) -> dict[str, Headers]:
        """Those of one text each, in the order of their first.

        Parameters
        ----------
        keyword : str
            Of the element.
        otherwise : callable, optional
            Gives a text for the path of a file that has none.
        """
        groups: dict[str, list[int]] = {}
        for number, found in zip(self._numbers.tolist(), self.texts(keyword), strict=True):
            key = found or (otherwise(self._source.paths[number]) if otherwise else "")
            groups.setdefault(key, []).append(number)
        return {key: self.part(np.array(members)) for key, members in groups.items()}

    def rows(self) -> list[Rows]:
        """Those of each table, and each of those in none, in the order of their first."""
        tables, found = self._source.table[self._numbers], []
        for n in set(tables.tolist()):
            at = np.flatnonzero(tables == n)
            if n < 0:
                found += [Rows(at[k : k + 1], np.array([self[m].size])) for k, m in enumerate(at.tolist())]
            else:
                table = self._source.tables[n]
                found.append(Rows(at, table.sizes[self._source.row[self._numbers[at]]], table.kin))
        return sorted(found, key=lambda rows: int(rows.at[0]))


class _Source:
    """Files, the tables that they are in, and the headers of those that are in none."""

    def __init__(self, paths: Sequence[str], tables: Sequence[Table], alone: dict[int, Header]) -> None:
        self.paths, self.tables, self.alone = paths, tables, alone
        self.table = np.full(len(paths), -1)
        self.row = np.zeros(len(paths), np.intp)
        for n, table in enumerate(tables):
            self.table[table.files] = n
            self.row[table.files] = np.arange(len(table.files))
        self._made = dict(alone)
        self._texts: dict[int, NDArray[Any]] = {}

    def header(self, number: int) -> Header:
        """Of one file."""
        if number not in self._made:
            table, row = self.tables[self.table[number]], int(self.row[number])
            (found,) = table.elements(slice(row, row + 1))
            self._make(number, found, int(table.sizes[row]), table)
        return self._made[number]

    def headers(self, numbers: Numbers) -> list[Header]:
        """Of some files."""
        new = numbers[np.array([n not in self._made for n in numbers.tolist()], bool)]
        tables = self.table[new]
        for n in np.unique(tables).tolist():
            table, members = self.tables[n], new[tables == n]
            rows = self.row[members]
            sizes = table.sizes[rows].tolist()
            for number, size, found in zip(members.tolist(), sizes, table.elements(rows), strict=True):
                self._make(number, found, size, table)
        return [self._made[n] for n in numbers.tolist()]

    def _make(self, number: int, found: Found, size: int, table: Table) -> None:
        self._made[number] = as_if_whole(header_of(self.paths[number], found, size, table.kin))

    def texts(self, tag: int) -> NDArray[Any]:
        """An element of all files as text."""
        if tag not in self._texts:
            found = np.full(len(self.paths), "", object)
            for table in self.tables:
                values = table.values(tag)
                if values is None:
                    found[table.files] = text(table.found.values, tag)
                elif isinstance(values[0], str):  # which is stripped already
                    found[table.files] = np.array(values, object)
                else:
                    found[table.files] = np.array([text({tag: value}, tag) for value in values], object)
            for number, header in self.alone.items():
                found[number] = text(header.fields, tag)
            self._texts[tag] = found
        return self._texts[tag]


def read_headers(paths: Sequence[str], progress: Progress | None = None) -> tuple[Headers, list[ReadError]]:
    """The headers of many files; files that are not DICOM are passed over.

    Parameters
    ----------
    paths : sequence of str
        Files.
    progress : Progress, optional
        Told how many files are done; may stop the reading.

    Returns
    -------
    Headers
        In the order of ``paths``.
    list of ReadError
        One for each DICOM file that could not be read.
    """
    tell = progress or Progress()
    total = len(paths)
    tables = (
        read_tables(paths, WANTED, OF_EACH_SLICE, lambda done: tell.update(done, total, "Reading headers"))
        if total >= _TABLED
        else []
    )
    left = np.ones(total, bool)
    for table in tables:
        left[table.files] = False
    rest = np.flatnonzero(left).tolist()
    alone: dict[int, Header] = {}
    failed: list[ReadError] = []
    for number, answer in zip(rest, _one_by_one([paths[n] for n in rest], total, tell), strict=True):
        if isinstance(answer, Header):
            alone[number], left[number] = answer, False
        elif answer is not None:
            failed.append(answer)
    return Headers(_Source(paths, tables, alone), np.flatnonzero(~left)), failed


def _one_by_one(paths: Sequence[str], total: int, progress: Progress) -> Iterator[Header | ReadError | None]:
    """The header of each, what is wrong with it, or None for files that are not DICOM."""

    def attempt(path: str) -> Header | ReadError | None:
        try:
            return read_header(path)
        except NotDicomError:
            return None
        except ReadError as error:
            return error

    def share(some: Sequence[str]) -> list[Header | ReadError | None]:
        return [attempt(path) for path in some]

    if total < _TABLED:
        yield from share(paths)
        return
    parts = [paths[n : n + _SHARE] for n in range(0, len(paths), _SHARE)]
    done = total - len(paths)
    with ThreadPoolExecutor(_THREADS) as pool:
        for part in pool.map(share, parts):
            done += len(part)
            progress.update(done, total, "Reading headers")
            yield from part
