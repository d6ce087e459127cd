"""Which side is compared with which, under what name, and on which rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from evalswap.comparing.outputs import Side
from evalswap.errors import ConfigError

Key = tuple[Path, str]  # a run's folder and a model of it: what a contender's name belongs to


@dataclass
class Pairing:
    """A reference and those that are compared with it, on one dataset."""

    reference: Side
    others: list[Side] = field(default_factory=list)


def key_of(side: Side) -> Key:
    return side.folder, side.model


def pair_up(runs: Sequence[Sequence[Side]]) -> tuple[list[Pairing], list[str]]:
    """Pair the sides of several runs; those of the first are the references. Returns notes on what is left out.

    A model of another run is compared with the reference of the same dataset that is the same checkpoint, or has
    the same name but for the engine's, or is the only one. In the first run, a second entry of one checkpoint (the
    same model on two engines, in one config) is no reference but is compared with the first.

    Raises ConfigError if nothing is left to compare.
    """
    pairings: list[Pairing] = []
    notes = []
    for number, run in enumerate(runs):
        for side in run:
            of_dataset = [pairing for pairing in pairings if pairing.reference.dataset == side.dataset]
            found = _match(side, of_dataset, first_run=number == 0)
            if found is not None:
                found.others.append(side)
            elif number == 0:
                pairings.append(Pairing(side))
            else:
                where = f"{side.model} on {side.dataset} ({side.folder.name})"
                notes.append(f"{where} is not compared: the first run has nothing like it")
    paired = [pairing for pairing in pairings if pairing.others]
    if not paired:
        have = "; ".join(f"{run[0].folder.name} has {_listed(run)}" for run in runs if run)
        raise ConfigError("these runs have nothing in common to compare", have)
    alone = [pairing.reference for pairing in pairings if not pairing.others]
    notes += [f"{side.model} on {side.dataset} is only in the first run" for side in alone]
    return paired, notes


def _match(side: Side, pairings: Sequence[Pairing], *, first_run: bool) -> Pairing | None:
    identity = side.facts.get("model")
    same = [
        pairing for pairing in pairings if identity is not None and pairing.reference.facts.get("model") == identity
    ]
    if len(same) == 1:
        return same[0]
    named = [pairing for pairing in pairings if _base_name(pairing.reference) == _base_name(side)]
    if len(named) == 1:
        return named[0]
    return pairings[0] if len(pairings) == 1 and not first_run else None


def _base_name(side: Side) -> str:
    """Return a model's abbr without the engine's name at its end."""
    for suffix in (f"-{side.engine}", f"_{side.engine}", "-hf", "_hf"):
        if side.model.endswith(suffix):
            return side.model[: -len(suffix)]
    return side.model


def _listed(run: Sequence[Side]) -> str:
    return ", ".join(dict.fromkeys(f"{side.model} on {side.dataset}" for side in run))


def contender_names(sides: Sequence[Side]) -> dict[Key, str]:
    """Return a short unique name for each run's model: its engine, if that tells them apart, else more."""
    models = list({key_of(side): side for side in sides}.values())
    ways: list[Callable[[Side], str]] = [
        lambda side: side.model if side.foreign else side.engine,
        lambda side: f"{side.engine} {side.facts.get('dtype', '')}".strip(),
        lambda side: side.model,
        lambda side: f"{side.model} ({side.folder.name})",
        lambda side: f"{side.model} ({side.folder})",
    ]
    for way in ways:
        names = [way(side) for side in models]
        if len(set(names)) == len(names):
            break
    return {key_of(side): name for side, name in zip(models, names, strict=True)}


def shared_rows(reference: Side, other: Side, *, common_only: bool) -> tuple[list[int], str | None]:
    """Return the rows that both answered, and a note where only a part of the rows is in both runs.

    A row is in both if its number is and its right answer is the same; where the datasets' hashes differ or are
    not known, also its question, unless no question is the same (then they are only written differently).

    Raises ConfigError where the runs have other rows, unless ``common_only``.
    """
    numbers = reference.rows & other.rows
    answered = reference.outputs.keys() & other.outputs.keys()
    pairs = [(reference.outputs[row], other.outputs[row]) for row in answered]
    hashes = [side.about_rows.get("rows_sha256") for side in (reference, other)]
    by_question = (None in hashes or hashes[0] != hashes[1]) and any(a.prompt == b.prompt for a, b in pairs)
    unlike = {a.row for a, b in pairs if a.gold != b.gold or (by_question and a.prompt != b.prompt)}
    rows = sorted(answered - unlike)
    counts = f"{len(reference.rows)} rows in {reference.folder.name}, {len(other.rows)} in {other.folder.name}"
    if numbers == reference.rows == other.rows and not unlike:
        return rows, None
    common = len(numbers - unlike)
    if not common_only:
        raise ConfigError(
            f"{reference.dataset}: the runs have other rows: {counts}, {common} in both",
            "give both the same --limit and dataset, or compare the common rows alone with --common-rows",
        )
    if not rows:
        raise ConfigError(f"{reference.dataset}: no row is in both runs: {counts}", "give runs of the same dataset")
    return rows, f"{reference.dataset}: {other.model} is compared on the {common} rows that are in both ({counts})"
