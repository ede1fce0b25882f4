"""The search for max_lr inside the run: scouts find the region, pairs the place, both put back.

Rates are written as ``c``, the log of a rate relative to the user's ``max_lr``. Everything here is
pure: a `Search` and the scores of one round give the next `Search`.

Source: our own studies (docs/algorithm.md); the paper has no such search.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from hdet_ray.config import MIN_SCOUT_STEPS, Auto
from hdet_ray.core.parabola import vertex

MAX_TEAMS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One candidate, tried once."""

    round: int
    phase: Literal["scout", "pairs"]
    c: float
    """Log of the candidate's rate relative to ``max_lr``."""
    loss: float | None
    """Its score; ``None`` where that was not finite."""
    is_dead: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Where the search stands."""

    stage: Literal["scout", "pairs", "done"]
    scout_steps: int
    pair_steps: int
    low: float
    """Lowest c inside the bounds."""
    high: float
    centre: float = 0.0
    """The next scout's centre."""
    is_recentred: bool = False
    """The next scout is centred on the best of those before it."""
    scouts: int = 0
    pairs: int = 0
    is_confirmed: bool = False
    is_suspect: bool = False
    """The winning pair point has a dead upper neighbour: such a result has run away before."""
    start: float | None = None
    """c0: where the scouts ended and the pairs begin."""
    pair: tuple[float, ...] = ()
    """The two candidates of the next pair."""
    untrained_loss: float | None = None
    """Loss of the untrained weights on the scouts' samples."""
    pair_untrained_loss: float | None = None
    """The same on the pairs' samples."""
    points: tuple[Point, ...] = ()
    result: float | None = None
    """The c that was found; ``None`` while searching, and where no candidate lived."""

    @property
    def untrained(self) -> float | None:
        """The untrained weights' loss on the samples of the stage that is going on, once it was measured."""
        return self.untrained_loss if self.stage == "scout" else self.pair_untrained_loss

    def with_untrained(self, loss: float) -> Search:
        """The search with the untrained weights measured on this stage's samples."""
        if self.stage == "scout":
            return replace(self, untrained_loss=loss)
        return replace(self, pair_untrained_loss=loss)

    @property
    def best(self) -> float:
        """The best c so far."""
        if self.result is not None:
            return self.result
        for phase in ("pairs", "scout"):
            live = [(p.loss, p.c) for p in pool(self.points, phase) if not p.is_dead and p.loss is not None]
            if live:
                return min(live)[1]
        return self.centre


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One search round: which replica tries what."""

    teams: tuple[int | None, ...]
    candidates: tuple[float, ...]
    """c of each team."""
    unscored: float
    """c of replicas that belong to no team."""

    def c_of(self, replica: int) -> float:
        """The c that a replica trains at."""
        team = self.teams[replica]
        return self.unscored if team is None else self.candidates[team]


def search_lengths(settings: Auto, total_steps: int) -> tuple[int, int] | None:
    """Steps of a scout and of a pair round, so that the worst case fits; ``None`` if the run is too short."""
    worst = settings.max_scouts * settings.scout_steps + settings.max_pairs * settings.pair_steps
    shrink = min(1.0, settings.max_search_ratio * total_steps / worst)
    scout_steps = math.floor(settings.scout_steps * shrink)
    pair_steps = scout_steps * settings.pair_steps // settings.scout_steps
    return None if min(scout_steps, pair_steps) < MIN_SCOUT_STEPS else (scout_steps, pair_steps)


def shortest_run(settings: Auto) -> int:
    """The smallest ``total_steps`` that leaves room for a search."""
    total_steps = 1
    while search_lengths(settings, total_steps) is None:
        total_steps *= 2
    low, high = total_steps // 2, total_steps
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if search_lengths(settings, middle) is None else (low, middle)
    return high


def trial(search: Search, settings: Auto, num_replicas: int) -> Trial:
    """The teams and candidates of the next search round, for at least two replicas."""
    if search.stage == "scout":
        return _scout_trial(search, settings, num_replicas)
    half = num_replicas // 2
    teams = tuple([0] * half + [1] * half + [None] * (num_replicas - 2 * half))
    return Trial(teams=teams, candidates=search.pair, unscored=search.start or 0.0)


def scout_teams(num_replicas: int) -> tuple[int, ...]:
    """Team of each replica in a scout: equal blocks, left-over replicas to the middle teams first."""
    num_teams = min(num_replicas, MAX_TEAMS)
    size = num_replicas // num_teams
    middle_first = sorted(range(num_teams), key=lambda i: (abs(i - (num_teams - 1) / 2), i))
    blocks = [team for team in range(num_teams) for _ in range(size)]
    return tuple(blocks + middle_first[: num_replicas - len(blocks)])


def absorb(search: Search, settings: Auto, tried: Trial, scores: Sequence[float], round: int) -> Search:
    """The search after one round.

    Args:
        tried: What the round tried.
        scores: Each team's loss on the probe (lower is better); not finite where a member was not.
        round: The round's number.
    """
    points = _judged(search, tried.candidates, scores, round)
    search = replace(search, points=search.points + points)
    if search.stage == "scout":
        return _after_scout(search, settings, points)
    return _after_pair(search, settings)


def pool(points: Sequence[Point], phase: str) -> tuple[Point, ...]:
    """All points of a phase by rising c: losses at equal c averaged, dead if the newest there is.

    A candidate whose loss was not finite also kills every higher one tried until then.
    """
    cells: dict[float, list[Point]] = {}
    dead: dict[float, bool] = {}
    for point in (p for p in points if p.phase == phase):
        c = round(point.c, 9)
        cells.setdefault(c, []).append(point)
        dead[c] = point.is_dead
        if point.loss is None:
            for other in cells:
                if other > c:
                    dead[other] = True
    return tuple(
        replace(cells[c][-1], c=c, loss=_mean_loss(cells[c]), is_dead=dead[c]) for c in sorted(cells)
    )


def _mean_loss(points: Sequence[Point]) -> float | None:
    live = [p.loss for p in points if p.loss is not None and not p.is_dead]
    known = live or [p.loss for p in points if p.loss is not None]
    return sum(known) / len(known) if known else None


def _scout_trial(search: Search, settings: Auto, num_replicas: int) -> Trial:
    num_teams = min(num_replicas, MAX_TEAMS)
    units = [i - (num_teams - 1) / 2 for i in range(num_teams)]
    candidates = tuple(_clip(search.centre + settings.scout_spacing * u, search) for u in units)
    return Trial(teams=scout_teams(num_replicas), candidates=candidates, unscored=search.centre)


def _judged(
    search: Search, candidates: Sequence[float], scores: Sequence[float], round: int
) -> tuple[Point, ...]:
    untrained = search.untrained
    lowest_nonfinite = min(
        (c for c, s in zip(candidates, scores, strict=True) if not math.isfinite(s)), default=math.inf
    )
    phase: Literal["scout", "pairs"] = "scout" if search.stage == "scout" else "pairs"
    return tuple(
        Point(
            round=round,
            phase=phase,
            c=c,
            loss=score if math.isfinite(score) else None,
            is_dead=not math.isfinite(score)
            or c > lowest_nonfinite
            or (untrained is not None and score > untrained),
        )
        for c, score in zip(candidates, scores, strict=True)
    )


def _after_scout(search: Search, settings: Auto, points: Sequence[Point]) -> Search:
    search = replace(search, scouts=search.scouts + 1)
    pooled = pool(search.points, "scout")
    live = [p for p in pooled if not p.is_dead]
    if live and search.is_recentred and _winner_is_central(points, pooled):
        return _begin_pairs(replace(search, is_confirmed=True), settings)
    if search.scouts >= settings.max_scouts:
        return _begin_pairs(search, settings) if live else replace(search, stage="done", result=None)
    if 2 * sum(p.is_dead for p in points) >= len(points):
        half_width = settings.scout_spacing * (len(points) - 1) / 2
        below = pooled[0].c - settings.scout_spacing - half_width
        return replace(search, centre=max(below, search.low), is_recentred=False)
    return replace(search, centre=_best(live).c, is_recentred=True)


def _winner_is_central(points: Sequence[Point], pooled: Sequence[Point]) -> bool:
    """The newest scout's winner is a middle team; of two, the pool's best has neighbours on both sides."""
    live = [p for p in points if not p.is_dead]
    if not live:
        return False
    if len(points) == 2:
        best = _best([p for p in pooled if not p.is_dead])
        return pooled[0].c < best.c < pooled[-1].c
    middle = (len(points) - 1) / 2
    return abs(list(points).index(_best(live)) - middle) <= 0.5


def _begin_pairs(search: Search, settings: Auto) -> Search:
    """c0: the vertex through the pool's best and its neighbours, moved at most half a cell."""
    pooled = pool(search.points, "scout")
    best = _best([p for p in pooled if not p.is_dead])
    start = best.c
    below, above = _neighbours(pooled, best)
    if below is not None and above is not None:
        cell = (above.c - below.c) / 2
        if above.is_dead:
            start = best.c - cell / 4
        elif not below.is_dead:
            start = best.c + _clamp(_vertex(below, best, above) - best.c, cell / 2)
    start = _clip(start, search)
    pair = _distinct((start, _clip(start + settings.pair_spacing, search)))
    return _pairs_or_done(replace(search, stage="pairs", start=start), pair, fallback=start)


