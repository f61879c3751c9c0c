"""GRPO's advantages, by rollout: being cut into more rows gives a rollout no more weight."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any, Protocol

STD_FLOOR = 1e-6


class Rewarded(Protocol):
    """What is needed of a row."""

    @property
    def group_id(self) -> Hashable: ...  # noqa: D102 - the name says it

    @property
    def rollout_id(self) -> Hashable: ...  # noqa: D102 - the name says it

    @property
    def reward(self) -> float | Mapping[str, Any] | None: ...  # noqa: D102 - the name says it


def group_advantages(
    rows: Sequence[Rewarded], *, reward_key: str | None = None, divide_by_std: bool = False
) -> list[float]:
    """One advantage per row: its rollout's reward less the mean reward of its group's rollouts.

    Args:
        rows: of any number of groups, in any order.
        reward_key: the entry that counts, where rewards are dicts.
        divide_by_std: divide by the standard deviation over the group's rollouts (of a sample,
            with `n - 1`), as the first GRPO did. A group of one rollout, or of equal rewards,
            has advantages of 0 either way.

    Raises:
        ValueError: a row has no group or no reward, or two rows of one rollout differ in it.
    """
    groups: dict[Hashable, dict[Hashable, float]] = {}
    for row in rows:
        if row.group_id is None:
            raise ValueError(f"The rollout {row.rollout_id!r} has no group_id.")
        reward = _reward(row, reward_key)
        known = groups.setdefault(row.group_id, {}).setdefault(row.rollout_id, reward)
        if known != reward:
            raise ValueError(f"The rollout {row.rollout_id!r} has rewards {known} and {reward}.")
    scales = {group: _scale(list(rewards.values())) for group, rewards in groups.items()}
    advantages = []
    for row in rows:
        baseline, std = scales[row.group_id]
        advantage = groups[row.group_id][row.rollout_id] - baseline
        advantages.append(advantage / (std + STD_FLOOR) if divide_by_std else advantage)
    return advantages


def _reward(row: Rewarded, key: str | None) -> float:
    reward = row.reward
    if isinstance(reward, Mapping):
        if key is None:
            raise ValueError(f"The reward of {row.rollout_id!r} is a dict: give reward_key.")
        reward = reward.get(key)
    if reward is None:
        raise ValueError(f"The rollout {row.rollout_id!r} has no reward.")
    return float(reward)


def _scale(rewards: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation; `mean` is exact, so that equal rewards differ by 0 from it."""
    return mean(rewards), stdev(rewards) if len(rewards) > 1 else 0.0
