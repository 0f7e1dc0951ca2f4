"""Table S5: repeatability within laboratories and reproducibility between them."""

from collections.abc import Sequence

from qlora_repeat.analysis.interlab import FEWEST_LABORATORIES, Laboratory, LaboratoryArm, SharedArm
from qlora_repeat.render.footnotes import NOTES, source_of
from qlora_repeat.render.tables.table import Table
from qlora_repeat.results.arms import ArmKey
from qlora_repeat.results.number_format import DASH, cell, interval_text, spread_text, value_text
from qlora_repeat.results.statistical_methods import holm

_OWN = ("n", "adapters", "mean", "SD")
_POOLED = ("scale", "s_r", "s_r, 95 %", "s_L", "s_R", "s_R, 95 %", "p, Holm", "common adapters")


def laboratory_table(laboratories: Sequence[Laboratory], arms: Sequence[SharedArm]) -> Table:
    """Make a row for each arm; a panel for each laboratory, and one for all of them together."""
    names = [laboratory.name for laboratory in laboratories]
    # Arms are named as in the first laboratory that has them.
    titles = {arm.key: arm.name for laboratory in reversed(laboratories) for arm in laboratory.arms}
    rows = []
    adjusted = holm([arm.pooled.p if arm.pooled else None for arm in arms])
    for arm, p in zip(arms, adjusted, strict=True):
        own = {measured.laboratory: _own_cells(measured, arm) for measured in arm.laboratories}
        cells = [text for name in names for text in own.get(name, [DASH] * len(_OWN))]
        rows.append([titles[arm.model, arm.optimizer], *cells, *_pooled_cells(arm, p)])
    return Table(
        number="S5",
        caption="Repeatability within and reproducibility between laboratories: test perplexity.",
        source=" ".join(f"{each.name}: {source_of(each.arms)}" for each in laboratories),
        stub="Arm",
        columns=[
            *((name, heading) for name in names for heading in _OWN),
            *(("all laboratories", heading) for heading in _POOLED),
        ],
        rows=rows,
        notes=[
            *(NOTES["S5"][topic] for topic in ("adapters", "scale", "model")),
            *([NOTES["S5"]["two"]] if any(map(_has_too_few, arms)) else []),
            _conditions(laboratories),
            *_exceptions(arms, titles),
        ],
    )


def sentences(arms: Sequence[SharedArm]) -> list[str]:
    """Return a sentence for each arm: how well the laboratories agree."""
    return [f"{arm.model}/{arm.optimizer}: {_sentence(arm)}" for arm in arms]


def _sentence(arm: SharedArm) -> str:
    count = len(arm.laboratories)
    common = "no digests of adapters"
    if arm.common_adapters is not None:
        common = f"adapters common to several laboratories, bit for bit: {arm.common_adapters}"
    if arm.unlike:
        return f"{count} laboratories, not pooled because these differ: {', '.join(arm.unlike)}; {common}"
    if arm.pooled is None:
        return f"{count} laboratories, too few runs for a spread; {common}"
    scale = " of log perplexity" if arm.logarithmic else ""
    found = arm.pooled
    return (
        f"within a laboratory s_r = {spread_text(found.repeatability)}{scale}, in any of {count} "
        f"s_R = {spread_text(found.reproducibility)}; {common}"
    )


def _own_cells(measured: LaboratoryArm, arm: SharedArm) -> list[str]:
    """Return the cells under `_OWN`."""
    sd = measured.sd
    if sd is not None and arm.logarithmic:
        sd *= measured.mean or 1.0  # for the digits of the mean
    return [
        str(measured.n),
        cell(measured.adapters),
        value_text(measured.mean, sd),
        spread_text(measured.sd),
    ]


def _pooled_cells(arm: SharedArm, p: float | None) -> list[str]:
    """Return the cells under `_POOLED`; `p` is adjusted for the number of arms."""
    scale, common = "log" if arm.logarithmic else "linear", cell(arm.common_adapters)
    found = arm.pooled
    if found is None:
        return [scale, *[DASH] * (len(_POOLED) - 2), common]
    return [
        scale,
        spread_text(found.repeatability),
        interval_text(spread_text(found.repeatability_low), spread_text(found.repeatability_high)),
        spread_text(found.between),
        spread_text(found.reproducibility),
        interval_text(spread_text(found.reproducibility_low), spread_text(found.reproducibility_high)),
        DASH if p is None else f"{p:.2g}",
        common,
    ]


def _has_too_few(arm: SharedArm) -> bool:
    return arm.pooled is not None and arm.pooled.laboratories < FEWEST_LABORATORIES


def _conditions(laboratories: Sequence[Laboratory]) -> str:
    """Note which of the paper's terms applies."""
    measured = [[row for arm in each.arms for row in arm.done] for each in laboratories]
    facts = {
        "devices": {frozenset(row.device for row in rows) for rows in measured},
        "software": {frozenset(row.software for row in rows) for rows in measured},
    }
    differing = " and ".join(name for name, found in facts.items() if len(found) > 1)
    return str(NOTES["S5"]["different" if differing else "same"]).format(differing=differing)


def _exceptions(arms: Sequence[SharedArm], titles: dict[ArmKey, str]) -> list[str]:
    """Note the arms that are treated differently from the others."""
    found = {
        "unlike": [(arm, ", ".join(arm.unlike)) for arm in arms if arm.unlike],
        "seeds": [(arm, str(arm.common_seeds)) for arm in arms if arm.common_seeds],
        "not_finite": [
            (arm, f"{own.not_finite} in {own.laboratory}")
            for arm in arms
            for own in arm.laboratories
            if own.not_finite
        ],
    }
    return [
        NOTES["S5"][topic].format(
            arms="; ".join(f"{titles[arm.model, arm.optimizer]} ({what})" for arm, what in named)
        )
        for topic, named in found.items()
        if named
    ]
