"""Output of ``gumba bench --profile``: tables, JSON or a plot."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gumba.cli.terminal import count, table
from gumba.errors import RequestError
from gumba.files import write_file

if TYPE_CHECKING:
    from gumba.bench.profiler import Limits, OperationTime, Phase, Profile

# Table and JSON --------------------------------------------------------------------------------------------------------


def as_json(profile: Profile) -> dict[str, object]:
    """The profile as a JSON object, with numbers of six digits."""

    def rounded(value: object) -> object:
        if isinstance(value, float):
            return float(f"{value:.6g}")
        if isinstance(value, dict):
            return {key: rounded(item) for key, item in value.items()}
        return [rounded(item) for item in value] if isinstance(value, list) else value

    def of_phase(phase: Phase | None) -> dict[str, object] | None:
        if phase is None:
            return None
        operations = [{**asdict(op), "of_limit": op.of_limit} for op in phase.operations]
        return {**asdict(phase), "overhead_ms": phase.overhead_ms, "operations": operations}

    fields = {
        "limits": asdict(profile.limits),
        "prefill": of_phase(profile.prefill),
        "decode": of_phase(profile.decode),
    }
    return {key: rounded(value) for key, value in fields.items()}


def as_text(profile: Profile) -> str:
    """The limits, then one table per phase."""
    return "\n\n".join([_limits_table(profile.limits), *(_phase_table(phase) for phase in profile.phases)])


def _limits_table(limits: Limits) -> str:
    names = {
        "memory read, GB/s": "memory_gb_s",
        "cache read, GB/s": "cache_gb_s",
        "int8 dot products, GOP/s": "int8_gop_s",
        "float32 multiply-adds, GFLOP/s": "float32_gflop_s",
        "bfloat16 dot products, GFLOP/s": "bf16_gflop_s",
    }
    columns = {"1 thread": limits.one}
    if limits.threads > 1:
        columns[count(limits.threads, "thread")] = limits.all
    rows = [[f"limits measured ({limits.isa})", *columns]]
    rows += [[name, *(f"{getattr(rates, field):.1f}" for rates in columns.values())] for name, field in names.items()]
    return table(rows, right="12")


def title(phase: Phase) -> str:
    """A phase in one line."""
    steps = "" if phase.steps == 1 else f", {phase.steps} steps, one of them"
    return (
        f"{phase.name}: {count(phase.tokens, 'token')}{steps} {phase.step_ms:.3f} ms, {phase.tokens_per_s:.1f} tokens/s"
    )


def _phase_table(phase: Phase) -> str:
    rows = [["operation", "shape", "records", "ms", "share", "GOP/s", "GB/s", "limit ms", "of limit", "bound by"]]
    for op in phase.operations:
        gop_s = "-" if op.gop_s is None else f"{op.gop_s:.1f}"
        rows.append(
            [op.name, op.shape or "-", str(op.records), f"{op.ms:.3f}", f"{op.share:.1%}", gop_s, f"{op.gb_s:.1f}",
             f"{op.limit_ms:.3f}", f"{op.of_limit:.0%}", op.bound]
        )  # fmt: skip
    share = phase.overhead_ms / phase.step_ms
    rows.append(["overhead", "-", "-", f"{phase.overhead_ms:.3f}", f"{share:.1%}", "-", "-", "-", "-", "-"])
    limit_ms = sum(op.limit_ms for op in phase.operations)
    records = str(sum(op.records for op in phase.operations))
    rows.append(
        ["step", "-", records, f"{phase.step_ms:.3f}", "100.0%", "-", f"{phase.memory_gb_s:.1f}", f"{limit_ms:.3f}",
         f"{limit_ms / phase.step_ms:.0%}", "-"]
    )  # fmt: skip
    memory = (
        f"weights and KV cache: {phase.memory_gb_s:.1f} GB/s, {phase.memory_of_limit:.0%} of the memory limit around "
        f"these passes ({phase.memory_limit_gb_s:.1f} GB/s)"
    )
    return f"{title(phase)}\n{table(rows, right='2345678')}\n{memory}"


# Plot ------------------------------------------------------------------------------------------------------------------

_ROW, _BARS, _GAP, _MARGIN = 22, 420, 8, 16
#: Width of a character in parts of the font size: that of digits in the widest common font (DejaVu Sans).
_CHARACTER = 0.64
_TIME, _LIMIT, _OTHER = "#9db8d9", "#2f5d9b", "#c9c9c9"


def plot(profile: Profile, heading: str) -> str:
    """SVG of the time of each operation, with the minimum time that the limits allow in the same bar."""
    limits = profile.limits
    machine = (
        f"{limits.isa}, {count(limits.threads, 'thread')}; limits: {limits.all.memory_gb_s:.1f} GB/s from memory, "
        f"{limits.all.cache_gb_s:.0f} GB/s from cache, {limits.all.int8_gop_s:.0f} GOP/s int8, "
        f"{limits.all.float32_gflop_s:.0f} GFLOP/s float32, {limits.all.bf16_gflop_s:.0f} GFLOP/s bfloat16"
    )
    panels = [(title(phase), _rows(phase)) for phase in profile.phases]
    rows = [row for _, own in panels for row in own]
    left = _MARGIN + _GAP + max((_width(row.label) for row in rows), default=0)
    ends = [left + row.length * _BARS + _GAP + _width(row.figures) for row in rows]
    ends += [
        _MARGIN + _width(text, size)
        for text, size in [(heading, 16), (machine, 12), *((name, 14) for name, _ in panels)]
    ]
    width = round(max(ends)) + _MARGIN
    parts = [
        _text(_MARGIN, 28, heading, size=16),
        _text(_MARGIN, 48, machine),
        _box(_MARGIN, 58, 12, _TIME, 12), _text(_MARGIN + 18, 68, "time taken"),
        _box(_MARGIN + 100, 58, 12, _LIMIT, 12), _text(_MARGIN + 118, 68, "minimum time that the limits allow"),
    ]  # fmt: skip
    y = 84
    for name, own in panels:
        parts.append(_text(_MARGIN, y + 18, name, size=14))
        y += 30
        for row in own:
            parts += _bar(left, y, row)
            y += _ROW
        y += 12
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" viewBox="0 0 {width} {y}" '
        f'font-family="sans-serif" font-size="12">\n<rect width="{width}" height="{y}" fill="#ffffff"/>\n{body}\n</svg>\n'
    )


@dataclass(frozen=True)
class _Row:
    """One row of the plot; ``length`` of its bar and ``limit`` within it, both from 0 to 1."""

    label: str
    length: float
    limit: float
    figures: str


def _rows(phase: Phase) -> list[_Row]:
    """A row for each operation of a phase, and one for the overhead."""
    widest = max([op.ms for op in phase.operations] + [phase.overhead_ms]) or 1.0
    rows = []
    for op in phase.operations:
        label = f"{op.name} {op.shape}".rstrip() + (f" x{op.records}" if op.records > 1 else "")
        rows.append(_Row(label, op.ms / widest, min(op.limit_ms, op.ms) / widest, _figures(op)))
    share = phase.overhead_ms / phase.step_ms
    return [*rows, _Row("overhead", phase.overhead_ms / widest, 0.0, f"{phase.overhead_ms:.3f} ms, {share:.1%}")]


def _width(text: str, size: int = 12) -> float:
    """Maximum width of ``text`` in the plot."""
    return len(text) * size * _CHARACTER


def _figures(op: OperationTime) -> str:
    arithmetic = "" if op.gop_s is None else f", {op.gop_s:.0f} GOP/s"
    return f"{op.ms:.3f} ms, {op.share:.1%}{arithmetic}, {op.gb_s:.1f} GB/s, {op.of_limit:.0%} of the {op.bound} limit"


def _bar(left: float, y: int, row: _Row) -> list[str]:
    """Label, bar and figures of a row; its bar begins at ``left``."""
    return [
        _text(left - _GAP, y + 13, row.label, anchor="end"),
        _box(left, y, max(row.length * _BARS, 0.5), _TIME if row.limit else _OTHER),
        _box(left, y, row.limit * _BARS, _LIMIT),
        _text(left + row.length * _BARS + _GAP, y + 13, row.figures),
    ]


def _text(x: float, y: float, text: str, *, size: int = 12, anchor: str = "start") -> str:
    from xml.sax.saxutils import escape  # brings urllib with it

    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}">{escape(text)}</text>'


def _box(x: float, y: float, width: float, colour: str, height: int = _ROW - 6) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" fill="{colour}"/>'


def check_plot(path: Path) -> None:
    """Raise RequestError unless ``path`` is an .svg file in an existing folder."""
    if path.suffix.lower() != ".svg":
        raise RequestError(f"--plot {path}: expected a name that ends in .svg")
    if not path.parent.is_dir():
        raise RequestError(f"{path} cannot be written: the folder {path.parent} does not exist")


def write_plot(path: Path, profile: Profile, heading: str) -> None:
    """Write the plot, complete or not at all. Raises RequestError if the file cannot be written."""
    try:
        write_file(path, plot(profile, heading).encode())
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror or error}") from error
