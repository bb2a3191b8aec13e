"""A part of the bench beside the table of peers: what it measures, and how that is kept."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bench.results import SectionResults, Settings


@dataclass(frozen=True, slots=True)
class Section:
    """`measure` puts what it finds into the record that it is given."""

    name: str
    title: str
    measure: Callable[["Record"], None]
    programs: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Record:
    """What a section writes to. `show` tells whoever watches what is being done."""

    results: SectionResults
    settings: Settings
    show: Callable[[str], None]

    def put(self, key: str, value: float) -> None:
        """One round's value; the table has the median."""
        self.results.samples.setdefault(key, []).append(value)

    def note(self, text: str) -> None:
        """A line for the reader; the same one only once."""
        if text not in self.results.notes:
            self.results.notes.append(text)

    def table(self, title: str, header: list[str], rows: list[list[str]]) -> None:
        """A table of its own."""
        self.results.tables.append((title, header, rows))
