"""Chat templates in Jinja, in a sandbox, with what Hugging Face's transformers gives them.

The environment is that of transformers' apply_chat_template (utils/chat_template_utils.py of version 5): trim_blocks
and lstrip_blocks, loop controls, `generation` blocks, tojson without HTML escapes, raise_exception, strftime_now.
Rendering with it equals transformers' to the byte; strings may also be ropes, which keep their trace.
"""

import datetime
import json
import re
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from mtsft.errors import InputError, one_line
from mtsft.template.provenance import PLACEHOLDERS, Opaque, TrackedStr, Tracker, Untrackable

_OF_DICTS = frozenset(dir(dict))
_UNTRACKABLE = ("format", "format_map", "encode", "translate", "maketrans")
# Filters that work through the methods of what they are given; others would look at a rope's buffer.
_FOLLOWED = frozenset(
    "trim tojson string length count upper lower capitalize replace join default d first last list map select reject "
    "selectattr rejectattr items dictsort int float abs round sort unique reverse batch slice sum min max groupby safe "
    "indent attr pprint truncate center _contains _concat _mod".split()
)
_WIDTH = re.compile(r"%(?![sd%])")  # a format that goes by the length or the kind of what it is given


class Refused(Exception):
    """A template's own raise_exception, or what else went wrong while it ran; the text says what."""


class _Generation(Extension):
    """`{% generation %}` blocks render as if the tags were not there."""

    tags = frozenset(("generation",))

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller: Any) -> str:
        return caller()


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox; `tracker` is that of the rendering under way, and None for plain ones."""

    tracker: Tracker | None = None

    def getattr(self, obj, attribute):
        if type(obj) is dict and attribute not in _OF_DICTS:
            # What the general way comes to, in a tenth of its time.
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)

    def call(self, context, obj, *args, **kwargs):
        if self.tracker is None:
            return super().call(context, obj, *args, **kwargs)
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if isinstance(owner, TrackedStr) and name in _UNTRACKABLE:
            raise Untrackable(f"its method {name} is used")
        if type(owner) is str and name not in _UNTRACKABLE and any(isinstance(arg, TrackedStr) for arg in args):
            obj = getattr(TrackedStr(self.tracker, owner), name)  # str's own would look at the buffer
        return self.tracker.retrack(super().call(context, obj, *args, **kwargs))


def _raise(message: str) -> None:
    raise jinja2.TemplateError(str(message))


def _make_environment(now: datetime.datetime | None) -> _Environment:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])

    def retrack(text: Any) -> Any:
        return environment.tracker.retrack(text) if environment.tracker is not None else text

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        options = {"ensure_ascii": ensure_ascii, "indent": indent, "separators": separators, "sort_keys": sort_keys}
        if environment.tracker is None:
            return json.dumps(value, **options)
        plain = (("separators", tuple(separators)),) if separators else ()
        options = (("ensure_ascii", bool(ensure_ascii)), ("indent", indent), *plain, ("sort_keys", bool(sort_keys)))
        return environment.tracker.tojson(value, options)

    def strftime_now(form: str) -> str:
        return (now or datetime.datetime.now()).strftime(form)

    @jinja2.pass_context  # so that it is not worked out before there is a tracer
    def contains(context: Any, container: Any) -> Any:
        """The right side of `in`: a plain str would look at a rope's buffer."""
        if environment.tracker is not None and type(container) is str:
            return TrackedStr(environment.tracker, container)
        return container

    @jinja2.pass_context
    def mod(context: Any, left: Any, right: Any) -> Any:
        """The operator %: of a plain str it would go by the buffers of ropes."""
        if environment.tracker is not None and type(left) is str:
            among = right if isinstance(right, tuple) else (right,)
            if any(isinstance(value, TrackedStr) for value in among) and _WIDTH.search(left):
                raise Untrackable(f"it is formatted by {left!r}")
            if isinstance(right, TrackedStr):
                right = (right,)
        return retrack(left % right)

    def retracked(name: str, function: Any) -> Any:
        def filtered(*args, **kwargs):
            tracked = environment.tracker is not None and any(isinstance(arg, TrackedStr | Opaque) for arg in args)
            if tracked and name not in _FOLLOWED:
                raise Untrackable(f"the filter {name} is used")
            return retrack(function(*args, **kwargs))

        for mark in ("jinja_pass_arg", "jinja_async_variant"):
            if hasattr(function, mark):
                setattr(filtered, mark, getattr(function, mark))
        return filtered

    environment.concat = lambda pieces: retrack("".join(pieces))
    environment.filters = {name: retracked(name, function) for name, function in environment.filters.items()}
    environment.filters |= {"tojson": tojson, "_contains": contains, "_mod": mod}
    environment.filters["_concat"] = lambda pieces: retrack("".join(map(str, pieces)))
    for name in ("int", "float"):
        number = environment.filters[name]
        environment.filters[name] = lambda value, *args, _number=number, **kwargs: _number(
            value._tracker.observe(value._parts, "text") if isinstance(value, TrackedStr) else value, *args, **kwargs
        )
    environment.tests["sequence"] = lambda value: isinstance(value, str | dict | list | tuple) or _is_sequence(value)
    environment.globals |= {"raise_exception": _raise, "strftime_now": strftime_now}
    environment.globals |= {"namespace": _Namespace, "dict": _make_dict}
    return environment


