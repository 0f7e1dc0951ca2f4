"""Table S5: repeatability within laboratories and reproducibility between them."""

from collections.abc import Iterable, Sequence

from qlora_repeat.analysis.interlab import (
    FEWEST_LABORATORIES,
    Laboratory,
    LaboratoryArm,
    Reproducibility,
    SharedArm,
)
from qlora_repeat.render.footnotes import source_of
from qlora_repeat.render.tables.table import Table
from qlora_repeat.results.arms import ArmKey
from qlora_repeat.results.number_format import DASH, interval_text, spread_text, value_text

_OWN = ("n", "adapters", "mean", "SD")
_POOLED = ("scale", "s_r", "s_r, 95 %", "s_L", "s_R", "s_R, 95 %", "p", "common adapters")


def laboratory_table(laboratories: Sequence[Laboratory], arms: Sequence[SharedArm]) -> Table:
    """Make a row for each arm; a panel for each laboratory, and one for all of them together."""
    names = [laboratory.name for laboratory in laboratories]
    # Arms are named as in the first laboratory that has them.
    titles = {arm.key: arm.name for laboratory in reversed(laboratories) for arm in laboratory.arms}
    rows = []
    for arm in arms:
        own = {measured.laboratory: _own_cells(measured, arm) for measured in arm.laboratories}
        cells = [cell for name in names for cell in own.get(name, [DASH] * len(_OWN))]
        title = titles[arm.model, arm.optimizer]
        rows.append([title, *cells, *_pooled_cells(arm)])
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
            "n: runs with a finite perplexity. adapters: distinct adapters, by digest. common adapters: "
            "adapters that more than one laboratory has, bit for bit.",
            "scale: log if the perplexities of an arm span more than a decade; mean is then the geometric "
            "mean, and SD, s_r, s_L and s_R are of natural logarithms (0.1 is about 10 %).",
            "s_r: repeatability, the SD within a laboratory. s_L: the SD of the laboratories' true means. "
            "s_R: reproducibility, the SD of a run in any laboratory, s_R² = s_r² + s_L². Model: one-way "
            "random effects (ISO 5725-2); s_L is 0 if s_r alone explains the differences of the means. No "
            "run is left out as an outlier. p: F test of no difference between laboratories. Intervals: "
            "Bonett's, pooled, for s_r; Graybill and Wang's for s_R.",
            *_too_few(arms),
            *_words(laboratories),
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
        _count(measured.adapters),
        value_text(measured.mean, sd),
        spread_text(measured.sd),
    ]


def _pooled_cells(arm: SharedArm) -> list[str]:
    """Return the cells under `_POOLED`."""
    scale, common = "log" if arm.logarithmic else "linear", _count(arm.common_adapters)
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
        DASH if found.p is None else f"{found.p:.2g}",
        common,
    ]


def _count(found: int | None) -> str:
    return DASH if found is None else str(found)


def _too_few(arms: Sequence[SharedArm]) -> list[str]:
    """Note that two laboratories are too few."""
    pooled: list[Reproducibility] = [arm.pooled for arm in arms if arm.pooled is not None]
    if not any(found.laboratories < FEWEST_LABORATORIES for found in pooled):
        return []
    return [
        "Two laboratories are too few to estimate s_L and s_R: both rest on one difference, and the 95 % "
        "interval of an SD from one difference spans a factor of 71. ISO 5725-1 expects 8 to 15 "
        "laboratories."
    ]


def _words(laboratories: Sequence[Laboratory]) -> list[str]:
    """Note which of the paper's terms applies."""
    measured = [[row for arm in each.arms for row in arm.done] for each in laboratories]
    devices = {tuple(sorted({str(row.device) for row in rows})) for rows in measured}
    software = {tuple(sorted({str(row.software) for row in rows})) for rows in measured}
    apart = [what for what, told in (("devices", devices), ("software", software)) if len(told) > 1]
    if not apart:
        return [
            "Devices and software have the same names in all laboratories. s_R then measures what the paper "
            "(section IV) calls reproducibility: another team in another place, with the same hardware and "
            "software."
        ]
    return [
        f"The laboratories have different {' and '.join(apart)}. ISO 5725 calls their agreement "
        "reproducibility. The paper (section IV) uses this word only for the same hardware and software, and "
        "the word replicability if the algorithm differs, too."
    ]


def _exceptions(arms: Sequence[SharedArm], titles: dict[ArmKey, str]) -> list[str]:
    """Note the arms that are treated differently from the others."""

    def listed(found: Iterable[tuple[SharedArm, str]]) -> str:
        return "; ".join(f"{titles[arm.model, arm.optimizer]} ({what})" for arm, what in found)

    notes = []
    if unlike := listed((arm, ", ".join(arm.unlike)) for arm in arms if arm.unlike):
        notes.append(f"Not pooled because settings differ between laboratories: {unlike}.")
    if seeds := listed((arm, str(arm.common_seeds)) for arm in arms if arm.common_seeds):
        notes.append(
            "Not independent: several laboratories used the same seeds of the initial adapter (their number "
            f"in parentheses), which may make runs similar and s_L too small: {seeds}."
        )
    if left := listed(
        (arm, f"{own.not_finite} in {own.laboratory}")
        for arm in arms
        for own in arm.laboratories
        if own.not_finite
    ):
        notes.append(f"Left out because they are not finite: {left}.")
    return notes