def _after_pair(search: Search, settings: Auto) -> Search:
    search = replace(search, pairs=search.pairs + 1)
    pooled = pool(search.points, "pairs")
    live = [p for p in pooled if not p.is_dead]
    best = _best(live) if live else None
    if search.pairs < settings.max_pairs:
        pair = _next_pair(search, settings, pooled, best)
        if pair:
            return _pairs_or_done(search, pair, fallback=best.c if best else pooled[0].c)
    if best is None:
        return replace(search, stage="done", result=None)
    return _conclude(search, settings, pooled, best)


def _next_pair(
    search: Search, settings: Auto, pooled: Sequence[Point], best: Point | None
) -> tuple[float, ...]:
    """Further out while the best is an end point; else, if it lies above c0, the first pair once more.

    One lucky trial can carry a search upwards, and too high a rate costs a run most: what is tried again is
    averaged with what was.
    """
    step = settings.pair_spacing
    if best is None or best.c == pooled[0].c:
        edge, further = pooled[0].c, (-2 * step, -step)
    elif best.c == pooled[-1].c:
        edge, further = pooled[-1].c, (step, 2 * step)
    else:
        tried = [p.c for p in search.points if p.phase == "pairs"]
        is_above = best.c > round(tried[0], 9)
        return tuple(tried[:2]) if is_above and tried.count(tried[0]) == 1 else ()
    outwards = (_clip(edge + move, search) for move in further)
    return _distinct([c for c in outwards if abs(c - edge) > 1e-9])