class _Namespace(Namespace):
    """Jinja's, without names that would reach into Python."""

    def __init__(*args, **kwargs):
        self, *rest = args
        for name in (names := dict(*rest, **kwargs)):
            _check_name(name)
        Namespace.__init__(self, names)

    def __setitem__(self, name, value):
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: str) -> None:
    if str(name).startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")


def _make_dict(*args, **kwargs) -> dict:
    return dict(*args, **kwargs)


def _is_sequence(value: Any) -> bool:
    try:
        len(value), value.__getitem__
    except Exception:  # as Jinja's own test does
        return False
    return True


class _TrackableTree(jinja2.visitor.NodeTransformer):
    """Rewrites what would join or compare strings behind a rope's back."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        node = self.generic_visit(node)
        parts = nodes.List(node.nodes, lineno=node.lineno)
        return nodes.Filter(parts, "_concat", [], [], None, None, lineno=node.lineno)

    def visit_Mod(self, node: nodes.Mod) -> nodes.Node:
        node = self.generic_visit(node)
        return nodes.Filter(node.left, "_mod", [node.right], [], None, None, lineno=node.lineno)

    def visit_Operand(self, node: nodes.Operand) -> nodes.Node:
        node = self.generic_visit(node)
        if node.op in ("in", "notin"):
            node.expr = nodes.Filter(node.expr, "_contains", [], [], None, None, lineno=node.lineno)
        return node


class JinjaTemplate:
    """A compiled chat template.

    source: its text. name: for errors. now: what strftime_now tells; None for the time of rendering. Raises InputError
    where the text is no template.
    """

    def __init__(self, source: str, name: str, now: datetime.datetime | None = None):
        self.source, self.name = source, name
        self._environment = _make_environment(now)
        if PLACEHOLDERS.search(source):
            raise InputError(
                f"{name}: holds characters of Unicode's private planes 15 and 16, which mtsft needs itself"
            )
        try:
            tree = self._environment.parse(source)
            self.literals = _literals(tree)
            self.names = {node.name for node in tree.find_all(nodes.Name)} | {
                node.attr if isinstance(node, nodes.Getattr) else node.arg.value
                for node in tree.find_all((nodes.Getattr, nodes.Getitem))
                if isinstance(node, nodes.Getattr) or isinstance(node.arg, nodes.Const)
            }
            self.tail = _has_plain_tail(tree)
            code = self._environment.compile(_TrackableTree().visit(tree), name)
            self._template = jinja2.Template.from_code(self._environment, code, self._environment.make_globals(None))
            self._template.root_render_func.__globals__["LoopContext"] = _Loop
        except jinja2.TemplateSyntaxError as error:
            raise InputError(f"{name}:{error.lineno}: not a Jinja template: {one_line(error.message, 160)}") from error

    def render(self, variables: dict[str, Any], tracker: Tracker | None = None, reader: "Reader | None" = None) -> str:
        """The text, or with a tracer the buffer whose private characters are its symbols.

        reader: the messages among the variables, if they are to note when they are read. Raises Refused for whatever
        goes wrong inside the template, Untrackable where a trace is lost.
        """
        self._environment.tracker = tracker
        try:
            # Not Template.render: its end would rewrite tracebacks, which costs more than the rendering.
            pieces = self._template.root_render_func(self._template.new_context(variables))
            return "".join(pieces) if reader is None else reader.follow(pieces)
        except Untrackable:
            raise
        except (
            jinja2.TemplateError,
            TypeError,
            ValueError,
            KeyError,
            IndexError,
            AttributeError,
            RecursionError,
        ) as error:
            said = one_line(self._said(error, tracker), 160)
            kind = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
            raise Refused(f"{kind}{said}") from error
        finally:
            self._environment.tracker = None

    def _said(self, error: Exception, tracker: Tracker | None) -> str:
        text = str(error)
        return tracker.text(text) if tracker is not None and PLACEHOLDERS.search(text) else text


class _Loop(LoopContext):
    """Jinja's `loop`; looking at what comes next, it says so to the messages it goes over."""

    def _peek_next(self):
        if isinstance(self._iterable, Reader):
            self._iterable.look_ahead()
        return super()._peek_next()


