"""Chat templates in Jinja, in a sandbox, with what Hugging Face's transformers gives them.

The environment is that of transformers' apply_chat_template (utils/chat_template_utils.py of version 5): trim_blocks
and lstrip_blocks, loop controls, `generation` blocks, tojson without HTML escapes, raise_exception, strftime_now.
What it renders equals transformers' to the byte. The strings that a template is given may be tracked ones
(provenance.py); then what would look at their buffers goes by way of methods that keep the provenance, or is refused.
"""

import datetime
import json
import re
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from mtsft.errors import InputError, one_line
from mtsft.template.provenance import PLACEHOLDERS, TrackedStr, Tracker, Untrackable
from mtsft.template.read_order import WatchedLoop, WatchedMessages
from mtsft.template.tracked_containers import Opaque, tojson

_OF_DICTS = frozenset(dir(dict))
_UNTRACKABLE = ("format", "format_map", "encode", "translate", "maketrans")
# Filters that work through the methods of what they are given; others would look at the buffer of a tracked string.
_TRACKABLE_FILTERS = frozenset(
    "trim tojson string length count upper lower capitalize replace join default d first last list map select reject "
    "selectattr rejectattr items dictsort int float abs round sort unique reverse batch slice sum min max groupby safe "
    "indent attr pprint truncate center _contains _concat _mod".split()
)
_WIDTH = re.compile(r"%(?![sd%])")  # a format that depends on the length or the type of what it is given


class Refused(Exception):
    """A template called raise_exception, or something else went wrong while it ran; the text says what."""


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
    """The sandbox.

    Attributes:
        tracker: of the rendering that is going on; None where it is of plain strings.
    """

    tracker: Tracker | None = None

    def getattr(self, obj, attribute):
        if type(obj) is dict and attribute not in _OF_DICTS:
            # The same as the general method below, in a tenth of its time.
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

    def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        options = {"ensure_ascii": ensure_ascii, "indent": indent, "separators": separators, "sort_keys": sort_keys}
        if environment.tracker is None:
            return json.dumps(value, **options)
        plain = (("separators", tuple(separators)),) if separators else ()
        options = (("ensure_ascii", bool(ensure_ascii)), ("indent", indent), *plain, ("sort_keys", bool(sort_keys)))
        return tojson(environment.tracker, value, options)

    def strftime_now(form: str) -> str:
        return (now or datetime.datetime.now()).strftime(form)

    @jinja2.pass_context  # so that it is not evaluated at compile time, before there is a tracker
    def contains(context: Any, container: Any) -> Any:
        """The right side of `in`: a plain str would look at the buffer of a tracked one on the left."""
        if environment.tracker is not None and type(container) is str:
            return TrackedStr(environment.tracker, container)
        return container

    @jinja2.pass_context
    def mod(context: Any, left: Any, right: Any) -> Any:
        """The operator %: of a plain str it would format the buffers of tracked ones."""
        if environment.tracker is not None and type(left) is str:
            values = right if isinstance(right, tuple) else (right,)
            if any(isinstance(value, TrackedStr) for value in values) and _WIDTH.search(left):
                raise Untrackable(f"it is formatted by {left!r}")
            if isinstance(right, TrackedStr):
                right = (right,)
        return retrack(left % right)

    def retracked(name: str, function: Any) -> Any:
        def filtered(*args, **kwargs):
            tracked = environment.tracker is not None and any(isinstance(arg, TrackedStr | Opaque) for arg in args)
            if tracked and name not in _TRACKABLE_FILTERS:
                raise Untrackable(f"the filter {name} is used")
            return retrack(function(*args, **kwargs))

        for mark in ("jinja_pass_arg", "jinja_async_variant"):
            if hasattr(function, mark):
                setattr(filtered, mark, getattr(function, mark))
        return filtered

    environment.concat = lambda pieces: retrack("".join(pieces))
    environment.filters = {name: retracked(name, function) for name, function in environment.filters.items()}
    environment.filters |= {"tojson": to_json, "_contains": contains, "_mod": mod}
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


