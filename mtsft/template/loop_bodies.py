"""What the bodies of a template's loops can see, and the loops made to remember their steps, see loop_memory.py."""

from collections.abc import Iterable, Iterator, Sequence

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from mtsft.template.loop_memory import OPERATORS

_OF_LOOPS = frozenset("index index0 first last previtem nextitem".split())  # what a body may ask of its loop
_STATEFUL = (nodes.Macro, nodes.Include, nodes.Import, nodes.FromImport, nodes.Block, nodes.EvalContextModifier)


def remembering(tree: nodes.Template) -> nodes.Template:
    """A template whose loops remember their steps, where that is all that their bodies can see."""
    macros, stored = list(tree.find_all(nodes.Macro)), {n.name for n in tree.find_all(nodes.Name) if n.ctx != "load"}
    spaces = {node.name for node in tree.find_all(nodes.NSRef)}
    if stored & {"messages", "loop", "add_generation_prompt", "self"}:
        return tree
    comparing = _Comparing(spaces - {n.name for m in macros for n in m.find_all(nodes.Name) if n.ctx != "load"})
    for number, (loop, before) in enumerate(_outer_loops(tree.body, set())):
        if loop.recursive or loop.test is not None or loop.else_ or not isinstance(loop.target, nodes.Name):
            continue
        if _looks_from_the_end(loop, spaces):
            _end_when_found(loop, spaces)
            continue
        parts = [nodes.Template(loop.body)]
        if _names(parts) & {macro.name for macro in macros}:
            parts += macros
        names, asks = _names(parts), [_asked(part) for part in parts]
        if any(True for _ in parts[0].find_all(_STATEFUL)) or None in asks or "self" in names:
            continue
        seen = sorted((names & before) - {loop.target.name} | names & {"add_generation_prompt"})
        arguments = [
            nodes.Const(number),
            nodes.Const(tuple(sorted(set().union(*asks)))),
            nodes.Const(tuple((name, _space(name, parts, comparing.names)) for name in seen)),
            nodes.List([nodes.Name(name, "load") for name in seen]),
            nodes.Name("messages", "load"),
        ]
        for part in parts:
            comparing.visit(part)
        loop.body = parts[0].body
        loop.iter = nodes.Filter(loop.iter, "_remembered", arguments, [], None, None)
        loop.iter.set_lineno(loop.lineno)
    return tree


class _Comparing(NodeTransformer):
    """Makes comparisons with attributes of these variables filters, see `compared`."""

    def __init__(self, names: set[str]):
        self.names = names

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        """See NodeTransformer."""
        node = self.generic_visit(node)
        found = _comparison(node, self.names)
        if found is None:
            return node
        of, swapped = found
        right = node.ops[0].expr
        arguments = [nodes.Const(node.ops[0].op), right, nodes.Const(of.node.name), nodes.Const(of.attr)]
        arguments += [nodes.Const(swapped), nodes.Name("messages", "load")]
        return nodes.Filter(node.expr, "_compared", arguments, [], None, None).set_lineno(node.lineno)


def _comparison(node: nodes.Compare, names: set[str]) -> tuple[nodes.Getattr, bool] | None:
    """(the attribute that is compared, whether it stands on the right); None for any other comparison."""
    if len(node.ops) != 1 or node.ops[0].op not in OPERATORS:
        return None
    for of, swapped in ((node.expr, False), (node.ops[0].expr, True)):
        if isinstance(of, nodes.Getattr) and isinstance(of.node, nodes.Name) and of.node.name in names:
            return of, swapped
    return None


def _space(name: str, parts: Sequence[nodes.Node], comparable: set[str]) -> tuple | None:
    """What parts of a template do with a variable, see Space; None where that is more."""
    uses = [node for part in parts for node in part.find_all(nodes.Name) if node.name == name]
    reads = [n for part in parts for n in part.find_all(nodes.Getattr) if isinstance(n.node, nodes.Name)]
    reads = [node for node in reads if node.node.name == name]
    if len(reads) != len(uses) or any(node.ctx != "load" for node in uses):
        return None
    sets = {node.attr for part in parts for node in part.find_all(nodes.NSRef) if node.name == name}
    found = [_comparison(node, comparable & {name}) for part in parts for node in part.find_all(nodes.Compare)]
    only_compared = [id(one[0]) for one in found if one]
    exact = {node.attr for node in reads if id(node) not in only_compared} | sets
    return tuple(sorted(exact)), tuple(sorted(sets))