def _conclude(search: Search, settings: Auto, pooled: Sequence[Point], best: Point) -> Search:
    below, above = _neighbours(pooled, best)
    quarter = settings.pair_spacing / 4
    result = best.c
    if below is not None and above is not None:
        if above.is_dead and not below.is_dead:
            result = best.c - quarter
        elif below.is_dead and not above.is_dead:
            result = best.c + quarter
        elif not above.is_dead and not below.is_dead:
            result = best.c + _clamp(_vertex(below, best, above) - best.c, settings.pair_spacing / 2)
    is_suspect = above is not None and above.is_dead
    return replace(search, stage="done", result=_clip(result, search), is_suspect=is_suspect)


def _pairs_or_done(search: Search, pair: tuple[float, ...], *, fallback: float) -> Search:
    """A pair needs two different candidates; at a corner of the bounds there are none."""
    if len(pair) < 2:
        if len(pair) == 1 and pair[0] != fallback:
            return replace(search, pair=tuple(sorted((pair[0], fallback))))
        return replace(search, stage="done", result=fallback)
    return replace(search, pair=pair)


def _best(points: Sequence[Point]) -> Point:
    return min(points, key=lambda p: (math.inf if p.loss is None else p.loss, p.c))


def _neighbours(pooled: Sequence[Point], best: Point) -> tuple[Point | None, Point | None]:
    i = [p.c for p in pooled].index(best.c)
    return (pooled[i - 1] if i > 0 else None), (pooled[i + 1] if i + 1 < len(pooled) else None)


def _vertex(below: Point, best: Point, above: Point) -> float:
    if below.loss is None or best.loss is None or above.loss is None:
        return best.c
    return vertex((below.c, below.loss), (best.c, best.loss), (above.c, above.loss))


def _clip(c: float, search: Search) -> float:
    return min(max(c, search.low), search.high)


def _clamp(move: float, limit: float) -> float:
    return min(max(move, -limit), limit)


def _distinct(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(dict.fromkeys(values))


def team_scores(tried: Trial, replica_scores: Sequence[float]) -> tuple[float, ...]:
    """A team's score: the mean over its replicas."""
    members: Mapping[int, list[float]] = {team: [] for team in range(len(tried.candidates))}
    for team, score in zip(tried.teams, replica_scores, strict=True):
        if team is not None:
            members[team].append(score)
    return tuple(sum(s) / len(s) for s in members.values())
