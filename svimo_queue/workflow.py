"""A workflow with a job's values in it: which node and input a readable name means, and what is wrong with a value.

All of it follows from the workflow's nodes and the definitions of their classes, as a server's `/object_info` gives
them. Nothing in here talks to a server.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .jobs import InputFile, Job, Problem, Value, close_names
from .outputs import mark

Definitions = dict[str, dict[str, Any]]
"""Class of nodes -> its definition, as in `/object_info`."""
UPLOADS = {"image": "image_upload", "mask": "image_upload", "video": "video_upload", "audio": "audio_upload"}
"""Readable name -> what marks an input that takes such a file."""
MODEL_FILES = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf")
WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
READABLE = ("prompt", "negative_prompt", "seed", *UPLOADS)
"""Names of columns that are not the names of inputs."""


@dataclass(frozen=True)
class Place:
    """An input of a node."""

    node: str
    input: str


@dataclass
class Prompt:
    """What to queue for a job.

    Attributes:
        graph: API format, without the files.
        uploads: where the names of uploaded files belong.
        unread: where a value belongs that the job lacks, since its cell is wrong.
        problems: what is wrong, one sentence each; queue nothing then.
    """

    graph: dict[str, dict[str, Any]]
    uploads: dict[Place, InputFile] = field(default_factory=dict)
    unread: set[Place] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    @property
    def models(self) -> frozenset[str]:
        """The model files it loads: with the same ones a server has nothing to load anew."""
        values = (value for node in self.graph.values() for value in node["inputs"].values())
        return frozenset(v for v in values if isinstance(v, str) and v.lower().endswith(MODEL_FILES))


def make_prompt(job: Job, definitions: Definitions) -> Prompt:
    """The workflow of a job with its values, checked against the definitions of a server."""
    workflow = _Workflow(job.graph, definitions)
    prompt = Prompt(graph=copy.deepcopy(job.graph))
    prompt.problems += workflow.unknown_nodes()
    if prompt.problems:
        return prompt  # nothing else can be known

    given: dict[Place, str] = {}
    for column in [*job.values, *sorted(job.unread)]:
        try:
            place = workflow.find(column)
            if place in given:
                raise ValueError(
                    f"means the same input as column {given[place]}: {workflow.title(place)}; give one"
                )
            given[place] = column
            if column in job.unread:
                prompt.unread.add(place)
                continue
            put = workflow.value(place, job.values[column])
        except ValueError as error:
            prompt.problems.append(f"column {column}: {error}")
            continue
        if isinstance(put, InputFile):
            prompt.uploads[place] = put
        else:
            prompt.graph[place.node]["inputs"][place.input] = put
    prompt.problems += workflow.own_problems(given)
    prompt.problems += workflow.without_effect(given)

    for node in prompt.graph.values():  # so that servers that share a folder never write to the same name
        prefix = node["inputs"].get("filename_prefix")
        if isinstance(prefix, str):
            node["inputs"]["filename_prefix"] = f"{prefix}_{mark(job)}"
    return prompt


def problems_of(job: Job, prompt: Prompt) -> list[Problem]:
    """What is wrong with a job's prompt, with the job's place in its file."""
    return [Problem(job.job_file, job.row, job.workflow.name, text) for text in prompt.problems]


def title_of(graph: dict[str, dict[str, Any]], place: Place) -> str:
    """How to name an input without doubt, such as `8.seed (SViMoSampler)`."""
    node = graph[place.node]
    title = node.get("_meta", {}).get("title") if isinstance(node.get("_meta"), dict) else None
    name = node["class_type"] if title in (None, node["class_type"]) else f'{node["class_type"]} "{title}"'
    return f"{place.node}.{place.input} ({name})"


class _Workflow:
    """A graph beside the definitions of its nodes."""

    def __init__(self, graph: dict[str, dict[str, Any]], definitions: Definitions):
        self.graph = graph
        self.definitions = definitions

    def unknown_nodes(self) -> list[str]:
        missing = {}
        for key, node in self.graph.items():
            if node["class_type"] not in self.definitions:
                missing.setdefault(node["class_type"], key)
        return [
            f"node {key}: the server has no node {name}; install the pack that has it, and restart the server"
            for name, key in missing.items()
        ]

    def title(self, place: Place) -> str:
        return title_of(self.graph, place)

    def inputs_of(self, key: str) -> dict[str, list]:
        """Input -> its definition, [type, options], of all inputs that a node's class has."""
        inputs = self.definitions[self.graph[key]["class_type"]].get("input", {})
        return {**inputs.get("required", {}), **inputs.get("optional", {})}

    def find(self, name: str) -> Place:
        """The input that a column means.

        Raises:
            ValueError: none, or more than one; names the choices.
        """
        places = self._by_node(name) if "." in name else self._by_meaning(name)
        if len(places) == 1:
            return places[0]
        if places:
            choices = ", ".join(self.title(place) for place in places)
            raise ValueError(f"could mean each of {choices}; name one as node.input")
        places = self._settable()
        known = {readable for readable in READABLE if self._by_meaning(readable)} | {p.input for p in places}
        exact = {f"{part}.{p.input}" for p in places for part in (p.node, *self._called(p.node))}
        close = close_names(name, ["name", *known, *exact])
        hint = ", ".join(close or sorted(known)[:30])
        raise ValueError(f"the workflow has no such input; {'did you mean' if close else 'it has'} {hint}")

    def _settable(self) -> list[Place]:
        """Inputs that take a value."""
        return [
            Place(key, name)
            for key in self.graph
            for name, definition in self.inputs_of(key).items()
            if kind_of(definition) in WIDGETS
        ]

    def _by_node(self, name: str) -> list[Place]:
        """Inputs by `id.input`, or else `class.input` or `title.input`."""
        places = [
            Place(key, entry)
            for key, node in self.graph.items()
            for entry in dict.fromkeys([*self.inputs_of(key), *node["inputs"]])
        ]
        if by_id := [place for place in places if name == f"{place.node}.{place.input}"]:
            return by_id
        return [p for p in places if name in (f"{part}.{p.input}" for part in self._called(p.node))]

    def _called(self, key: str) -> list[str]:
        node = self.graph[key]
        meta = node.get("_meta")
        return [
            node["class_type"],
            *([meta["title"]] if isinstance(meta, dict) and meta.get("title") else []),
        ]

    def _by_meaning(self, name: str) -> list[Place]:
        if name in ("prompt", "negative_prompt") and (
            texts := self._texts("positive" if name == "prompt" else "negative")
        ):
            return texts
        places = self._settable()
        if name in UPLOADS:
            marked = [p for p in places if self._options(p).get(UPLOADS[name])]
            named = [p for p in marked if name in (p.input, self._makes(p.node))]
            if marked:
                return named or marked
        names = {"seed": ("seed", "noise_seed")}.get(name, (name,))
        places = [place for place in places if place.input in names]
        literal = [p for p in places if not is_link(self.graph[p.node]["inputs"].get(p.input))]
        return literal or places

    def _makes(self, key: str) -> str:
        outputs = self.definitions[self.graph[key]["class_type"]].get("output") or [""]
        return str(outputs[0]).lower()

    def _texts(self, side: str) -> list[Place]:
        """The texts behind the inputs named `positive` (or `negative`), or behind all conditioning where none is."""
        links = [(node, side) for node in self.graph.values() if is_link(node["inputs"].get(side))]
        if not links and side == "positive":
            links = [
                (node, name)
                for key, node in self.graph.items()
                for name, definition in self.inputs_of(key).items()
                if kind_of(definition) == "CONDITIONING" and is_link(node["inputs"].get(name))
            ]
        found: dict[Place, None] = {}
        seen = set()
        waiting = [tuple(node["inputs"][name]) for node, name in links]
        while waiting:
            key, slot = waiting.pop()
            if (key, slot) in seen or key not in self.graph:
                continue
            seen.add((key, slot))
            inputs, node = self.inputs_of(key), self.graph[key]["inputs"]
            behind = [n for n, d in inputs.items() if kind_of(d) == "CONDITIONING" and is_link(node.get(n))]
            if {"positive", "negative"} <= set(behind):  # such as ControlNet: the sides stay apart in it
                names = self.definitions[self.graph[key]["class_type"]].get("output_name") or []
                out = str(names[slot]).lower() if slot < len(names) else ""
                behind = [out if out in behind else side]
            waiting += [tuple(node[name]) for name in behind]
            if not behind:
                found |= {
                    Place(key, n): None for n, d in inputs.items() if kind_of(d) == "STRING" and n in node
                }
        return list(found)

    def _options(self, place: Place) -> dict[str, Any]:
        definition = self.inputs_of(place.node).get(place.input) or []
        return definition[1] if len(definition) > 1 and isinstance(definition[1], dict) else {}

    def value(self, place: Place, value: Value) -> Value:
        """A value as the input takes it.

        Raises:
            ValueError: it does not; says what was expected and what came.
        """
        definition = self.inputs_of(place.node).get(place.input)
        if definition is None:  # parts of dynamic inputs, which only the server knows
            return value.text if isinstance(value, InputFile) else value
        kind, options, where = kind_of(definition), self._options(place), self.title(place)
        if isinstance(value, InputFile):
            choices = _choices(definition)
            takes_upload = any(options.get(flag) for flag in {*UPLOADS.values(), "file_upload"})
            if takes_upload or (kind == "COMBO" and not any(_is_model(choice) for choice in choices)):
                return value
            if kind != "STRING":
                raise ValueError(f"{where} takes no file of yours, got {value.text}")
            value = value.text
        if kind == "COMBO":
            return _choose(definition, options, value, where, place.input)
        if kind in ("INT", "FLOAT"):
            return _number(kind, options, value, where)
        if kind == "BOOLEAN":
            truth = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
            if str(value).lower() not in truth:
                raise ValueError(f"{where} expects true or false, got {value}")
            return truth[str(value).lower()]
        if kind == "STRING":
            return str(value)
        if kind.startswith("COMFY_") or kind == "*" or "," in kind:
            return value
        raise ValueError(f"{where} takes a connection ({kind}), not a value")

    def own_problems(self, given: Iterable[Place]) -> list[str]:
        """What is wrong with the workflow itself, but for the inputs that the job gives."""
        given, problems = set(given), []
        for key, node in self.graph.items():
            required = self.definitions[node["class_type"]].get("input", {}).get("required", {})
            for name, definition in self.inputs_of(key).items():
                place, there = Place(key, name), name in node["inputs"]
                if place in given:
                    continue
                if not there:
                    if name in required and not kind_of(definition).startswith("COMFY_"):
                        problems.append(f"{self.title(place)} is missing in the workflow; export it anew")
                    continue
                written = node["inputs"][name]
                if is_link(written):
                    if written[0] not in self.graph:
                        problems.append(
                            f"{self.title(place)} comes from node {written[0]}, which is not there"
                        )
                elif isinstance(written, bool | int | float | str) and kind_of(definition) in WIDGETS:
                    try:
                        self.value(place, written)
                    except ValueError as error:
                        problems.append(str(error))
        if not any(self.definitions[node["class_type"]].get("output_node") for node in self.graph.values()):
            problems.append("the workflow saves nothing: it has no output node, such as Save Image")
        return problems

    def without_effect(self, given: dict[Place, str]) -> list[str]:
        """Of the columns those whose input leads to no result: another column takes the place of what it feeds, or the
        workflow has it so."""
        results = [
            key for key, node in self.graph.items() if self.definitions[node["class_type"]].get("output_node")
        ]
        links = {place: self.graph[place.node]["inputs"].get(place.input) for place in given}
        replaced = {given[p]: self._behind([link[0]], ()) for p, link in links.items() if is_link(link)}
        used, problems = self._behind(results, given), []
        for place, column in given.items() if results else ():
            if place.node not in used:
                others = [other for other, behind in replaced.items() if place.node in behind]
                why = (
                    f"column {' and '.join(others)} replaces it"
                    if others
                    else "no output node comes after it"
                )
                problems.append(
                    f"column {column}: {self.title(place)} acts on nothing, as {why}; leave it out"
                )
        return problems

    def _behind(self, nodes: Iterable[str], given: Iterable[Place]) -> set[str]:
        """These nodes and all that they depend on, but for links that are replaced by given values."""
        found: set[str] = set()
        waiting = list(nodes)
        while waiting:
            key = waiting.pop()
            if key in found or key not in self.graph:
                continue
            found.add(key)
            inputs = self.graph[key]["inputs"].items()
            waiting += [
                value[0] for name, value in inputs if is_link(value) and Place(key, name) not in given
            ]
        return found


