"""Trees of random sessions: their paths are the rows, and nothing stands in them twice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from slime_router.api.sessions.row_formats import FORMATS
from slime_router.client import expand, read_tree
from slime_router.client.rows import Export, ExportReader
from slime_router.rows.rows import Row, RowOptions, RowSet, build_rows
from slime_router.rows.tree import ROOT, grow
from slime_router.trajectory.routed_experts import RoutedExperts
from slime_router.trajectory.session import Session, SessionSpec
from tests.examples import examples
from tests.properties.test_rows import options, sessions
from tests.properties.test_top_logprobs import taught_sessions
from tests.turns import Book

SESSION = Session(SessionSpec(id="s", group_id="g", metadata={"task": 1}), is_opened=True)


def rows_of(book: Book, how: RowOptions) -> RowSet:
    return build_rows(book, list(book.turns), how)


def as_lines(rowset: RowSet) -> Export:
    """The rows as a client reads them off the stream of lines."""
    [export] = ExportReader().feed(FORMATS["jsonl"].encode(SESSION, rowset))
    return export


def fields(value: Any) -> Any:
    """Arrays as lists, so that rows can be compared."""
    names = [name for name in type(value).__slots__ if not name.startswith("_")]
    found = {name: getattr(value, name) for name in names}
    return {n: v.tolist() if isinstance(v, np.ndarray) else v for n, v in found.items()}


def samplers(row: Row) -> list[str | None]:
    """The turn that sampled each token of a row, if any did."""
    found: list[str | None] = [None] * len(row.tokens)
    for each in row.turns:
        found[each.start : each.end] = [each.turn.id] * (each.end - each.start)
    return found


@settings(max_examples=examples(200))
@given(book=sessions(has_gaps=True), how=options)
def test_the_paths_of_a_tree_are_the_rows_bit_for_bit(book: Book, how: RowOptions):
    rowset = rows_of(book, how)
    tree = read_tree(FORMATS["tree"].encode(SESSION, rowset))
    expanded, plain = expand(tree), as_lines(rowset)
    assert [*map(fields, expanded.rows)] == [*map(fields, plain.rows)]
    assert expanded.stats == plain.stats


@settings(max_examples=examples(100), deadline=None)
@given(book=taught_sessions(), how=options)
def test_masks_and_likeliest_tokens_are_those_of_the_rows_bit_for_bit(book: Book, how: RowOptions):
    rowset = rows_of(book, how)
    expanded, plain = expand(read_tree(FORMATS["tree"].encode(SESSION, rowset))), as_lines(rowset)
    assert [*map(fields, expanded.rows)] == [*map(fields, plain.rows)]


@settings(max_examples=examples(100), deadline=None)
@given(book=sessions(has_gaps=True), how=options, data=st.data())
def test_experts_are_those_of_the_first_row_that_has_the_token(book, how, data):
    for name, turn in book.turns.items():
        if data.draw(st.integers(0, 4)):  # a turn in five has none
            start, count = max(turn.base_len - 1, 0), len(book.held[name]) - 1
            values = data.draw(st.integers(0, 2**16)) + np.arange(2 * max(count - start, 0))
            kept = RoutedExperts(start, values.reshape(-1, 2).astype(np.int32))
            book.turns[name] = replace(turn, routed_experts=kept)
    rowset = rows_of(book, how)
    first: dict[tuple[Any, ...], list[int]] = {}
    wanted: list[list[list[int]] | None] = []
    for row in rowset.rows:
        path = list(zip(row.tokens.tolist(), samplers(row), strict=True))
        for place, values in enumerate(() if row.routed_experts is None else row.routed_experts):
            first.setdefault(tuple(path[: place + 1]), values.tolist())
    for row in rowset.rows:
        path = list(zip(row.tokens.tolist(), samplers(row), strict=True))
        has = row.routed_experts is not None
        wanted.append([first[tuple(path[: n + 1])] for n in range(len(path) - 1)] if has else None)
    tree = expand(read_tree(FORMATS["tree"].encode(SESSION, rowset)))
    found = [row.routed_experts for row in tree.rows]
    assert [None if each is None else each.tolist() for each in found] == wanted


@settings(max_examples=examples(200))
@given(book=sessions(has_gaps=True), how=options)
def test_what_rows_share_stands_once(book: Book, how: RowOptions):
    """A token is what it is, who sampled it, and all before it."""
    rows = rows_of(book, how).rows
    tree = grow(rows)
    known: set[tuple[tuple[int, str | None], ...]] = set()
    for row in rows:
        path = list(zip(row.tokens.tolist(), samplers(row), strict=True))
        known.update(tuple(path[: end + 1]) for end in range(len(path)))
    assert len(tree.tokens) == len(known)
    assert int(tree.loss_mask.sum()) == sum(int(row.loss_mask.sum()) for row in rows)


@settings(max_examples=examples(100))
@given(book=sessions(has_gaps=False), how=options)
def test_each_token_knows_the_one_before_it(book: Book, how: RowOptions):
    """Nodes are runs; a node ends only where the tree forks, a sampler changes or a row ends."""
    rows = rows_of(book, how).rows
    tree = grow(rows)
    for row, leaf in zip(rows, tree.leaves, strict=True):
        at, found = tree.nodes[leaf].end - 1, []
        while at != ROOT:
            found.append(at)
            assert tree.positions[at] == len(row.tokens) - len(found)
            at = int(tree.parents[at])
        assert tree.tokens[found[::-1]].tolist() == row.tokens.tolist()
    children = [node.parent for node in tree.nodes]
    for index, node in enumerate(tree.nodes):
        assert node.parent < index
        is_alone = children.count(node.parent) == 1 and node.parent not in tree.leaves
        if node.parent != ROOT and is_alone:
            assert tree.nodes[node.parent].turn_id != node.turn_id


def test_a_session_without_rows_is_an_empty_tree():
    tree = read_tree(FORMATS["tree"].encode(SESSION, rows_of(Book(), RowOptions())))
    assert (len(tree.tokens), tree.nodes, expand(tree).rows) == (0, (), ())
    written = orjson.loads(FORMATS["tree"].encode(SESSION, rows_of(Book(), RowOptions())))
    assert written["logprobs"] is None
