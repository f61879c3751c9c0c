"""The slow and obvious comparison of a session's rows with what a worker said that it sampled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.sglang.recorder import Exchange


@dataclass(frozen=True)
class Generation:
    """What the worker says that it sampled, and after which tokens."""

    prompt: list[int]
    output: list[int]
    logprobs: list[float]
    versions: list[str]

    @classmethod
    def of(cls, exchange: Exchange) -> Generation:
        last = exchange.items()[-1]
        meta, output = last["meta_info"], last["output_ids"]
        assert [pair[1] for pair in meta["output_token_logprobs"]] == output
        whole = {"version": meta["weight_version"], "start": 0, "end": len(output)}
        versions: list[str] = []
        for span in meta.get("weight_versions") or [whole]:
            assert span["start"] == len(versions)
            versions += [span["version"]] * (span["end"] - span["start"])
        assert len(versions) == len(output)
        logprobs = [pair[0] for pair in meta["output_token_logprobs"]]
        return cls(exchange.asked()["input_ids"], output, logprobs, versions)

    def sampled(self, tokens: list[int]) -> bool:
        """Whether the last of these tokens was sampled here, after exactly the others."""
        whole = self.prompt + self.output
        return len(self.prompt) < len(tokens) and whole[: len(tokens)] == tokens

    def facts(self, index: int) -> tuple[float, str]:
        """Logprob and weight version of the token at that place of prompt and output."""
        place = index - len(self.prompt)
        return self.logprobs[place], self.versions[place]


def compare(export: Any, generations: Sequence[Generation]) -> set[tuple[int, int]]:
    """Walks over each token of each row; returns (generation, place) of all that no row trains."""
    untrained = {(g, i) for g, each in enumerate(generations) for i in range(len(each.output))}
    for row in export["rows"]:
        columns = (row["tokens"], row["loss_mask"], row["logprobs"], row["weight_versions"])
        for index, (_, is_trained, *facts) in enumerate(zip(*columns, strict=True)):
            prefix = row["tokens"][: index + 1]
            places = [
                (g, index - len(each.prompt))
                for g, each in reversed([*enumerate(generations)])  # a retry is the newer one
                if each.sampled(prefix) and each.facts(index) == tuple(facts)
            ]
            if is_trained:
                free = [place for place in places if place in untrained]
                assert free, f"no sample is token {index} of row {row['row_id']}"
                untrained.remove(free[0])
            elif facts != [0.0, None]:  # sampled, and trained in a row before
                assert any(place not in untrained for place in places)
    stats = export["stats"]
    assert stats["sampled_tokens"] == sum(len(each.output) for each in generations)
    assert stats["trained_tokens"] == sum(sum(row["loss_mask"]) for row in export["rows"])
    assert len(untrained) == sum(left["tokens"] for left in stats["left_out"].values())
    return untrained
