"""Table S5: what several laboratories measured, and how far they agree: repeatability and reproducibility."""

from collections.abc import Iterable, Sequence

from qlora_repeat.analysis.interlab import Laboratory, LaboratoryArm, SharedArm
from qlora_repeat.analysis.interlab_statistics import FEWEST_LABORATORIES, Reproducibility
from qlora_repeat.render.footnotes import source_of
from qlora_repeat.render.tables.table import Table
from qlora_repeat.results.arms import ArmKey
from qlora_repeat.results.number_format import DASH, interval_text, spread_text, value_text

_OWN = ("n", "adapters", "mean", "SD")
_POOLED = ("scale", "s_r", "s_r, 95 %", "s_L", "s_R", "s_R, 95 %", "p", "common adapters")


def laboratory_table(laboratories: Sequence[Laboratory], arms: Sequence[SharedArm]) -> Table:
    """A row for each arm; a panel for each laboratory, and one for all of them together."""
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
        caption="Repeatability within, reproducibility between laboratories: perplexity on test examples.",
        source=" ".join(f"{each.name}: {source_of(each.arms)}" for each in laboratories),
        stub="Arm",
        columns=[
            *((name, heading) for name in names for heading in _OWN),
            *(("all laboratories", heading) for heading in _POOLED),
        ],
        rows=rows,
        notes=[
            "n: runs with a finite perplexity. adapters: different ones, by digest. common adapters: "
            "those that more than one laboratory has, bit for bit.",
            "scale: log, where perplexities of an arm span more than a decade; mean is then the geometric "
            "one, and SD, s_r, s_L and s_R are of natural logarithms (0.1 is about 10 %).",
            "s_r: repeatability, the SD within a laboratory. s_L: the SD of the laboratories' own means. "
            "s_R: reproducibility, the SD of a run in any laboratory, s_R² = s_r² + s_L². One-way random "
            "effects, by ISO 5725-2; s_L is 0 where means differ by no more than s_r explains. No run is "
            "left out as an outlier. p: of an F test that the laboratories do not differ. Intervals: of s_r "
            "Bonett's, pooled; of s_R Graybill and Wang's.",
            *_too_few(arms),
            *_words(laboratories),
            *_exceptions(arms, titles),
        ],
    )


def sentences(arms: Sequence[SharedArm]) -> list[str]:
    """A line for each arm: how far laboratories agree, in words."""
    return [f"{arm.model}/{arm.optimizer}: {_sentence(arm)}" for arm in arms]


def _sentence(arm: SharedArm) -> str:
    count = len(arm.laboratories)
    common = "no digests of adapters"
    if arm.common_adapters is not None:
        common = f"adapters that more than one has, bit for bit: {arm.common_adapters}"
    if arm.unlike:
        return f"{count} laboratories, not pooled: not the same {', '.join(arm.unlike)}; {common}"
    if arm.pooled is None:
        return f"{count} laboratories, too few runs for a spread; {common}"
    scale = " of log perplexity" if arm.logarithmic else ""
    found = arm.pooled
    return (
        f"within a laboratory s_r = {spread_text(found.repeatability)}{scale}, in any of {count} "
        f"s_R = {spread_text(found.reproducibility)}; {common}"
    )


def _own_cells(measured: LaboratoryArm, arm: SharedArm) -> list[str]:
    """The cells under `_OWN`."""
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
    """The cells under `_POOLED`."""
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
    """What so few laboratories cannot tell."""
    pooled: list[Reproducibility] = [arm.pooled for arm in arms if arm.pooled is not None]
    if not any(found.laboratories < FEWEST_LABORATORIES for found in pooled):
        return []
    return [
        "Two laboratories are too few to tell s_L and s_R: one difference stands for the spread of all "
        "laboratories, and the 95 % interval of an SD from one difference spans a factor of 71. ISO 5725-1 "
        "has 8 to 15 laboratories in mind."
    ]


def _words(laboratories: Sequence[Laboratory]) -> list[str]:
    """Which of the paper's words this is about."""
    measured = [[row for arm in each.arms for row in arm.done] for each in laboratories]
    devices = {tuple(sorted({str(row.device) for row in rows})) for rows in measured}
    software = {tuple(sorted({str(row.software) for row in rows})) for rows in measured}
    apart = [what for what, told in (("devices", devices), ("software", software)) if len(told) > 1]
    if not apart:
        return [
            "Devices and software have the same names in all laboratories, so that s_R is about what the "
            "paper (section IV) calls reproducibility: another team in another place, with the same hardware "
            "and software."
        ]
    return [
        f"The laboratories have different {' and '.join(apart)}. ISO 5725 calls their agreement "
        "reproducibility; the paper (section IV) does so only where hardware and software are the same, and "
        "speaks of replicability where the algorithm is another, too."
    ]


def _exceptions(arms: Sequence[SharedArm], titles: dict[ArmKey, str]) -> list[str]:
    """Notes of what is not as in the other arms."""

    def listed(found: Iterable[tuple[SharedArm, str]]) -> str:
        return "; ".join(f"{titles[arm.model, arm.optimizer]} ({what})" for arm, what in found)

    notes = []
    if unlike := listed((arm, ", ".join(arm.unlike)) for arm in arms if arm.unlike):
        notes.append(f"Not pooled, for it was not the same in all laboratories: {unlike}.")
    if seeds := listed((arm, str(arm.common_seeds)) for arm in arms if arm.common_seeds):
        notes.append(
            "Not independent: so many seeds of the initial adapter were used in more than one laboratory, "
            f"whose runs may be alike for that, and s_L too small: {seeds}."
        )
    if left := listed(
        (arm, f"{own.not_finite} in {own.laboratory}")
        for arm in arms
        for own in arm.laboratories
        if own.not_finite
    ):
        notes.append(f"Left out, for they are not finite: {left}.")
    return notes
