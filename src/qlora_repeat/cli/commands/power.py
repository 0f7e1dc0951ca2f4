"""`qlora-repeat power`."""

from pathlib import Path

import click

from qlora_repeat.cli.options import runs_option
from qlora_repeat.system.printable import say, say_block


@click.command("power")
@click.argument("pilot", required=False)
@click.option(
    "--metric", help="A column, or a measure of a study.  [default: perplexity, or the only column]"
)
@click.option("--sd", type=float, help="The standard deviation, in place of a pilot.")
@click.option("--difference", type=float, help="A difference of means and of medians to find.")
@click.option("--ratio", type=float, help="A ratio of spreads to find.")
@click.option("--rates", type=float, nargs=2, help="Two rates of collapse to tell apart, such as 0 0.5.")
@click.option(
    "--trials", type=click.IntRange(2, 1000), help="Trials in each arm now.  [default: the pilot's]"
)
@click.option(
    "--comparisons", type=click.IntRange(1, 1000), default=1, show_default=True, help="Comparisons."
)
@click.option("--power", "wanted", type=float, default=0.8, show_default=True, help="The chance to find it.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw it (.png or .pdf).")
@runs_option
def command(
    pilot: str | None,
    metric: str | None,
    sd: float | None,
    difference: float | None,
    ratio: float | None,
    rates: tuple[float, float] | None,
    trials: int | None,
    comparisons: int,
    wanted: float,
    plot: Path | None,
    runs: Path | None,
) -> None:
    """Say how many trials each arm needs to find an effect, and what the present trials can find.

    PILOT is an arm, as for `compare`: its values give the standard deviation and the present number of
    trials. Without --difference, --ratio and --rates, the smallest effects that can be found are shown.
    Tests are two-sided, at 5 %; with --comparisons, at the level of the smallest p by Holm.

    \b
    Examples:
      qlora-repeat power --sd 1 --difference 1
      qlora-repeat power pocket:smollm2-135m/adamw-8bit --ratio 2 --comparisons 4
    """
    from qlora_repeat.api.power import power

    found = power(
        pilot,
        metric=metric,
        sd=sd,
        difference=difference,
        ratio=ratio,
        rates=rates,
        trials=trials,
        comparisons=comparisons,
        wanted=wanted,
        runs=runs,
    )
    say_block(str(found))
    if plot is not None:
        from qlora_repeat.render.figures.power import render_power_figure

        render_power_figure(found.effects, found.power, plot)
        say(plot)
