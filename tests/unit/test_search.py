"""The rules of the search, one round at a time: which candidate counts, what is tried next, when it ends."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from hdet_ray.config import Auto
from hdet_ray.core.search import Point, Search, absorb, pool, team_scores, trial


def scouting(points: Sequence[tuple[int, float, float | None]], **changes: object) -> Search:
    """A search in its scouts that has seen these (round, c, loss) so far."""
    seen = tuple(Point(round=r, phase="scout", c=c, loss=loss, is_dead=loss is None) for r, c, loss in points)
    blank = Search(stage="scout", scout_steps=20, pair_steps=40, low=-9.0, high=9.0, points=seen)
    return replace(blank, **changes)  # type: ignore[arg-type]


def one_round(search: Search, scores: Sequence[float]) -> Search:
    """The search after a round whose teams of one replica each got these scores."""
    return absorb(search, Auto(), trial(search, Auto(), len(scores)), scores, 7)


# Which candidate counts


def test_a_teams_score_is_the_mean_of_its_replicas_and_one_broken_member_breaks_it() -> None:
    tried = trial(scouting([], stage="pairs", start=0.0, pair=(0.0, 1.0)), Auto(), 5)
    assert team_scores(tried, [1, 3, 4, 6, 100]) == (2, 5)
    assert math.isnan(team_scores(tried, [1, math.nan, 4, 6, 100])[0])


def test_equal_log_rates_are_one_point_with_the_mean_of_their_losses() -> None:
    (point,) = pool(scouting([(0, 0.5, 2.0), (1, 0.5 + 1e-12, 3.0)]).points, "scout")
    assert (point.loss, point.is_dead) == (2.5, False)


def test_a_point_is_dead_if_the_newest_try_of_it_was() -> None:
    dead, alive = (
        pool(scouting(points).points, "scout")
        for points in (
            [(0, 0.5, 2.0), (1, 0.5, None)],
            [(0, 0.5, None), (1, 0.5, 2.0)],
        )
    )
    assert dead[0].is_dead
    assert not alive[0].is_dead


def test_a_candidate_that_is_not_finite_kills_every_higher_one() -> None:
    search = one_round(scouting([(0, 3.0, 1.0)]), [2.5, math.nan, 1.0, 2.0])
    by_c = {p.c: p.is_dead for p in pool(search.points, "scout")}
    assert by_c == {-2.25: False, -0.75: True, 0.75: True, 2.25: True, 3.0: True}


def test_a_candidate_worse_than_the_untrained_weights_is_dead_and_kills_no_other() -> None:
    search = one_round(scouting([], untrained_loss=5.0), [4.0, 5.5, 3.0, 5.0])
    assert [p.is_dead for p in search.points] == [False, True, False, False]


def test_a_scout_is_confirmed_only_around_an_earlier_ones_winner() -> None:
    first = one_round(scouting([]), [3.0, 1.0, 2.0, 4.0])
    assert (first.stage, first.is_confirmed, first.centre) == ("scout", False, -0.75)
    second = one_round(first, [3.0, 1.5, 1.2, 4.0])
    assert (second.stage, second.is_confirmed) == ("pairs", True)


def test_a_scout_won_by_an_outer_team_is_not_confirmed() -> None:
    first = one_round(scouting([]), [3.0, 1.0, 2.0, 4.0])
    second = one_round(first, [0.5, 1.5, 1.6, 4.0])
    assert (second.stage, second.centre) == ("scout", -3.0)


def test_of_an_odd_number_only_the_middle_team_confirms() -> None:
    first = one_round(scouting([]), [2.0, 1.0, 3.0])
    assert one_round(first, [2.0, 1.0, 3.0]).is_confirmed
    assert not one_round(first, [0.5, 1.0, 3.0]).is_confirmed


def test_two_teams_are_confirmed_once_the_best_of_all_has_neighbours_on_both_sides() -> None:
    first = one_round(scouting([]), [2.0, 1.0])
    assert (first.stage, first.centre) == ("scout", 0.75)
    second = one_round(first, [1.5, 1.2])  # 0.0 and 1.5 around the best, 0.75
    assert (second.stage, second.is_confirmed) == ("pairs", True)


def test_with_half_of_the_teams_dead_the_next_scout_ends_below_the_lowest_tried() -> None:
    after = one_round(scouting([]), [1.0, 2.0, math.nan, math.nan])
    assert after.stage == "scout"
    candidates = trial(after, Auto(), 4).candidates
    assert candidates[-1] == pytest.approx(-2.25 - 1.5)
    # Not centred on a winner: it can't confirm.
    assert one_round(after, [3.0, 1.0, 2.0, 4.0]).stage == "scout"


def test_with_less_than_half_dead_the_next_scout_is_centred_on_the_best() -> None:
    assert one_round(scouting([]), [1.5, 1.0, 2.0, math.nan]).centre == -0.75


# Where the scouts end and the pairs begin


def test_the_pairs_begin_at_the_vertex_moved_at_most_half_a_cell() -> None:
    centred = scouting([(0, -0.75, 1.9)], is_recentred=True, scouts=1)
    even = one_round(centred, [3.0, 1.0, 1.2, 3.0])
    # Both tries at -0.75 make 1.45, so the best is 0.75 with 1.2, between that and (2.25, 3).
    assert even.start == pytest.approx(0.75 - 1.5 * (1.8 - 0.25) / (2 * (1.8 + 0.25)))
    # Neighbours at -0.75 and 1.0: the vertex lies 0.75 lower, half of their cell is less.
    uneven = one_round(scouting([(0, 1.0, 3.0)], is_recentred=True, scouts=1), [3.0, 1.0001, 1.0, 4.0])
    assert uneven.start == pytest.approx(0.75 - (1.75 / 2) / 2)


def test_a_dead_upper_neighbour_moves_the_pairs_a_quarter_cell_down() -> None:
    centred = scouting([], is_recentred=True, scouts=1)
    after = one_round(centred, [3.0, 2.0, 1.0, math.nan])
    assert after.start == pytest.approx(0.75 - 1.5 / 4)
    assert after.pair == pytest.approx((0.375, 1.375))


def in_pairs(*pairs: tuple[float, float]) -> Search:
    """A search at c0 = 0 whose pairs brought these scores, one after another."""
    search = scouting([], stage="pairs", start=0.0, pair=(0.0, 1.0), pair_untrained_loss=5.0)
    for scores in pairs:
        search = one_round(search, scores)
    return search


def test_pairs_go_on_outwards_while_the_best_is_an_end_point() -> None:
    assert in_pairs((1.0, 2.0)).pair == (-2.0, -1.0)
    assert in_pairs((2.0, 1.0)).pair == (2.0, 3.0)
    assert in_pairs((2.0, 1.0), (0.5, 0.4)).pair == (4.0, 5.0)
    assert in_pairs((1.0, 2.0), (3.0, 1.5)).stage == "done"


def test_a_best_above_where_the_pairs_began_is_tried_again_once_and_averaged() -> None:
    assert in_pairs((2.0, 1.0), (1.5, 3.0)).pair == (0.0, 1.0)
    lucky = in_pairs((2.0, 1.9), (2.5, 3.0), (2.0, 2.3))
    assert (lucky.stage, lucky.result) == ("done", 0.0)
    assert in_pairs((2.0, 1.0), (1.5, 3.0), (2.2, 0.8)).result == pytest.approx(1 + 0.6 / 3.6)


def test_three_pairs_are_the_most_and_an_end_point_then_stands() -> None:
    search = in_pairs((2.0, 1.0), (0.5, 0.4), (0.3, 0.2))
    assert (search.stage, search.result) == ("done", 5.0)


def test_the_result_is_the_vertex_moved_at_most_half_a_step() -> None:
    # Through (0, 2), (1, 1), (2, 1.5): 1 + (2 - 1.5) / (2 * (2 - 2 + 1.5)).
    assert in_pairs((2.0, 1.0), (1.5, 3.0), (2.0, 1.0)).result == pytest.approx(1 + 0.5 / 3)
    assert in_pairs((4.9, 1.0), (1.0001, 3.0), (4.9, 1.0)).result == pytest.approx(1.5, abs=1e-3)


def test_a_dead_neighbour_above_moves_the_result_a_quarter_down_and_marks_it_suspect() -> None:
    search = in_pairs((2.0, 1.0), (math.nan, math.nan), (2.0, 1.0))
    assert search.result == pytest.approx(0.75)
    assert search.is_suspect


def test_a_dead_neighbour_below_moves_the_result_a_quarter_up_and_is_no_suspicion() -> None:
    search = in_pairs((5.5, 1.0), (1.5, 3.0), (5.5, 1.0))
    assert search.result == pytest.approx(1.25)
    assert not search.is_suspect


def test_two_dead_candidates_send_the_next_pair_down() -> None:
    assert in_pairs((math.nan, math.nan)).pair == (-2.0, -1.0)
