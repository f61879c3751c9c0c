"""Selection: which turns of a forest are trained, and why the others are not.

Decided from the leaves upwards: a turn counts as continued if a turn that is itself kept continues
it. Each turn is kept, or left out for exactly one reason.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

from slime_router.rows.forest import TurnNode


@dataclass(slots=True)
class Selection:
    """The leaves of what is kept, oldest first, and the nodes left out by reason."""

    leaves: list[TurnNode] = field(default_factory=list)
    cut_ids: set[str] = field(default_factory=set)  # turns after which others were too long
    left_out: dict[str, list[TurnNode]] = field(default_factory=dict)
    ruled_out: dict[str, str] = field(default_factory=dict)  # turns that only lead to others: why

    def leave_out(self, reason: str, nodes: Iterable[TurnNode]) -> None:
        """Count nodes under `reason`."""
        self.left_out.setdefault(reason, []).extend(nodes)


def select(
    nodes: Sequence[TurnNode],
    is_delivered: Callable[[str], bool],
    *,
    keeps_retries: bool = False,
    max_len: int | None = None,
    rule_of: Callable[[TurnNode], str | None] = lambda _: None,
) -> Selection:
    """What to train of a forest. `rule_of` names the rule by which a turn is not.

    undelivered: nobody read the reply to its end, and nothing kept continues it
    retry:       the same prompt was sent again, and the conversation continued from another reply
                 (or from neither: then the latest request counts, or the latest try at a sample)
    over_length: ends after `max_len` tokens, and so does everything kept after it
    """
    selection = Selection()
    kept = _drop_unused(nodes, is_delivered, keeps_retries, selection)
    _cut(kept, max_len, rule_of, selection)
    selection.leaves.sort(key=lambda node: node.turn.seq)
    return selection


def origins_of(nodes: Iterable[TurnNode]) -> dict[str, tuple[str, str]]:
    """By turn: the request that asked for it, and the first try at the same sample.

    A plug-in's further try is recorded as its own request, and named after the first.
    """
    turns = {node.turn.id: node.turn for node in nodes}
    origins = {}
    for turn in turns.values():
        first = turns.get(turn.sample_id, turn)
        origins[turn.id] = (first.request_id or first.id, first.id)
    return origins


def _drop_unused(
    nodes: Sequence[TurnNode],
    is_delivered: Callable[[str], bool],
    keeps_retries: bool,
    selection: Selection,
) -> list[TurnNode]:
    """The nodes that are used, children before their parents."""
    prompts = _grouped(nodes, lambda node: node.prompt_key)
    origins = origins_of(nodes)
    kept: list[TurnNode] = []
    continued: set[str] = set()
    # A child's prompt is longer than its parent's: so children come first.
    for twins in sorted(prompts, key=lambda twins: -twins[0].prompt_len):
        read = [n for n in twins if n.turn.id in continued or is_delivered(n.turn.id)]
        has_retries = len(read) > 1 and not keeps_retries
        used = _last_requests(read, continued, origins) if has_retries else read
        _leave_out_others(selection, "undelivered", twins, read)
        _leave_out_others(selection, "retry", read, used)
        kept += used
        continued.update(node.parent.turn.id for node in used if node.parent is not None)
    return kept


def _last_requests(
    twins: Sequence[TurnNode], continued: set[str], origins: Mapping[str, tuple[str, str]]
) -> list[TurnNode]:
    """Of turns with one prompt, those whose request was used; else those of the latest request.

    Samples that one request asked for together are not retries of each other; tries at one are.
    """
    requests = _grouped(twins, lambda node: origins[node.turn.id][0])
    samples = _grouped(
        chain.from_iterable(_used(requests, continued)), lambda node: origins[node.turn.id]
    )
    tries = (_used([[node] for node in sample], continued) for sample in samples)
    return [node for [node] in chain.from_iterable(tries)]


def _used(groups: Sequence[list[TurnNode]], continued: set[str]) -> list[list[TurnNode]]:
    """The groups in which a turn is continued; else the latest."""
    used = [group for group in groups if any(node.turn.id in continued for node in group)]
    return used or [max(groups, key=lambda group: max(node.turn.seq for node in group))]


def _grouped(
    nodes: Iterable[TurnNode], key_of: Callable[[TurnNode], Hashable]
) -> list[list[TurnNode]]:
    """The nodes with equal keys together, in order."""
    groups: dict[Hashable, list[TurnNode]] = {}
    for node in nodes:
        groups.setdefault(key_of(node), []).append(node)
    return list(groups.values())


def _leave_out_others(
    selection: Selection, reason: str, nodes: Sequence[TurnNode], kept: Sequence[TurnNode]
) -> None:
    if len(kept) < len(nodes):
        kept_ids = {node.turn.id for node in kept}
        selection.leave_out(reason, (node for node in nodes if node.turn.id not in kept_ids))


def _cut(
    kept: Sequence[TurnNode],
    max_len: int | None,
    rule_of: Callable[[TurnNode], str | None],
    selection: Selection,
) -> None:
    """Finds the leaves; `kept` has children before their parents.

    A turn that a rule leaves out stays where others continue it: they were sampled after it.
    """
    has_child: set[str] = set()
    for node in kept:
        turn = node.turn
        is_inside = turn.id in has_child
        fits = is_inside or max_len is None or turn.held_len <= max_len
        rule = rule_of(node)
        if rule is not None and is_inside:
            selection.ruled_out[turn.id] = rule
        elif rule is not None:
            selection.leave_out(rule, [node])
            if turn.id in selection.cut_ids and node.parent is not None:
                selection.cut_ids.add(node.parent.turn.id)
            continue
        if not fits:
            selection.leave_out("over_length", [node])
        elif not is_inside:
            selection.leaves.append(node)
        if node.parent is not None:
            (has_child if fits else selection.cut_ids).add(node.parent.turn.id)
