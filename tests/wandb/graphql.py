"""Answer a GraphQL document out of plain values, and name what it asked for in vain."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from graphql import (
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
    parse,
    value_from_ast_untyped,
)

Arguments = dict[str, Any]
Resolver = Callable[[Arguments], Any]


class Document:
    """One request: its operation's name, and its answer.

    Attributes:
        unknown: fields that no resolver knows, as `Operation.path.of.field`; they are answered with null.
    """

    def __init__(self, text: str, variables: Mapping[str, Any]) -> None:
        definitions = parse(text, no_location=True).definitions
        self._fragments = {d.name.value: d for d in definitions if isinstance(d, FragmentDefinitionNode)}
        self._operation = next(d for d in definitions if isinstance(d, OperationDefinitionNode))
        name = self._operation.name
        self.name = name.value if name else "anonymous"
        self.unknown: list[str] = []
        given = {v.variable.name.value: v.default_value for v in self._operation.variable_definitions or ()}
        defaults = {key: value_from_ast_untyped(value) for key, value in given.items() if value is not None}
        # A variable that was left out is null to the resolvers.
        self._variables = dict.fromkeys(given) | defaults | dict(variables)

    def answer(self, roots: Mapping[str, Resolver]) -> dict[str, Any]:
        """Return the `data` of the response.

        Args:
            roots: field -> function of its arguments; gives plain values, in which a callable is a field that takes
                arguments.
        """
        return self._select(self._operation.selection_set, roots, self.name)

    def _select(self, selections: SelectionSetNode, value: Mapping[str, Any], path: str) -> dict[str, Any]:
        picked: dict[str, Any] = {}
        for node in selections.selections:
            if isinstance(node, FieldNode):
                if self._is_wanted(node):
                    key = (node.alias or node.name).value
                    picked[key] = self._field(node, value, f"{path}.{node.name.value}")
            elif isinstance(node, FragmentSpreadNode):
                picked |= self._select(self._fragments[node.name.value].selection_set, value, path)
            elif isinstance(node, InlineFragmentNode):
                picked |= self._select(node.selection_set, value, path)
        return picked

    def _field(self, node: FieldNode, parent: Mapping[str, Any], path: str) -> Any:
        name = node.name.value
        if name == "__typename":
            return parent.get(name, "Node")
        if name not in parent:
            self.unknown.append(path)
            return None
        found = parent[name]
        if callable(found):
            arguments = {a.name.value: value_from_ast_untyped(a.value, self._variables) for a in node.arguments or ()}
            found = found(arguments)
        return self._complete(node, found, path)

    def _complete(self, node: FieldNode, found: Any, path: str) -> Any:
        if found is None or node.selection_set is None:
            return found
        if isinstance(found, list):
            return [self._complete(node, item, path) for item in found]
        return self._select(node.selection_set, found, path)

    def _is_wanted(self, node: FieldNode) -> bool:
        for directive in node.directives or ():
            condition = bool(value_from_ast_untyped((directive.arguments or ())[0].value, self._variables))
            if condition != (directive.name.value == "include"):
                return False
        return True
