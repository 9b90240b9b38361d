"""The command line: run notebooks, sample a model to a store, compare two, list the models."""

from __future__ import annotations

import re
import sys
from io import TextIOWrapper
from pathlib import Path
from typing import cast

import click

__all__ = ["main"]


@click.group()
@click.version_option(package_name="antinb")
def main() -> None:
    """Antithetic noise for diffusion models."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        cast("TextIOWrapper", stream).reconfigure(errors="backslashreplace")


class _Run(click.Command):
    """A command whose -p is written `-p units 64` or `-p units=64`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spelled: list[str] = []
        for place, arg in enumerate(args):
            split = place and args[place - 1] == "-p" and re.match(r"\w+=", arg)
            spelled += arg.split("=", 1) if split else [arg]
        try:
            return super().parse_args(ctx, spelled)
        except click.BadOptionUsage as error:
            raise click.UsageError(f"{error.message} A parameter is written -p units 64.", ctx) from None


@main.command(cls=_Run)
@click.argument("paths", metavar="NOTEBOOK...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-p", "given", metavar="NAME VALUE", nargs=2, multiple=True, help="Set a parameter of every notebook.")
@click.option("--sweep", "axes", metavar="NAME=A,B,...", multiple=True, help="Run at each of these values; repeatable.")
@click.option("--out", default="out", type=click.Path(path_type=Path), help="Folder of the results.  [out]")
@click.option("--in-place", is_flag=True, help="Write the executed cells back into the notebook, cleaned.")
@click.option("--parameters", "ask", is_flag=True, help="Print what each notebook can be given, and run nothing.")
@click.option("--limit", type=click.FloatRange(min=0, min_open=True), help="Seconds that a cell may take.")
@click.option("--workers", type=click.IntRange(min=1), default=1, help="Notebooks that run at once.  [1]")
def run(
    paths: tuple[Path, ...],
    given: tuple[tuple[str, str], ...],
    axes: tuple[str, ...],
    out: Path,
    in_place: bool,
    ask: bool,
    limit: float | None,
    workers: int,
) -> None:
    """Execute notebooks; results go to OUT/<notebook>/, their union to OUT/manifest.json and OUT/claims.tex.

    A notebook's results take the place of older ones when they are whole. Nothing that antinb did not make is
    replaced. Exits with 1 if a claim's state is not the expected one, which is that it holds unless the notebook
    says otherwise (at profile "smoke" a claim may be undecided); with 2 if a notebook fails, whose results up to the
    failing cell are kept in OUT/<notebook>.failed/; with 130 if interrupted, with 143 if terminated.

    A sweep runs one notebook at every point of a grid, each in a folder of OUT/<notebook>.sweep/, and writes a table
    and a figure of all claims to claims/ there. The same line goes on where a sweep was stopped.

    Several at once print a line each and the claims that are not as expected; one that fails does not stop the others.
    """
    from antinb.reporting import notebooks, runs

    if ask:
        try:
            click.echo("\n\n".join(f"{path}\n{notebooks.told(path)}" for path in paths))
        except ValueError as error:
            raise click.ClickException(str(error)) from None
        return
    grid = dict(_axis(axis) for axis in axes)
    if in_place and (given or grid):
        raise click.UsageError(f"--in-place commits the default parameters; got {[*dict(given), *grid][0]}")
    if "out_dir" in {**dict(given), **grid}:
        raise click.UsageError("the folder of the results is --out; got the parameter out_dir")
    if grid and len(paths) > 1:
        raise click.UsageError(f"a sweep is one of one notebook; got {len(paths)}")
    raise SystemExit(runs.run(paths, dict(given), out, in_place=in_place, limit=limit, axes=grid, workers=workers))


def _axis(text: str) -> tuple[str, list[str]]:
    name, sign, values = text.partition("=")
    if not sign or not all(values.split(",")):
        raise click.UsageError(f"an axis of a sweep is written --sweep steps=5,10,20; got {text!r}")
    return name, values.split(",")


