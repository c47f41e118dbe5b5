"""MkDocs hook: writes the parts of the reference that the code itself knows.

A page asks for a part with a comment such as `<!-- generated: recipe -->`; it is replaced when the
page is read, so a table can never be older than the code.
"""

import inspect
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from onnxprune import errors
from onnxprune.cli import COMMANDS, root
from onnxprune.export import schema
from onnxprune.importer import Entry, supported_operators
from onnxprune.recipe import Recipe
from onnxprune.runtime.record import schema as compiled_schema
from onnxprune.validate.policy import table_classes

_CHANGELOG = Path(__file__).parent.parent / "CHANGELOG.md"
_RESULTS_NAME = "benchmarks/results"
_RESULTS = Path(__file__).parent.parent / _RESULTS_NAME
_PLOTS = "plots"
_MARKER = re.compile(r"^<!-- generated: ([a-z-]+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace every marker of a page, and where its plots lie; MkDocs calls this."""
    markdown = markdown.replace(f"](../../{_RESULTS_NAME}/", f"](../{_PLOTS}/")
    return _MARKER.sub(lambda found: "\n".join(_PARTS[found[1]]()), markdown)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take the plots beside the results into the site; MkDocs calls this."""
    for path in sorted(_RESULTS.rglob("*.svg")):
        place = f"{_PLOTS}/{path.relative_to(_RESULTS).as_posix()}"
        files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def recipe_tables() -> Iterator[str]:
    """One section a table of the recipe, with key, type, default and meaning."""
    for name, field in Recipe.model_fields.items():
        table = field.annotation
        assert isinstance(table, type)
        assert issubclass(table, BaseModel)
        yield from _table_section(field.alias or name, table)


def policy_tables() -> Iterator[str]:
    """One section a table of the policy of `check`."""
    for name, table in table_classes():
        yield from _table_section(name, table)


def _table_section(name: str, table: type[BaseModel]) -> Iterator[str]:
    """A table of a TOML file, with key, type, default and meaning."""
    summary, _, rest = (table.__doc__ or "").partition("\n")
    text = summary.partition(": ")[2]
    yield from (f"## `[{name}]`", "", text[:1].upper() + text[1:], "")
    if rest.strip():
        yield from (inspect.cleandoc(rest), "")
    yield from _table(
        ("key", "type", "default", "meaning"),
        (
            (f"`{key}`", _type_text(entry), _default_text(entry), entry.description or "")
            for key, entry in table.model_fields.items()
        ),
    )


def command_sections() -> Iterator[str]:
    """One section a command, with usage, description, options and examples."""
    context = click.Context(root, info_name="onnxprune", **root.context_settings)
    for name in COMMANDS:
        command = root.get_command(context, name)
        assert command is not None
        inner = click.Context(command, info_name=name, parent=context)
        usage = " ".join(command.collect_usage_pieces(inner))
        yield from (f"## `{name}`", "", "```text", f"onnxprune {name} {usage}", "```", "")
        description, _, examples = _help_text(command).partition("\n\b\n")
        yield from (description.strip(), "")
        options = (p for p in command.get_params(inner) if isinstance(p, click.Option))
        records = (option.get_help_record(inner) for option in options)
        yield from _table(
            ("option", "meaning"),
            ((f"`{record[0]}`", record[1]) for record in records if record is not None),
        )
        if examples:
            title, _, lines = examples.partition("\n")
            yield from (title, "", "```bash", inspect.cleandoc(lines), "```", "")


def operator_table() -> Iterator[str]:
    """Operators with a direct implementation, and the operator set versions that it is for."""
    entries = sorted(supported_operators(), key=lambda entry: (entry.domain, entry.op_type))
    yield from (f"{len({(e.domain, e.op_type) for e in entries})} operators.", "")
    for domain, members in groupby(entries, key=lambda entry: entry.domain):
        yield from (f"## Domain `{domain or 'ai.onnx'}`", "")
        yield from _table(
            ("operator", "operator set versions", "for"),
            (
                _operator_row(op_type, sorted(group, key=_since))
                for op_type, group in groupby(members, key=lambda entry: entry.op_type)
            ),
        )


def error_table() -> Iterator[str]:
    """Every error class with its base, exit code and meaning."""
    classes = [value for value in vars(errors).values() if inspect.isclass(value)]
    yield from _table(
        ("error", "base", "exit code", "meaning"),
        (
            (
                f"`{error.__name__}`",
                f"`{error.__bases__[0].__name__}`",
                str(error.exit_code),
                (error.__doc__ or "").partition("\n")[0],
            )
            for error in classes
            if issubclass(error, errors.OnnxpruneError)
        ),
    )


def metadata_tables() -> Iterator[str]:
    """The fields of the sparsity metadata, read from their JSON Schema."""
    document = schema()
    parts = {
        "The model": document,
        "Each entry of `tensors`": document["$defs"]["TensorMetadata"],
        "`train` and `eval` of `data`": document["$defs"]["DataMetadata"],
    }
    yield from _schema_tables("##", parts)


def compiled_tables() -> Iterator[str]:
    """The fields of a compiled model's metadata, read from their JSON Schema."""
    document = compiled_schema()
    layer = document["$defs"]["LayerRecord"]
    yield from _schema_tables("###", {"The model": document, "Each entry of `layers`": layer})


def _schema_tables(level: str, parts: dict[str, Any]) -> Iterator[str]:
    """One table of fields for each part of a JSON Schema."""
    for title, part in parts.items():
        yield from (f"{level} {title}", "")
        yield from _table(
            ("field", "type", "meaning"),
            (
                (f"`{key}`", _schema_type(entry), entry.get("description", ""))
                for key, entry in part["properties"].items()
            ),
        )


def _schema_type(entry: dict[str, Any]) -> str:
    """The type of a field, with the others that it may have."""
    if "anyOf" in entry:
        return " or ".join(str(option.get("type", "")) for option in entry["anyOf"])
    return str(entry.get("type", ""))


def architecture_tables() -> Iterator[str]:
    """What `benchmarks/architectures.py` found, one section a group of architectures."""
    record = _record("architectures")
    entries = record["results"]
    verdicts = Counter(entry["verdict"] for entry in entries)
    counts = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.most_common())
    dates = sorted({entry["date"] for entry in entries if "date" in entry} or {record["date"]})
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    yield from (f"{len(entries)} architectures, measured {when}: {counts}.", "")
    for group, members in groupby(_by_group(entries), key=lambda entry: entry["group"]):
        yield from (f"## {group.replace('_', ' ').capitalize()}", "")
        yield from _table(
            ("architecture", "result", "exporter", "dynamic", "off by", "PyTorch's own", "remark"),
            (_architecture_row(entry) for entry in members),
        )


