"""The Jinja environment of chat templates: a sandbox in which tracked strings keep their provenance.

It is that of transformers' apply_chat_template (utils/chat_template_utils.py of version 5): trim_blocks and
lstrip_blocks, loop controls, `generation` blocks, tojson without HTML escapes, raise_exception, strftime_now. Where
strings are tracked (provenance.py), whatever would look at their buffers goes through methods that keep the
provenance, or is refused.
"""

import datetime
import inspect
import json
from typing import Any

import jinja2
import markupsafe
from jinja2 import filters as jinja_filters
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from mtsft.template.placeholders import Placeholder
from mtsft.template.provenance import PLACEHOLDERS, MarkedStr, TrackedStr, Tracker, Untrackable, percent
from mtsft.template.tracked_containers import Opaque, tojson

_OF_DICTS = frozenset(dir(dict))
_OF_LOOPS = frozenset("index index0 first last length revindex revindex0 previtem nextitem".split())
_PLAIN = frozenset((bool, int, str, TrackedStr))
_UNTRACKABLE = ("format", "format_map", "encode", "translate", "maketrans")
# Filters that work through the methods of what they are given; others would look at the buffer of a tracked string.
_TRACKABLE_FILTERS = frozenset(
    "trim tojson string length count upper lower capitalize replace join default d first last list map select reject "
    "selectattr rejectattr dictsort int float abs round sort unique reverse batch slice sum min max groupby safe "
    "indent attr truncate center items".split()
)
# Filters whose result is a function of the text alone: one placeholder, by the operation of that name.
_DERIVED_FILTERS = {
    "title": "title words",
    "striptags": "strip tags",
    "urlencode": "url",
    "wordwrap": "wrap",
    "pprint": "pretty",
}


class _Generation(Extension):
    """`{% generation %}` blocks render as if the tags were not there."""

    tags = frozenset(("generation",))

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller: Any) -> str:
        return caller()


class Environment(ImmutableSandboxedEnvironment):
    """The sandbox of one template.

    Attributes:
        tracker: of the rendering that is going on; None where it is of plain strings.
    """

    tracker: Tracker | None = None

    def getattr(self, obj, attribute):
        """`obj.attribute` of a template: the attribute, else the item of that name."""
        if attribute in _UNTRACKABLE and isinstance(obj, TrackedStr):
            raise Untrackable(f"its method {attribute} is used")
        if type(obj) is dict and attribute not in _OF_DICTS:
            # The same as the general method below, in a tenth of its time.
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        # What loops and namespaces hold, mostly numbers, is safe where it is no method: in a tenth of the time as well.
        if type(obj) is _Namespace or (attribute in _OF_LOOPS and isinstance(obj, LoopContext)):
            value = getattr(obj, attribute, None)
            if type(value) in _PLAIN:
                return value
        return super().getattr(obj, attribute)

    def call(self, context, obj, *args, **kwargs):
        """`obj(...)` of a template; methods of a plain str are those of a tracked one where they are given one."""
        if self.tracker is None:
            return super().call(context, obj, *args, **kwargs)
        owner, name = getattr(obj, "__self__", None), getattr(obj, "__name__", "")
        if type(owner) is str and name not in _UNTRACKABLE and any(isinstance(arg, TrackedStr) for arg in args):
            obj = getattr(TrackedStr(self.tracker, owner), name)  # str's own would look at the buffer
        return self.tracker.retrack(super().call(context, obj, *args, **kwargs))


def _raise(message: str) -> None:
    raise jinja2.TemplateError(str(message))


