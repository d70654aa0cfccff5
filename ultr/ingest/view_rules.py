"""The rules by which rows with a repeated rank become views, and the evidence of a log that they rest on."""

from __future__ import annotations

from dataclasses import dataclass

FEW = 5  # groups of rows that are no evidence about a whole log yet
RARE = 0.002  # share of all sessions and queries that says nothing about a column
FEW_PARTS = 0.05  # share of the lists of several views that may be one list cut apart without any meaning


@dataclass
class Evidence:
    """Counts what tells copies, clicks and views of a log apart.

    Attributes:
      ordered, unclear: groups that the order of the rows cuts into whole views, and groups that nothing does.
      restarts, equal_inside: places where ranks start again, and where a rank above the first follows itself.
      repeats, same_repeats: views that show the places of an earlier one where either is clicked, and those of them
        that have the same clicks and time.
      short_copies, short_views, stray_copies: views of at most half the rows of the one before that are copies of rows,
        others, and groups in which copies alone stand in the way of telling the views apart.
      click_groups, groups: groups that are one list once the clicked rows that repeat an unclicked one are set aside,
        and all.
      partners, clicks: such clicked rows, and all clicked rows.
    """

    ordered: int = 0
    unclear: int = 0
    restarts: int = 0
    equal_inside: int = 0
    repeats: int = 0
    same_repeats: int = 0
    short_copies: int = 0
    short_views: int = 0
    stray_copies: int = 0
    click_groups: int = 0
    groups: int = 0
    partners: int = 0
    clicks: int = 0


@dataclass(frozen=True)
class Rules:
    """The rules by which rows of a log with repeated ranks become views.

    Attributes:
      joined: whether a view of other documents than those above continues the list, as its next page.
      tick: how much two times may differ within a view: a second, in the unit of the times.
      click_rows: whether a clicked row that repeats an unclicked one is the click on it.
      by_order: whether the order of the rows tells views apart: it does not where it rarely gives whole views.
      equal_restarts: whether a first rank that follows itself begins a new view.
      drop_copies, drop_short_copies: whether a view that is a copy of an earlier one, or of a part of it, is dropped.
    """

    joined: bool = False
    tick: float = 1.0
    click_rows: bool = False
    by_order: bool = True
    equal_restarts: bool = False
    drop_copies: bool = False
    drop_short_copies: bool = False

    @classmethod
    def of(cls, found: Evidence, *, joined: bool, tick: float, timed: bool, other_clicks: int) -> Rules:
        """Chooses the rules that the evidence of a log speaks for.

        Args:
          found: the evidence of the rows with repeated ranks.
          joined, tick: the attributes of those names.
          timed: whether the rows have times; a copy has the time of the original.
          other_clicks: clicked rows of lists without a repeated rank.
        """
        # Where an impression and its click are rows of their own, no list has a click without repeating a rank.
        click_rows = (
            found.partners > 0
            and found.click_groups >= 0.99 * found.groups
            and found.partners >= 0.99 * found.clicks
            and other_clicks <= 0.01 * found.clicks
        )
        # Users who see a list twice rarely click alike; copies always do.
        copies = found.same_repeats >= 0.9 * found.repeats if found.repeats >= FEW else timed
        short = found.stray_copies >= found.short_copies / 2 or found.short_views < found.short_copies / 10
        return cls(
            joined=joined,
            tick=tick,
            click_rows=click_rows,
            by_order=found.ordered >= 0.1 * (found.ordered + found.unclear),
            equal_restarts=found.restarts >= 2 * FEW and found.equal_inside <= found.restarts / 20,
            drop_copies=copies,
            drop_short_copies=short,
        )


@dataclass
class ViewCounts:
    """Counts what became of the rows with repeated ranks.

    Attributes:
      by_column, by_time, by_order: sessions and queries whose views were told apart by these.
      views: lists that were made of them.
      pages: views that show other documents than those above them in their session and query.
      copies: rows that were dropped as copies of others.
      repeated: rows at a repeated rank in sessions and queries whose views could not be told apart,
      mixed: and those of them where several whole views lie in disorder, as the ranks from the first on all repeat.
      mixed_at_one_rank: and those of them in sessions and queries that show a single rank.
      unordered: rows of sessions and queries with pages to be joined, whose order nothing tells.
      first_mixed, first_page, first_unordered: the first row of such a group, and of such a page; -1 without one.
    """

    by_column: int = 0
    by_time: int = 0
    by_order: int = 0
    views: int = 0
    pages: int = 0
    copies: int = 0
    repeated: int = 0
    mixed: int = 0
    mixed_at_one_rank: int = 0
    unordered: int = 0
    first_mixed: int = -1
    first_page: int = -1
    first_unordered: int = -1


def cuts_lists(whole: int, shared: int, *, divided: int, lists: int) -> bool:
    """Tells whether a column of views cuts lists apart rather than numbering views.

    Where rows of views are missing at random, two views share a rank at least as often as they happen to make up a
    whole list together, so that a column of views is not taken for another one.

    Args:
      whole: sessions and queries whose views are parts of a whole list.
      shared: those in which views have a rank in common.
      divided: those with several views.
      lists: all sessions and queries.
    """
    return whole > 0 and whole >= max(FEW_PARTS * divided, RARE * lists) and whole > 1.5 * shared
