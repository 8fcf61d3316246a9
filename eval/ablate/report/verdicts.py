"""What a study's statistics allow to conclude, in sentences.

A difference is a conclusion if both of its intervals over seeds leave out 0 (`eval.paired`). All
others are named too: a reader must see what was looked for and not found.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from eval.ablate.report.comparisons import (
    Effect,
    Interaction,
    direction,
    effects,
    interactions,
    measured,
)
from eval.ablate.report.pages import Block, Bullets, Paragraph, Strong
from eval.ablate.report.wording import certainty, counted, listed, named, number, signed, which_way
from eval.ablate.results import StudyResults

RULE = (
    "A difference counts as a conclusion only if both of its 95 % intervals over seeds leave out 0:"
    " Student's t and the percentile bootstrap. With three seeds the bootstrap's interval is merely"
    " the range of three differences, and these have one sign by chance in 1 of 4 cases; the t"
    " interval guards against that."
)
ONE_SEED = "One seed: differences between runs are not known to be more than noise."
# Why nothing is concluded, as `reading` says it -> the same in a sentence.
_OPEN = {
    "equal in all pairs": "All pairs of runs differ by the same amount, which shows no spread: {}.",
    "same run": "By construction the same run as the baseline: {}.",
    "other reference": "Measured against another reference, so the figures are not compared: {}.",
    "not finished": "No finished pair of runs yet: {}.",
}


@dataclass(frozen=True)
class Tally:
    """How many comparisons a report makes, and how many of them led to a conclusion."""

    made: int
    conclusive: int

    def sentence(self) -> str:
        """With the false alarms to be expected."""
        if not self.made:
            return ""
        count = counted(self.made, "comparison")
        return (
            f"The report makes {count}, all figures and interactions counted, and"
            f" {self.conclusive} led to a conclusion. If nothing differed at all, chance would"
            f" give up to {number(0.05 * self.made, 2)} on average (5 %)."
        )


def tally(results: StudyResults) -> Tally:
    """Count the comparisons of all figures."""
    signs = []
    for figure in measured(results):
        for axis in results.axes:
            signs += [one.verdict for one in effects(results, figure, axis) if one.tested]
        changes = (one.change for one in interactions(results, figure))
        signs += [change.sign for change in changes if change.student is not None]
    return Tally(len(signs), sum(sign != 0 for sign in signs))


def verdicts(results: StudyResults) -> tuple[Block, ...]:
    """A sentence for each axis with what it rests on, and one on whether the axes interact."""
    figures = measured(results)
    if not any(one.status == "done" for one in results.outcomes):
        return (Paragraph("No cell has finished: nothing can be said yet."),)
    if not figures:
        return (Paragraph("No finished cell has a figure: nothing can be compared."),)
    blocks: list[Block] = []
    for axis, values in results.axes.items():
        if len(values) > 1:
            blocks += _of_axis(results, axis, figures)
    if not blocks:
        return (Paragraph("A single configuration: there is nothing to compare it with."),)
    return (*blocks, *_of_interactions(interactions(results, figures[0])))


def interaction_sentence(one: Interaction) -> str:
    """How an effect changes along an axis, and whether that can be told from noise."""
    effect = one.effect
    what = "advantage" if direction(effect.figure) else "difference"
    names = [named(effect.axis, value) for value in (effect.value, effect.baseline)]
    end = ""
    if one.change.student is None:
        end = ": too little to conclude anything"
    elif not one.change.sign:
        end = ": no conclusion"
    return (
        f"From {one.axis} {one.start} to {one.end}, the {what} of {names[0]} over {names[1]} in"
        f" {effect.figure} {_grew(one)} by {number(abs(one.change.mean), 3)}, from"
        f" {number(one.before, 3)} to {number(one.after, 3)}"
        f" (change: {certainty(one.change)}){end}."
    )


def reading(effect: Effect) -> str:
    """An effect's verdict in a few words, for a table."""
    if effect.same:
        return "same run"
    if not effect.comparable:
        return "other reference"
    if effect.pairs is None:
        return "not finished"
    if not effect.tested:
        return "one seed" if len(effect.seeds) == 1 else "equal in all pairs"
    return _judged(effect) if effect.verdict else "no conclusion"


def _judged(effect: Effect) -> str:
    words = ("better", "worse") if direction(effect.figure) else ("higher", "lower")
    return words[0] if effect.verdict > 0 else words[1]


def _grew(one: Interaction) -> str:
    return "grew" if one.change.mean >= 0 else "shrank"


def _of_axis(results: StudyResults, axis: str, figures: Sequence[str]) -> tuple[Block, ...]:
    """What the leading figure concludes about an axis; then in which runs, and by the others."""
    found = effects(results, figures[0], axis)
    baseline = named(axis, results.baseline[axis])
    sentence = f": by {figures[0]} ({which_way(figures[0])}), {_sentence(found, baseline)}."
    others = (_other(results, axis, figure, found) for figure in figures[1:])
    details = [*_conclusions(found), *_single(found), *_open(found), *filter(None, others)]
    head = Paragraph((Strong(axis), sentence))
    return (head, Bullets(tuple(details))) if details else (head,)


def _sentence(found: Sequence[Effect], baseline: str) -> str:
    """What can and what cannot be concluded."""
    kinds: dict[str, list[Effect]] = {}
    for effect in found:
        kinds.setdefault(reading(effect), []).append(effect)
    clauses = [
        f"{listed(names)} {'is' if len(names) == 1 else 'are'} {kind} than {baseline}"
        for kind in ("better", "worse", "higher", "lower")
        if (names := _names(kinds.get(kind, []), found))
    ]
    different = [one for one in found if not one.same]
    for kind, why in (("no conclusion", "an interval spans 0"), ("one seed", "one seed")):
        if names := _names(kinds.get(kind, []), different):
            clauses.append(f"no conclusion about {listed(names)} ({why})")
    return "; ".join(clauses) or f"nothing can be compared with {baseline}"