class Reader(list):
    """Messages that note how much text stood when each was first read, and whether any was read out of order.

    What a template writes before it reads a message cannot depend on it. marks: characters written before message i,
    and last before the end, was read. in_order: whether they were read one after the other by a loop's own step, their
    number not asked for before.
    """

    def __init__(self, messages, whole: "Reader | None" = None, start: int = 0):
        super().__init__(messages)
        self._whole, self._start = whole or self, start
        if whole is None:
            self.marks: list[int] = []
            self.in_order = True
            self._written = 0

    def follow(self, pieces) -> str:
        """Joins what a template writes, and knows at any time how much that is."""
        text = []
        for piece in pieces:
            text.append(piece)
            self._written += str.__len__(piece)  # of the buffer, not of the words
        return "".join(text)

    def look_ahead(self) -> None:
        """Notes that something was asked of messages yet to come."""
        self._whole.in_order = False

    def _reads(self, place: int) -> None:
        whole = self._whole
        place += self._start
        if len(whole.marks) > list.__len__(whole):
            whole.in_order = False  # again, after the end
        elif place == len(whole.marks):
            whole.marks.append(whole._written)
        elif place > len(whole.marks):
            whole.in_order = False

    def __iter__(self):
        for place in range(list.__len__(self) + 1):
            self._reads(place)
            if place < list.__len__(self):
                yield list.__getitem__(self, place)

    def __getitem__(self, index):
        if isinstance(index, int) and index >= 0:
            if self._start + index >= len(self._whole.marks) and self._start + index:
                self.look_ahead()  # not by a loop's step
            self._reads(index)
            return list.__getitem__(self, index)
        if isinstance(index, slice) and index.stop is None and index.step is None and (index.start or 0) >= 0:
            # There is a first message in every prefix that matters, and maybe no other.
            return Reader(list.__getitem__(self, index), self._whole, self._start + (index.start or 0))
        self.look_ahead()
        return list.__getitem__(self, index)

    def __len__(self) -> int:
        self.look_ahead()
        return list.__len__(self)

    def __bool__(self) -> bool:
        if self._start:
            self.look_ahead()
        return list.__len__(self) > 0

    def __eq__(self, other) -> bool:
        self.look_ahead()
        return list.__eq__(self, other)

    def __reversed__(self):
        self.look_ahead()
        return list.__reversed__(self)

    __hash__ = None


def _has_plain_tail(tree: nodes.Template) -> bool:
    """Whether all that a template does after its last loop follows from its arguments alone, not from messages.

    It does if it names nothing that the template sets, and the generation prompt is asked for only there.
    """
    last = max((i for i, node in enumerate(tree.body) if isinstance(node, nodes.For)), default=None)
    if last is None:
        return False
    known = {"messages", "tools", "loop"}
    for node in tree.find_all(nodes.Name):
        if node.ctx != "load":
            known.add(node.name)
    known |= {node.name for node in tree.find_all((nodes.Macro, nodes.NSRef))}

    def names(part: nodes.Node) -> set[str]:
        found = {node.name for node in part.find_all(nodes.Name)}
        return found | ({part.name} if isinstance(part, nodes.Name) else set())

    before, after = tree.body[: last + 1], tree.body[last + 1 :]
    if any(isinstance(part, nodes.Assign | nodes.AssignBlock | nodes.Macro) for part in after):
        return False
    return not any(names(part) & known for part in after) and not any(
        "add_generation_prompt" in names(part) for part in before
    )


def _literals(tree: nodes.Template) -> tuple[str, ...]:
    """Every constant string of a template: what it writes of itself."""
    texts = [node.data for node in tree.find_all(nodes.TemplateData)]
    texts += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
    return tuple(dict.fromkeys(texts))