@main.command()
@click.argument("out", default="out", type=click.Path(path_type=Path, exists=True, file_okay=False))
def merge(out: Path) -> None:
    """Write the union of all results in OUT, its manifest.json and claims.tex, anew."""
    from antinb.reporting import results

    try:
        with results.Results(out, ()) as place:
            claims = place.merge()
    except (ValueError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        raise SystemExit(2) from None
    click.echo(f"{len(claims)} claims")


@main.command()
@click.argument("id", required=False)
@click.option("--out", default="out", type=click.Path(path_type=Path, exists=True, file_okay=False), help="  [out]")
def cite(id: str | None, out: Path) -> None:  # noqa: A002
    """Print BibTeX entries of a figure (fig-01-5) or a notebook's results in OUT, of antinb and of the paper."""
    from antinb.reporting import manifest

    try:
        click.echo(manifest.cited(out, id))
    except ValueError as error:
        raise click.ClickException(str(error)) from None


@main.command()
@click.argument("out", default="out", type=click.Path(path_type=Path, exists=True, file_okay=False))
def report(out: Path) -> None:
    """Write all results in OUT as one page, OUT/report.html."""
    from antinb.reporting import page

    try:
        click.echo(page.write(out))
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None


@main.command()
@click.argument("model")
@click.option("--design", default="antithetic", type=click.Choice(["iid", "antithetic", "simplex"]), show_default=True)
@click.option("--units", required=True, type=int, help="Independent draws, pairs or groups.")
@click.option("--k", type=int, help="Members of a simplex unit.")
@click.option("--seed", required=True, type=int)
@click.option("--steps", type=int, help="Steps of the sampler.  [50]")
@click.option("--scheduler", help="Sampler, such as ddim, ddpm or dpmsolver++.")
@click.option("--condition", help="One class or prompt for all units, by its number, or 'in turn', one a unit.")
@click.option("--prompt", "prompts", multiple=True, help="Condition 0, 1, ... of a text pipeline, in order.")
@click.option("--prompts-file", type=click.Path(path_type=Path), help="The same from a file, one a line.")
@click.option("--guidance", type=float, help="Scale of classifier-free guidance; 1 is none.")
@click.option("--device", help="Where the network runs, such as cuda.  [cpu]")
@click.option("--dtype", help="Precision of the network, such as bfloat16.  [float32]")
@click.option(
    "--batch", default="64", show_default=True, help="Images at once, or 'auto', as many as there is memory for."
)
@click.option("--workers", type=click.IntRange(min=1), help="Processes of this machine that share the work.")
@click.option("--cluster", help="Address of a dask scheduler whose workers do the work, such as tcp://host:8786.")
@click.option("--store", required=True, help="Zarr store, a folder or s3://bucket/name: new, or a run to go on with.")
def sample(
    model: str,
    design: str,
    units: int,
    k: int | None,
    seed: int,
    steps: int | None,
    scheduler: str | None,
    condition: str | None,
    prompts: tuple[str, ...],
    prompts_file: Path | None,
    guidance: float | None,
    device: str | None,
    dtype: str | None,
    batch: str,
    workers: int | None,
    cluster: str | None,
    store: str,
) -> None:
    """Sample MODEL, a shipped name, a diffusers folder or an id of the hub, to a Zarr store."""
    from antinb import noise, sampling, zoo
    from antinb.workers import connected

    if workers and cluster:
        raise click.UsageError(f"the work is done by --workers or by --cluster; got {workers} and {cluster}")
    if (design == "simplex") != (k is not None):
        raise click.UsageError(f"--k belongs to the simplex design and to no other; got --design {design}, --k {k}")
    if prompts and prompts_file:
        raise click.UsageError("prompts are given one by one or as a file; got --prompt and --prompts-file")
    settings = {"steps": steps, "scheduler": scheduler, "guidance": guidance, "device": device, "dtype": dtype}
    try:
        chosen = getattr(noise, design)(units, *([] if k is None else [k]))
        generator = zoo.load(model, prompts=prompts_file or prompts, **settings)
        how = {"condition": _number(condition), "batch": _number(batch), "store": store}
        with connected(workers, cluster) as client:
            sampling.sample(generator, chosen, seed=seed, client=client, **how)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None


def _number(text: str | None) -> int | str | None:
    return int(text) if text is not None and re.fullmatch(r"-?[0-9]{1,9}", text) else text


@main.command()
@click.argument("models", metavar="A B", nargs=2)
@click.option("--statistic", "asked", multiple=True, help="Such as contrast, 'brightness>0.35' or 'P(trouser)'.")
@click.option("--margin", "margins", multiple=True, metavar="NAME=SIZE", help="A difference that does not matter.")
@click.option("--design", default="antithetic", type=click.Choice(["iid", "antithetic"]), show_default=True)
@click.option("--pairs", "--units", "units", default=1024, show_default=True, help="The most that are sampled.")
@click.option("--seed", default=0, show_default=True)
@click.option("--steps", type=int, help="Steps of both samplers.  [50]")
@click.option("--steps-b", type=int, help="Steps of B, if others.")
@click.option("--scheduler", help="Sampler of both, such as ddim or dpmsolver++.")
@click.option("--scheduler-b", help="Sampler of B, if another one.")
@click.option("--weights-b", help="Round the weights of B: bfloat16, float16, int8 or int4.")
@click.option("--device", help="Where the networks run, such as cuda.  [cpu]")
@click.option("--batch", default=64, show_default=True)
@click.option("--reference", type=click.Path(path_type=Path), help="Pictures, or moments .npz, for Fréchet distances.")
@click.option("--features", help="A classifier whose features these are, a name or a folder.")
@click.option("--out", default="compare", type=click.Path(path_type=Path), help="Folder of the results.  [compare]")
def compare(
    models: tuple[str, str],
    asked: tuple[str, ...],
    margins: tuple[str, ...],
    design: str,
    units: int,
    seed: int,
    steps: int | None,
    steps_b: int | None,
    scheduler: str | None,
    scheduler_b: str | None,
    weights_b: str | None,
    device: str | None,
    batch: int,
    reference: Path | None,
    features: str | None,
    out: Path,
) -> None:
    """Say whether model B makes the images of model A: both start from the same noise until every statistic is decided.

    A and B are models as for `antinb sample`, or two stored runs. A statistic is "equal" if its difference is shown to
    be below the margin, "different" if it is shown to be above, with an error of 5% over all looks; without a margin it
    is never equal. If none is named, brightness and contrast are asked for, within 0.01.

    Exits with 0 if all are equal, with 1 if any is different, with 3 if one is undecided when all pairs are spent, with
    2 if something fails. The same line goes on where it was stopped.
    """
    from antinb import comparing, zoo

    first = {"steps": steps, "scheduler": scheduler, "device": device}
    second = first | {"steps": steps_b or steps, "scheduler": scheduler_b or scheduler}
    changed = [name for name, value in (*second.items(), ("weights_b", weights_b)) if value is not None]
    stored = [comparing.is_store(model) for model in models]
    try:
        if any(stored) and (not all(stored) or changed):
            rule = "two models are compared, or two stored runs as they are"
            raise ValueError(f"{rule}; got {', '.join(map(repr, [*models, *changed]))}")
        question = comparing.question(asked, margins, design=design, units=units, seed=seed, batch=batch)
        if all(stored):
            table, runs = comparing.opened(models, question)
        else:
            a, b = (zoo.load(name, **given) for name, given in zip(models, (first, second), strict=True))
            both = a, zoo.rounded(b, weights_b) if weights_b else b
            table, runs = comparing.sampled(both, question, out)
        more = comparing.distances(runs, reference, features)
        click.echo(comparing.told(table, more))
        click.echo(comparing.written(out, models, question, table, runs, more))
    except (ValueError, OSError) as error:
        click.echo(f"Error: {error}", err=True)
        raise SystemExit(2) from None
    raise SystemExit(comparing.code(table))


@main.command()
@click.argument("store")
def check(store: str) -> None:
    """Read all of STORE and say what is missing or damaged; exits with 1 if anything is."""
    from antinb import dataset

    try:
        lines = dataset.damage(store)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None
    for line in lines or ["the run is whole, every checksum fits"]:
        click.echo(line)
    if lines:
        raise SystemExit(1)


@main.command()
def models() -> None:
    """List the shipped models with licence, size and quality."""
    from antinb import zoo

    for name, row in zoo.models().iterrows():
        click.echo(f"{name:<26}{row['kind']:<18}{row['licence']:<5}{row['megabytes']:>5.1f} MB  {row['quality']}")


if __name__ == "__main__":
    main()