def is_link(value: Any) -> bool:
    """Whether an input comes from another node, as [id, output]."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], int)
    )


def kind_of(definition: list) -> str:
    """INT, FLOAT, STRING, BOOLEAN, COMBO, or the type of a connection."""
    kind = definition[0] if definition else "*"
    return kind if isinstance(kind, str) else "COMBO"


def _choices(definition: list) -> list:
    if isinstance(definition[0], list):
        return definition[0]
    return definition[1].get("options") or [] if len(definition) > 1 else []


def _is_model(choice: Any) -> bool:
    return isinstance(choice, str) and choice.lower().endswith(MODEL_FILES)


def _choose(definition: list, options: dict, value: Any, where: str, name: str) -> Any:
    choices = _choices(definition)
    for choice in choices:
        if value == choice or str(value) == str(choice):
            return choice
    # Files may lie in a folder below, or come and go; a list from elsewhere is not known here.
    uploaded = any(options.get(flag) for flag in {*UPLOADS.values(), "file_upload"})
    elsewhere = uploaded and ("/" in str(value) or str(value).endswith("]"))
    if "remote" in options or options.get("multiselect") or elsewhere:
        return value
    if uploaded:
        column = next((column for column, flag in UPLOADS.items() if options.get(flag)), name)
        raise ValueError(
            f"{where} expects a file beside the job file or on the server, got {value}: "
            f"give a column {column}, or put the file into the server's input folder"
        )
    close = close_names(str(value), map(str, choices))
    shown = ", ".join(close or [str(choice) for choice in choices[:12]]) or "none, for the server has none"
    more = "" if close or len(choices) <= 12 else f" and {len(choices) - 12} more"
    raise ValueError(f"{where} expects one of {shown}{more}, got {value}")


def _number(kind: str, options: dict, value: Any, where: str) -> int | float:
    name = "a whole number" if kind == "INT" else "a number"
    low, high = options.get("min"), options.get("max")
    limits = [f"from {low}" if low is not None else "", f"to {high}" if high is not None else ""]
    expected = " ".join([name, *(limit for limit in limits if limit)])
    try:
        if isinstance(value, bool):
            raise ValueError
        number = int(value) if kind == "INT" and not isinstance(value, float) else float(value)
        if kind == "INT" and isinstance(number, float):
            if not number.is_integer():
                raise ValueError
            number = int(number)
        if not ((low is None or number >= low) and (high is None or number <= high)):
            raise ValueError
    except (ValueError, OverflowError):
        raise ValueError(f"{where} expects {expected}, got {value}") from None
    return number
