"""Judges a recording: is every text equal, and how long did a chunk take? Pure, no I/O."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from converse_mongo.domain.types import MessageStatus
from converse_mongo.tools.demo.recording import Recording, StoredMessage, ViewerLog

__all__ = ["Verdict", "ViewerVerdict", "judge", "percentile"]


@dataclass(frozen=True, slots=True)
class ViewerVerdict:
    """What is to be said of one viewer.

    Attributes:
        viewer: Its log.
        problems: What is wrong; empty if it had each chunk once, in order, and as it was stored.
        latencies: For each chunk that was appended while it watched, the seconds until it had it.
    """

    viewer: ViewerLog
    problems: list[str]
    latencies: list[float]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be said of a demonstration.

    Attributes:
        viewers: One verdict for each.
        stored: The message in the end.
        stored_problems: What is wrong with it.
    """

    viewers: list[ViewerVerdict]
    stored: StoredMessage
    stored_problems: list[str]

    @property
    def problems(self) -> list[str]:
        """All that is wrong."""
        mine = [
            f"{verdict.viewer.name}: {problem}"
            for verdict in self.viewers
            for problem in verdict.problems
        ]
        return [f"stored message: {problem}" for problem in self.stored_problems] + mine

    @property
    def equal(self) -> bool:
        """Whether every text is the one that was to be streamed."""
        return not self.problems


def judge(recording: Recording) -> Verdict:
    """Compares what was streamed, what is stored and what each viewer saw.

    Raises:
        ValueError: The recording has no stored message.
    """
    if recording.stored is None:
        raise ValueError("nothing was read back")
    stored = recording.stored
    return Verdict(
        [
            ViewerVerdict(
                viewer,
                _viewer_problems(viewer, stored, recording.total),
                _live_latencies(viewer, recording.sent_at),
            )
            for viewer in recording.viewers
        ],
        stored,
        _stored_problems(stored, recording),
    )


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The smallest of ``values`` that ``percent`` of them do not exceed; ``None`` of none."""
    if not values:
        return None
    return sorted(values)[max(1, math.ceil(len(values) * percent / 100)) - 1]


def _stored_problems(stored: StoredMessage, recording: Recording) -> list[str]:
    checks = {
        f"its status is {stored.status}": stored.status == MessageStatus.COMPLETED,
        f"it has {len(stored.sequences)} chunks of {recording.total}, or not in order": (
            stored.sequences == list(range(recording.total))
        ),
        "its content differs from the input": stored.content == recording.text,
        "its joined chunks differ from the input": stored.joined == recording.text,
    }
    return [problem for problem, fine in checks.items() if not fine]


def _viewer_problems(viewer: ViewerLog, stored: StoredMessage, total: int) -> list[str]:
    sequences = [seen.sequence for seen in viewer.seen]
    ended = viewer.ended
    checks = {
        f"it received {len(sequences)} chunks of {total}, or not each once and in order": (
            sequences == list(range(total))
        ),
        "its text differs from the stored message": viewer.text == stored.content,
        "it saw no good end": (ended is not None and ended.error is None and ended.chunks == total),
    }
    return [problem for problem, fine in checks.items() if not fine]


def _live_latencies(viewer: ViewerLog, sent_at: dict[int, float]) -> list[float]:
    """Without the chunks it caught up on: how old those were says nothing about speed."""
    return [
        seen.received_at - sent_at[seen.sequence]
        for watch in viewer.watches
        for seen in watch.seen
        if sent_at.get(seen.sequence, -math.inf) >= watch.beginning.since
    ]
