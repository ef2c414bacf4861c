"""Loops that look for something from the last message on, made to look no further than they must.

How messages are passed over while a template runs is in search_memory.py; here is what such a loop may see for that.
"""

from collections.abc import Iterable, Sequence

from jinja2 import nodes

_OF_LOOPS = {"index": (0, 1), "index0": (0, 1), "revindex": (1, -1), "revindex0": (1, -1)}  # as `_terms` has them
STATEFUL = (nodes.Macro, nodes.Include, nodes.Import, nodes.FromImport, nodes.Block, nodes.EvalContextModifier)


def variables_in(parts: Iterable[nodes.Node]) -> set[str]:
    """The names of all variables in parts of a template."""
    return {node.name for part in parts for node in part.find_all((nodes.Name, nodes.NSRef))}


def looks_from_the_end(loop: nodes.For, spaces: set[str]) -> bool:
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
    """Whether what a variable is set to is a sum of numbers, indices and lengths of messages."""
    return isinstance(node.target, nodes.Name) and _terms(node.node) is not None


def _terms(node: nodes.Node) -> tuple[int, int] | None:
    """How often a sum has the number of messages, and how often the index from the end; None for no such sum."""
    if isinstance(node, nodes.Add | nodes.Sub):
        left, right = _terms(node.left), _terms(node.right)
        sign = -1 if isinstance(node, nodes.Sub) else 1
        return None if left is None or right is None else (left[0] + sign * right[0], left[1] + sign * right[1])
    if isinstance(node, nodes.Const):
        return (0, 0) if type(node.value) is int else None
    if isinstance(node, nodes.Filter):
        is_length = node.name == "length" and node.node == nodes.Name("messages", "load") and not node.args
        return (1, 0) if is_length else None
    of_loop = isinstance(node, nodes.Getattr) and node.node == nodes.Name("loop", "load")
    return _OF_LOOPS.get(node.attr) if of_loop else None


def make_search(
    loop: nodes.For, number: int, before: set[str], spaces: set[str], macros: Sequence[nodes.Macro]
) -> list[nodes.Node]:
    """Makes a loop of `looks_from_the_end` one that passes over messages, and ends where all its flags are false.

    Returns:
        The parts of the template in which it must be noted what namespaces are set to, see `note`.

    Args:
        loop: the loop.
        number: which one of the template's it is.
        before: the names that the template sets before it.
        spaces: the names of namespaces.
        macros: of the template.
    """
    parts: list[nodes.Node] = [node for node in loop.body if isinstance(node, nodes.If)]
    asks_loop = "loop" in variables_in(parts)
    if variables_in(parts) & {macro.name for macro in macros}:
        parts += macros
    names = variables_in(parts)
    read = {name: _attributes(name, parts) for name in sorted(names & spaces)}
    is_followed = not (
        asks_loop
        or names & {"messages", "self"}
        or names & _relative(loop)
        or None in read.values()
        or any(True for part in parts if isinstance(part, nodes.If) for _ in part.find_all(STATEFUL))
        or any(node.find(nodes.NSRef) for part in parts for node in part.find_all(nodes.AssignBlock))
    )
    values = sorted((names & before) - {loop.target.name} - read.keys() | names & {"add_generation_prompt"})
    arguments = [
        nodes.Const(number if is_followed else None),
        nodes.Const(tuple(read.values()) if is_followed else ()),
        nodes.List([nodes.Name(name, "load") for name in read] if is_followed else []),
        nodes.List([nodes.Name(name, "load") for name in values] if is_followed else []),
    ]
    loop.iter = _filter(loop.iter.node, "_from_the_end", arguments)
    _end_when_found(loop, spaces)
    return parts if is_followed else []


def note(part: nodes.Node) -> None:
    """Makes a part of a template note what it sets of namespaces."""
    for node in part.find_all(nodes.Assign):
        if node.find(nodes.NSRef) and not (isinstance(node.node, nodes.Filter) and node.node.name == "_noting"):
            node.node = _filter(node.node, "_noting", [nodes.Name("messages", "load")])


def _filter(node: nodes.Expr, name: str, arguments: list[nodes.Expr]) -> nodes.Filter:
    return nodes.Filter(node, name, arguments, [], None, None).set_lineno(node.lineno)


def _attributes(name: str, parts: Iterable[nodes.Node]) -> tuple[str, ...] | None:
    """The attributes of a namespace that parts of a template read; None where they do more than read and set some."""
    uses = [node for part in parts for node in part.find_all(nodes.Name) if node.name == name]
    reads = [node for part in parts for node in part.find_all(nodes.Getattr) if node.node in uses]
    is_more = len(reads) != len(uses) or any(node.ctx != "load" for node in uses)
    return None if is_more else tuple(sorted({node.attr for node in reads}))


def _relative(loop: nodes.For) -> set[str]:
    """The variables that a loop sets to what depends on how many messages there are, or that are tested before."""
    found, tested = set(), set()
    for node in loop.body:
        if isinstance(node, nodes.If):
            tested |= variables_in([node])
        elif sum(_terms(node.node)) or node.target.name in tested:
            found.add(node.target.name)
    return found


def _end_when_found(loop: nodes.For, spaces: set[str]) -> None:
    """Ends a loop of `_looks_from_the_end` where all its flags are false."""
    is_spent, *others = [
        nodes.Not(nodes.Getattr(nodes.Name(flag.node.name, "load"), flag.attr, "load"))
        for flag in (_flag(node, spaces) for node in loop.body if isinstance(node, nodes.If))
    ]
    for other in others:
        is_spent = nodes.And(is_spent, other)
    loop.body.append(nodes.If(is_spent, [nodes.Break()], [], []).set_lineno(loop.lineno))