def make_environment(now: datetime.datetime | None) -> Environment:
    """An environment with the filters, tests and globals of chat templates.

    Args:
        now: what strftime_now tells; None for the time of rendering.
    """
    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])

    def retrack(text: Any) -> Any:
        return environment.tracker.retrack(text) if environment.tracker is not None else text

    def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        options = {"ensure_ascii": ensure_ascii, "indent": indent, "separators": separators, "sort_keys": sort_keys}
        if environment.tracker is None:
            return json.dumps(value, **options)
        plain = (("separators", tuple(separators)),) if separators else ()
        options = (("ensure_ascii", bool(ensure_ascii)), ("indent", indent), *plain, ("sort_keys", bool(sort_keys)))
        return tojson(environment.tracker, value, options)

    def strftime_now(form: str) -> str:
        return (now or datetime.datetime.now()).strftime(form)

    def within(container: Any) -> Any:
        """The right side of `in`: a plain str would look at the buffer of a tracked one on the left."""
        if environment.tracker is not None and isinstance(container, str) and not isinstance(container, TrackedStr):
            return TrackedStr(environment.tracker, container)
        return container

    @jinja2.pass_context  # so that it is not evaluated at compile time, before there is a tracker
    def contains(context: Any, container: Any) -> Any:
        return within(container)

    @jinja2.pass_context
    def mod(context: Any, left: Any, right: Any) -> Any:
        """The operator %: of a plain str it would format the buffers of tracked ones."""
        if environment.tracker is not None and type(left) is str:
            return percent(environment.tracker, left, right)
        return left % right

    def retracked(name: str, function: Any) -> Any:
        """A filter whose result is tracked again; refused where it would use the buffer of a tracked string."""

        def filtered(*args, **kwargs):
            given = [*args, *kwargs.values()]
            tracked = environment.tracker is not None and any(isinstance(arg, TrackedStr | Opaque) for arg in given)
            if tracked and name not in _TRACKABLE_FILTERS:
                raise Untrackable(f"the filter {name} is used")
            return retrack(function(*args, **kwargs))

        for mark in ("jinja_pass_arg", "jinja_async_variant"):
            if hasattr(function, mark):
                setattr(filtered, mark, getattr(function, mark))
        return filtered

    def formatted(value: Any, *args: Any, **kwargs: Any) -> Any:
        """The filter `format`, which is the operator %."""
        if environment.tracker is None or isinstance(value, TrackedStr) or not (args or kwargs):
            if isinstance(value, TrackedStr):
                raise Untrackable("it is used as a format")
            return jinja_filters.do_format(value, *args, **kwargs)
        if args and kwargs:
            raise jinja2.exceptions.FilterArgumentError(
                "can't handle positional and keyword arguments at the same time"
            )
        return percent(environment.tracker, str(value), kwargs or args)

    def marked(value: Any) -> Any:
        """The filter `safe`: what is marked may be written as it is."""
        if isinstance(value, TrackedStr):
            return MarkedStr(value._tracker, str.__str__(value))
        return jinja_filters.do_mark_safe(value)

    def escaped(value: Any) -> Any:
        """The filter `escape`, part by part: a template's own text is escaped as it is."""
        if isinstance(value, MarkedStr) or not isinstance(value, TrackedStr):
            return value if isinstance(value, MarkedStr) else markupsafe.escape(value)
        pieces = [
            str(markupsafe.escape(part)) if type(part) is str else str.__str__(derive(part, "escape"))
            for part in value._parts
        ]
        return MarkedStr(value._tracker, "".join(pieces))

    def derive(part: Placeholder, method: str) -> TrackedStr:
        return TrackedStr(environment.tracker, part.character)._derive(method)

    def derived(name: str, method: str) -> Any:
        """A filter that makes one text of another."""
        plain = environment.filters[name]
        takes_environment = hasattr(plain, "jinja_pass_arg")

        @jinja2.pass_environment
        def filtered(environment: Environment, value: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(value, TrackedStr):
                bound = inspect.signature(plain).bind(
                    *([environment] if takes_environment else []), value, *args, **kwargs
                )
                bound.apply_defaults()
                return value._derive(method, tuple(bound.args[1 + takes_environment :]))
            if environment.tracker is not None and PLACEHOLDERS.search(str.__str__(str(value))):
                raise Untrackable(f"the filter {name} is used")  # of a list of words, say, whose lengths it asks for
            return plain(*([environment] if takes_environment else []), value, *args, **kwargs)

        return filtered

    def count_words(text: Any) -> int:
        if isinstance(text, TrackedStr):
            return text._tracker.observe(text._parts, "count words")
        return jinja_filters.do_wordcount(text)

    environment.concat = lambda pieces: retrack("".join(pieces))
    followed = {name: derived(name, method) for name, method in _DERIVED_FILTERS.items()}
    followed |= {"format": formatted, "safe": marked, "wordcount": count_words, "tojson": to_json}
    followed |= dict.fromkeys(("escape", "e"), escaped)
    environment.filters = {name: retracked(name, function) for name, function in environment.filters.items()}
    environment.filters |= followed | {"_contains": contains, "_mod": mod}
    environment.filters["_concat"] = lambda pieces: retrack("".join(map(str, pieces)))
    for name in ("int", "float"):
        number = environment.filters[name]
        environment.filters[name] = lambda value, *args, _number=number, **kwargs: _number(
            value._tracker.observe(value._parts, "text") if isinstance(value, TrackedStr) else value, *args, **kwargs
        )
    environment.tests["in"] = lambda value, container: value in within(container)
    environment.tests["escaped"] = lambda value: isinstance(value, MarkedStr | markupsafe.Markup)
    environment.tests["sequence"] = lambda value: isinstance(value, str | dict | list | tuple) or _is_sequence(value)
    environment.globals |= {"raise_exception": _raise, "strftime_now": strftime_now}
    environment.globals |= {"namespace": _Namespace, "dict": _make_dict}
    return environment


class _Namespace(Namespace):
    """Jinja's, without names by which a template could reach into Python."""

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


def trackable(tree: nodes.Template) -> nodes.Template:
    """A template whose operators ~, % and `in` are filters of `make_environment`: Jinja's use the strings' buffers."""
    return _TrackableTree().visit(tree)


class _TrackableTree(jinja2.visitor.NodeTransformer):
    """See `trackable`."""

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
