"""Names of this package, and beside them what other installed packages offer under an entry point's group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from .errors import RefactError

T = TypeVar("T")


class Offered(Mapping[str, T], Generic[T]):
    """What is built in, and then what other packages offer, by name; a package is imported when it is first asked for.

    group: of the entry points, such as "refact.methods". error: raised with a message where something that is offered
    cannot be imported, or is refused by `check`, which says what is wrong with it ("" for nothing). fold: makes an
    entry point's name into the name here.
    """

    def __init__(
        self,
        group: str,
        built_in: Mapping[str, T],
        error: type[RefactError],
        check: Callable[[EntryPoint, Any], str],
        fold: Callable[[str], str] = str,
    ) -> None:
        self.group, self.built_in, self.error, self.check, self.fold = group, built_in, error, check, fold

    def __getitem__(self, name: str) -> T:
        if name in self.built_in:
            return self.built_in[name]
        point = self._others()[name]
        try:
            found = point.load()
        except (ImportError, AttributeError) as error:
            reason = f"{point.name!r} of {self.group} cannot be imported from {point.value}: {error}"
            raise self.error(reason) from None
        if wrong := self.check(point, found):
            raise self.error(f"{point.name!r} of {self.group} ({point.value}) is not {wrong}")
        return found

    def __iter__(self) -> Iterator[str]:
        return iter([*self.built_in, *sorted(self._others())])

    def __len__(self) -> int:
        return len(self.built_in) + len(self._others())

    def _others(self) -> dict[str, EntryPoint]:
        named = {self.fold(point.name): point for point in entry_points(group=self.group)}
        return {name: point for name, point in named.items() if name not in self.built_in}