def interleaving_table() -> Iterator[str]:
    """What `benchmarks/bench_interleaving.py` found."""
    record = _record("bench_interleaving")
    yield from (_measured_on(record), "")
    for model, ways in record["results"].items():
        yield from _table(
            (f"`{model}`, {record['settings']['threads']} threads", "median", "plain loop"),
            (
                (way, f"{found['median_ms']:.2f} ms", f"{found['against_a_plain_loop']:.2f}×")
                for way, found in ways.items()
            ),
        )


def trust_table() -> Iterator[str]:
    """What `benchmarks/bench_trust.py` found."""
    record = _record("bench_trust")
    results, repeats = record["results"], record["settings"]["repeats"]
    rows = []
    for key, title in (
        ("same", "a model against itself"),
        ("same_with_a_busy_core", "the same, with another program on one core"),
    ):
        found = results[key]
        text = f"{found['intervals_with_1']} of {repeats} intervals hold 1"
        rows.append((title, f"{text}; their median width is {found['median_width']:.1%}"))
    found = results["slower_by_5_percent"]
    text = f"found slower in {found['found_slower']} of {repeats}"
    rows.append(("a model with 5 % of its time added", text))
    loops = _record("bench_trust_loop")
    for model, found in loops["results"]["plain_loop"].items():
        texts = [
            "{difference:+.1%} [{low:+.1%}, {high:+.1%}]".format(**found[key]) + f" {how}"
            for key, how in (("alone", "alone"), ("interleaved", "beside another session"))
        ]
        title = f"median of `{model}` ({found['alone']['loop_ms']:.1f} ms) against a plain loop"
        rows.append((title, ", ".join(texts)))
    yield from (_measured_on(record), _measured_on(loops), "")
    yield from _table(("question", "answer"), rows)