class _TrackableTree(jinja2.visitor.NodeTransformer):
    """Rewrites operators that would use the buffers of tracked strings: they become the filters defined above."""

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

    Args:
        text: its Jinja text.
        name: for errors.
        now: what strftime_now tells; None for the time of rendering.

    Attributes:
        literals: every constant string of the template.
        names: every name that it uses, of variables, attributes and constant keys.
        has_plain_tail: whether what follows its last loop over messages depends on its other variables alone.

    Raises:
        InputError: the text is no template.
    """

    def __init__(self, text: str, name: str, now: datetime.datetime | None = None):
        self.name = name
        self._environment = _make_environment(now)
        if PLACEHOLDERS.search(text):
            raise InputError(
                f"{name}: holds characters of Unicode's private planes 15 and 16, which mtsft needs itself"
            )
        try:
            tree = self._environment.parse(text)
            self.literals = _literals(tree)
            self.names = {node.name for node in tree.find_all(nodes.Name)} | {
                node.attr if isinstance(node, nodes.Getattr) else node.arg.value
                for node in tree.find_all((nodes.Getattr, nodes.Getitem))
                if isinstance(node, nodes.Getattr) or isinstance(node.arg, nodes.Const)
            }
            self.has_plain_tail = _has_plain_tail(tree)
            code = self._environment.compile(_TrackableTree().visit(tree), name)
            self._template = jinja2.Template.from_code(self._environment, code, self._environment.make_globals(None))
            self._template.root_render_func.__globals__["LoopContext"] = WatchedLoop
        except jinja2.TemplateSyntaxError as error:
            raise InputError(f"{name}:{error.lineno}: not a Jinja template: {one_line(error.message, 160)}") from error

    def render(self, variables: dict[str, Any], tracker: Tracker | None = None) -> str:
        """The text that the template makes of its variables.

        Args:
            variables: what it may name; "messages" may be WatchedMessages.
            tracker: of the tracked strings among the variables; the text is then a buffer of it.

        Raises:
            Refused: anything went wrong inside the template.
            Untrackable: the template did what cannot be tracked.
        """
        self._environment.tracker = tracker
        try:
            # Not Template.render: its end would rewrite tracebacks, which costs more than the rendering.
            pieces = self._template.root_render_func(self._template.new_context(variables))
            messages = variables["messages"]
            return messages.join(pieces) if type(messages) is WatchedMessages else "".join(pieces)
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
            reason = one_line(_words(str(error), tracker), 160)
            kind = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
            raise Refused(f"{kind}{reason}") from error
        finally:
            self._environment.tracker = None


def _words(text: str, tracker: Tracker | None) -> str:
    """The text of an error with words in place of placeholders."""
    return tracker.text(text) if tracker is not None and PLACEHOLDERS.search(text) else text


def _has_plain_tail(tree: nodes.Template) -> bool:
    """Whether all that a template does after its last loop depends on variables that do not depend on messages.

    It does if nothing is named there that the template itself sets, and add_generation_prompt only there.
    """
    last = max((i for i, node in enumerate(tree.body) if isinstance(node, nodes.For)), default=None)
    if last is None:
        return False
    depending = {"messages", "tools", "loop"}
    for node in tree.find_all(nodes.Name):
        if node.ctx != "load":
            depending.add(node.name)
    depending |= {node.name for node in tree.find_all((nodes.Macro, nodes.NSRef))}

    def names(part: nodes.Node) -> set[str]:
        inner = {node.name for node in part.find_all(nodes.Name)}
        return inner | ({part.name} if isinstance(part, nodes.Name) else set())

    before, after = tree.body[: last + 1], tree.body[last + 1 :]
    if any(isinstance(part, nodes.Assign | nodes.AssignBlock | nodes.Macro) for part in after):
        return False
    return not any(names(part) & depending for part in after) and not any(
        "add_generation_prompt" in names(part) for part in before
    )


def _literals(tree: nodes.Template) -> tuple[str, ...]:
    """Every constant string of a template: all text that it may write by itself."""
    texts = [node.data for node in tree.find_all(nodes.TemplateData)]
    texts += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
    return tuple(dict.fromkeys(texts))