def _outer_loops(body: Iterable[nodes.Node], before: set[str]) -> Iterator[tuple[nodes.For, set[str]]]:
    """The loops that are in no other, nor in anything that catches what they write.

    With the names that the template sets before each, outside of loops; `before` grows by those of `body`.
    """
    for node in body:
        if isinstance(node, nodes.For):
            yield node, set(before)
        elif isinstance(node, nodes.If):
            for branch in (node.body, node.elif_, node.else_):
                yield from _outer_loops(branch, before)
        elif isinstance(node, nodes.Macro):
            before.add(node.name)
        else:
            before |= {name.name for name in node.find_all(nodes.Name) if name.ctx == "store"}


def _names(parts: Iterable[nodes.Node]) -> set[str]:
    """The names of all variables in parts of a template."""
    return {node.name for part in parts for node in part.find_all((nodes.Name, nodes.NSRef))}


def _asked(part: nodes.Node) -> set[str] | None:
    """What is asked of `loop`; None for what is not followed: of that, or of the messages as a whole."""
    single = {
        id(node.node)
        for node in part.find_all(nodes.Getitem)
        if isinstance(node.node, nodes.Name) and node.node.name == "messages" and not isinstance(node.arg, nodes.Slice)
    }
    asked = {id(n.node): n.attr for n in part.find_all(nodes.Getattr) if isinstance(n.node, nodes.Name)}
    found = set()
    for node in part.find_all(nodes.Name):
        if node.name == "messages" and (id(node) not in single or node.ctx != "load"):
            return None
        if node.name == "loop":
            if asked.get(id(node)) not in _OF_LOOPS:
                return None
            found.add(asked[id(node)])
    return found


def _looks_from_the_end(loop: nodes.For, spaces: set[str]) -> bool:
    """Whether a loop over messages[::-1] does nothing once flags of a namespace are false, which it tests first.

    Beside such tests it may set variables of its own to sums of numbers, which nobody sees from without.
    """
    messages = nodes.Name("messages", "load")
    steps = (nodes.Neg(nodes.Const(1)), nodes.Const(-1))  # as it was parsed, and as Jinja's optimizer leaves it
    if loop.iter not in [nodes.Getitem(messages, nodes.Slice(None, None, step), "load") for step in steps]:
        return False
    tests = [node for node in loop.body if isinstance(node, nodes.If)]
    others = [node for node in loop.body if not isinstance(node, nodes.If)]
    own = {loop.target.name} | {
        node.name for part in loop.body for node in part.find_all(nodes.Name) if node.ctx == "store"
    }
    return (
        bool(tests)
        and all(_flag(test, spaces - own) for test in tests)
        and all(isinstance(other, nodes.Assign) and _is_number(other) for other in others)
    )


def _flag(test: nodes.If, spaces: set[str]) -> nodes.Getattr | None:
    """The flag of a namespace that a test looks at first, and without which nothing happens."""
    first = test.test
    while isinstance(first, nodes.And):
        first = first.left
    is_flag = isinstance(first, nodes.Getattr) and isinstance(first.node, nodes.Name) and first.node.name in spaces
    return first if is_flag and not (test.elif_ or test.else_) else None


def _is_number(node: nodes.Node) -> bool:
    """Whether what a variable is set to, or an expression, is a sum of numbers, indices and lengths of messages."""
    if isinstance(node, nodes.Assign):
        return isinstance(node.target, nodes.Name) and _is_number(node.node)
    if isinstance(node, nodes.Add | nodes.Sub):
        return _is_number(node.left) and _is_number(node.right)
    if isinstance(node, nodes.Const):
        return type(node.value) is int
    if isinstance(node, nodes.Filter):
        return node.name == "length" and node.node == nodes.Name("messages", "load") and not node.args
    of_loop = isinstance(node, nodes.Getattr) and node.node == nodes.Name("loop", "load")
    return of_loop and node.attr in ("index", "index0", "revindex", "revindex0")


def _end_when_found(loop: nodes.For, spaces: set[str]) -> None:
    """Ends a loop of `_looks_from_the_end` where all its flags are false."""
    is_spent, *others = [
        nodes.Not(nodes.Getattr(nodes.Name(flag.node.name, "load"), flag.attr, "load"))
        for flag in (_flag(node, spaces) for node in loop.body if isinstance(node, nodes.If))
    ]
    for other in others:
        is_spent = nodes.And(is_spent, other)
    loop.body.append(nodes.If(is_spent, [nodes.Break()], [], []).set_lineno(loop.lineno))
