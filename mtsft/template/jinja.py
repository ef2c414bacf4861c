"""Chat templates in Jinja: compiled, looked into, and rendered to the byte as transformers renders them."""

import datetime
import re
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.exceptions import SecurityError

from mtsft.errors import InputError, one_line
from mtsft.template.loop_bodies import remembering
from mtsft.template.loop_memory import RememberedMessages, compared, remembered
from mtsft.template.provenance import PLACEHOLDERS, Tracker, Untrackable
from mtsft.template.read_order import WatchedLoop, WatchedMessages
from mtsft.template.sandbox import make_environment, trackable
from mtsft.template.search_memory import from_the_end, noting
from mtsft.template.written import Written

# What loop_bodies.py puts into templates.
_FILTERS = {"_remembered": remembered, "_compared": compared, "_from_the_end": from_the_end, "_noting": noting}
_JOINING = (WatchedMessages, RememberedMessages)  # messages that follow what is written


class Refused(Exception):
    """A template called raise_exception, or something else went wrong while it ran; the text says what."""


class JinjaTemplate:
    """A compiled chat template.

    Args:
        text: its Jinja text.
        name: for errors.
        now: what strftime_now tells; None for the time of rendering.

    Attributes:
        literals: every constant string of the template.
        names: every name that it uses, of variables, attributes and constant keys.
        variables: those that it reads and does not set, nor has from everywhere: what it may be given.
        has_plain_tail: whether what follows its last loop over messages depends on its other variables alone.

    Raises:
        InputError: the text is no template.
    """

    def __init__(self, text: str, name: str, now: datetime.datetime | None = None):
        self.name = name
        self._environment = make_environment(now)
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
            self.variables = frozenset(meta.find_undeclared_variables(tree) - self._environment.globals.keys())
            self.has_plain_tail = _has_plain_tail(tree)
            self._environment.filters |= _FILTERS
            code = self._environment.compile(trackable(remembering(tree)), name)
            self._template = jinja2.Template.from_code(self._environment, code, self._environment.make_globals(None))
            self._template.root_render_func.__globals__["LoopContext"] = WatchedLoop
        except jinja2.TemplateSyntaxError as error:
            raise InputError(f"{name}:{error.lineno}: not a Jinja template: {one_line(error.message, 160)}") from error

    def render(self, variables: dict[str, Any], tracker: Tracker | None = None) -> str | Written:
        """The text that the template makes of its variables; of RememberedMessages as Written.

        Args:
            variables: what it may name; "messages" may be WatchedMessages or RememberedMessages.
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
            return messages.join(pieces) if type(messages) in _JOINING else "".join(pieces)
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
            raise Refused(_reason(error, tracker)) from error
        finally:
            self._environment.tracker = None


# What a value is called in Python's errors and Jinja's, and in plain words.
_KINDS = {"str": "text", "NoneType": "null", "int": "a number", "float": "a number", "bool": "true or false"}
_KINDS |= {"dict": "an object", "list": "a list", "tuple": "a list", "Undefined": "nothing"}
_OURS = re.compile(r"mtsft[\w.]*\.(?:\w*Str\b|\w*(?=Dict\b)|\w*(?=List\b))")
_LACKS = re.compile(r"'(\w+) object' has no attribute '(\w+)'")
_QUOTED = re.compile(rf"['\"]({'|'.join(_KINDS)})['\"]")


def _reason(error: Exception, tracker: Tracker | None) -> str:
    """Why a template failed, in plain words: the text of its error without names of Python's classes, or of ours."""
    text = str(error)
    if tracker is not None and PLACEHOLDERS.search(text):
        text = tracker.text(text)
    if isinstance(error, jinja2.TemplateError) and not isinstance(error, jinja2.UndefinedError | SecurityError):
        return one_line(text, 160)  # the template's own words
    text = _OURS.sub(lambda match: "str" if match.group().endswith("Str") else "", text)
    text = text.replace("TrackedStr", "str").replace("MarkedStr", "str").replace("Dict", "dict").replace("List", "list")
    text = _LACKS.sub(lambda match: f"{_KINDS.get(match[1], match[1])} has no {match[2]!r}", text)
    text = _QUOTED.sub(lambda match: _KINDS[match[1]], text)
    text = text.replace("can only concatenate str (not ", "text cannot be joined with ").replace(") to str", "")
    if isinstance(error, RecursionError):
        text = "it calls itself without end"
    if isinstance(error, KeyError):
        text = f"there is no {text}"
    return one_line(text, 160)


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
