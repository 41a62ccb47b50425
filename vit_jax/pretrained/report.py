"""What became of each tensor when weights were loaded into a model."""

import dataclasses

from vit_jax.errors import printable

MANY = 12  # more tensors with the same fate share one line of the report


@dataclasses.dataclass(frozen=True)
class Report:
    """`fates`: parameter (or unused tensor of the file) -> `loaded`, `resized (…)`, `adapted (…)`,
    `re-initialised (…)` or `unused (…)`. `warnings`: other things that a user should know."""

    source: str
    fates: dict[str, str]
    warnings: list[str] = dataclasses.field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """The number of tensors of each fate."""
        counts: dict[str, int] = {}
        for fate in self.fates.values():
            counts[fate.split(" ")[0]] = counts.get(fate.split(" ")[0], 0) + 1
        return counts

    def lines(self) -> list[str]:
        """A count of each fate, then the tensors that were not simply loaded, then warnings."""
        head = ", ".join(f"{count} {fate}" for fate, count in self.counts().items())
        by_fate: dict[str, list[str]] = {}
        for path, fate in self.fates.items():
            by_fate.setdefault(fate, []).append(path)
        by_fate.pop("loaded", None)
        lines = []
        for fate, paths in by_fate.items():
            if len(paths) > MANY:  # for example, the state of an optimiser beside the weights
                lines.append(f"  {fate}: {len(paths)} tensors, such as {printable(paths[0])}")
            else:
                lines += [f"  {fate}: {printable(path)}" for path in paths]
        return [head, *lines, *(f"  warning: {line}" for line in self.warnings)]
