"""What the bodies of a template's loops can see, and the loops made to remember their steps, see loop_memory.py.

Those that look for something from the last message on have a file of their own, searches.py.
"""

from collections.abc import Iterable, Iterator, Sequence

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from mtsft.template.remembered_run import OPERATORS
from mtsft.template.searches import STATEFUL, looks_from_the_end, make_search, note, variables_in

_OF_LOOPS = frozenset("index index0 first last previtem nextitem".split())  # what a body may ask of its loop


def remembering(tree: nodes.Template) -> nodes.Template:
    """A template whose loops remember their steps, where that is all that their bodies can see."""
    macros, stored = list(tree.find_all(nodes.Macro)), {n.name for n in tree.find_all(nodes.Name) if n.ctx != "load"}
    spaces = {node.name for node in tree.find_all(nodes.NSRef)} | {
        node.target.name for node in tree.find_all(nodes.Assign) if _is_namespace(node)
    }
    if stored & {"messages", "loop", "self"}:
        return tree
    comparing = _Comparing(spaces - {n.name for m in macros for n in m.find_all(nodes.Name) if n.ctx != "load"})
    to_compare: list[tuple[nodes.For, list[nodes.Node]]] = []
    to_note: list[nodes.Node] = []
    for number, (loop, before) in enumerate(_outer_loops(tree.body, set())):
        if loop.recursive or loop.test is not None or loop.else_ or not isinstance(loop.target, nodes.Name):
            continue
        if looks_from_the_end(loop, spaces):
            to_note += make_search(loop, number, before, spaces, macros)
            continue
        parts = [nodes.Template(loop.body)]
        if variables_in(parts) & {macro.name for macro in macros}:
            parts += macros
        names, asks = variables_in(parts), [_asked(part) for part in parts]
        if any(True for _ in parts[0].find_all(STATEFUL)) or None in asks or "self" in names:
            continue
        seen = sorted((names & before) - {loop.target.name} | names & {"add_generation_prompt"})
        arguments = [
            nodes.Const(number),
            nodes.Const(tuple(sorted(set().union(*asks)))),
            nodes.Const(tuple((name, _space(name, parts, comparing.names)) for name in seen)),
            nodes.List([nodes.Name(name, "load") for name in seen]),
            nodes.Name("messages", "load"),
        ]
        to_compare.append((loop, parts))
        loop.iter = nodes.Filter(loop.iter, "_remembered", arguments, [], None, None)
        loop.iter.set_lineno(loop.lineno)
    # At the end, for what is put in here is no part of what the template itself names.
    for loop, parts in to_compare:
        for part in parts:
            comparing.visit(part)
        loop.body = parts[0].body
    for part in to_note:
        note(part)
    return tree


def _is_namespace(node: nodes.Assign) -> bool:
    """Whether a variable is set to a namespace."""
    call = node.node if isinstance(node.target, nodes.Name) else None
    return isinstance(call, nodes.Call) and call.node == nodes.Name("namespace", "load")


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