def _conclusions(found: Sequence[Effect]) -> list[str]:
    """A line for each value, with the size of every conclusive difference."""
    lines: dict[str, list[str]] = {}
    for effect in found:
        if effect.verdict and effect.pairs is not None:
            pairs = effect.pairs if effect.pairs.mean > 0 else effect.pairs.negated()
            where = f" at {_level(effect)}" if effect.level else ""
            text = f"{number(pairs.mean, 3)} {_judged(effect)}{where} ({certainty(pairs)})"
            lines.setdefault(named(effect.axis, effect.value), []).append(text)
    return [f"{value}: {'; '.join(texts)}." for value, texts in lines.items()]


def _single(found: Sequence[Effect]) -> list[str]:
    """The differences of single pairs: worth showing, though they conclude nothing."""
    means: dict[str, list[float]] = {}
    for effect in found:
        if reading(effect) == "one seed" and effect.pairs is not None:
            means.setdefault(named(effect.axis, effect.value), []).append(effect.pairs.mean)
    if not means:
        return []
    texts = [
        f"{value} {signed(values[0])}"
        if len(values) == 1
        else f"{value} {signed(min(values))} to {signed(max(values))}"
        for value, values in means.items()
    ]
    return [f"Differences of the single pairs: {', '.join(texts)}."]


def _open(found: Sequence[Effect]) -> list[str]:
    """Everything else about which nothing is concluded, and why."""
    sentences = []
    for kind, sentence in _OPEN.items():
        some = [one for one in found if reading(one) == kind]
        # What has not run yet says nothing of the others.
        known = [one for one in found if one in some or reading(one) != "not finished"]
        if len(some) == len(found) > 1:
            sentences.append(sentence.format("everything"))
        elif some:
            whole, left = _whole_levels(some, found)
            rest = [one for one in known if one in left or one not in some]
            names = min(_names(some, known), [*whole, *_names(left, rest)], key=len)
            sentences.append(sentence.format(listed(names)))
    return sentences


def _whole_levels(
    some: Sequence[Effect], found: Sequence[Effect]
) -> tuple[list[str], list[Effect]]:
    """Choices of other axes at which everything found is among some; and the rest of these."""
    names, left = [], list(some)
    for choice in dict.fromkeys(pair for one in found for pair in one.level.items()):
        group = [one for one in found if choice in one.level.items()]
        if len({one.value for one in group}) > 1 and all(one in left for one in group):
            names.append(f"everything at {' '.join(choice)}")
            left = [one for one in left if one not in group]
    return names, left


def _other(results: StudyResults, axis: str, figure: str, lead: Sequence[Effect]) -> str:
    """What another figure concludes, in relation to the leading one."""
    found = effects(results, figure, axis)
    if not any(one.tested for one in found):
        return ""
    ours, theirs = (
        {(one.value, *sorted(one.level.items()), one.verdict) for one in some if one.verdict}
        for some in (found, lead)
    )
    way = f"{figure} ({which_way(figure)})"
    if not ours:
        return f"{way}: no conclusion."
    if ours == theirs:
        return f"{way}: the same conclusions."
    sides = (
        (word, _names([one for one in found if one.verdict and _judged(one) == word], found))
        for word in ("better", "worse", "higher", "lower")
    )
    return f"{way}: {'; '.join(f'{word}: {listed(names)}' for word, names in sides if names)}."


def _of_interactions(found: Sequence[Interaction]) -> list[Block]:
    """Which effects change along another axis, for each pair of axes."""
    pairs: dict[tuple[str, str], list[Interaction]] = {}
    for one in found:
        if one.change.student is not None:
            pairs.setdefault((one.effect.axis, one.axis), []).append(one)
    blocks: list[Block] = []
    for (axis, along), members in pairs.items():
        what = "advantage" if direction(members[0].effect.figure) else "difference"
        clauses = [
            f"the {what} of {named(axis, one.effect.value)} {_grew(one)} from {one.start} to"
            f" {one.end} by {number(abs(one.change.mean), 3)}"
            for one in members
            if one.change.sign
        ]
        names = [
            f"{named(axis, one.effect.value)} ({one.start} to {one.end})"
            for one in members
            if not one.change.sign
        ]
        if names:
            clauses.append(f"no conclusion about {listed(names)}")
        sentence = f": by {members[0].effect.figure}, {'; '.join(clauses)}."
        blocks.append(Paragraph((Strong(f"{axis} along {along}"), sentence)))
    return blocks


def _level(effect: Effect) -> str:
    return ", ".join(f"{axis} {value}" for axis, value in effect.level.items())


def _names(some: Sequence[Effect], found: Sequence[Effect]) -> list[str]:
    """Names of some of the effects found, in short: a value alone means all its levels.

    Likewise a value at one choice of another axis means all its levels with that choice.
    """
    names: list[str] = []
    for value in dict.fromkeys(one.value for one in some):
        every = [one for one in found if one.value == value]
        left = [one for one in some if one.value == value]
        name = named(left[0].axis, value)
        if len(left) == len(every):
            names.append(name)
            continue
        for choice in dict.fromkeys(pair for one in every for pair in one.level.items()):
            group = [one for one in every if choice in one.level.items()]
            if all(one in left for one in group):
                names.append(f"{name} ({' '.join(choice)})")
                left = [one for one in left if one not in group]
        names += [f"{name} ({_level(one)})" for one in left]
    return names