def _measured_on(record: dict[str, Any]) -> str:
    machine, settings = record["machine"], record["settings"]
    shared = ", which other programs used meanwhile" if settings["shared"] else ""
    return (
        f"Measured {record['date']} on {machine['cpu']} with {machine['cores']} cores{shared} "
        f"(`{record['command']}`)."
    )


def _record(name: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((_RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return record


def _by_group(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries sorted by group and name."""
    return sorted(entries, key=lambda entry: (entry["group"], entry["name"]))


def _architecture_row(entry: dict[str, Any]) -> tuple[str, ...]:
    last = entry["exports"][-1] if entry["exports"] else {}
    keys = ("exporter", "dynamic", "difference", "native_difference")
    texts = [str(last[key]) if last.get(key) is not None else "–" for key in keys]
    reasons = [f"{e['exporter']}: {e['reason']}" for e in entry["exports"] if "reason" in e]
    remark = " ".join([*reasons, entry.get("reason", "")]).replace("<", "&lt;")
    return f"`{entry['name']}`", entry["verdict"], *texts, remark[:300]


def changelog() -> Iterator[str]:
    """The changelog, which lies outside the documentation's folder."""
    yield _CHANGELOG.read_text(encoding="utf-8")


_PARTS: dict[str, Callable[[], Iterator[str]]] = {
    "policy": policy_tables,
    "recipe": recipe_tables,
    "commands": command_sections,
    "operators": operator_table,
    "errors": error_table,
    "metadata": metadata_tables,
    "compiled": compiled_tables,
    "architectures": architecture_tables,
    "bench-interleaving": interleaving_table,
    "bench-trust": trust_table,
    "changelog": changelog,
}


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield _row(header)
    yield _row("---" for _ in header)
    yield from (_row(row) for row in rows)
    yield ""


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _help_text(command: click.Command) -> str:
    """A command's help, with paragraphs that must not be wrapped marked by a backspace."""
    return inspect.cleandoc(command.help or "").replace("\\b\n", "\b\n")


def _type_text(field: FieldInfo) -> str:
    """The type as a user writes it in TOML, with its bounds."""
    name = inspect.formatannotation(field.annotation)
    name = re.sub(r"(typing\.)?Literal\[(.*?)\]", lambda m: m[2].replace(", ", " | "), name)
    name = re.sub(r"tuple\[int, int\]", "[int, int]", name)
    name = " | ".join(part for part in name.split(" | ") if part != "None").replace("'", '"')
    symbols = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [
        f"{symbol} {getattr(item, key):g}"
        for item in field.metadata
        for key, symbol in symbols.items()
        if hasattr(item, key)
    ]
    return f"`{name}`" + (f", {' and '.join(bounds)}" if bounds else "")


def _default_text(field: FieldInfo) -> str:
    if field.default is None or field.default is PydanticUndefined:
        return "–"
    return f"`{json.dumps(field.default)}`"


def _operator_row(op_type: str, entries: list[Entry]) -> tuple[str, ...]:
    versions = ", ".join(_versions(entry.since, entry.until) for entry in entries)
    trains = all(entry.trains for entry in entries)
    return f"`{op_type}`", versions, "training" if trains else "inference only"


def _since(entry: Entry) -> int:
    return entry.since


def _versions(since: int, until: int | None) -> str:
    if until is None:
        return f"{since} and newer"
    return str(since) if until == since + 1 else f"{since} to {until - 1}"
