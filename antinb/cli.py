"""The command line: run notebooks, sample a model to a store, list the models."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from antinb.models import SCHEDULERS
from antinb.reporting import notebooks

__all__ = ["main"]


@click.group()
@click.version_option(package_name="antinb")
def main() -> None:
    """Antithetic noise for diffusion models."""


@main.command()
@click.argument("paths", metavar="NOTEBOOK...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-p", "given", metavar="NAME VALUE", nargs=2, multiple=True, help="Set a parameter of every notebook.")
@click.option("--out", default="out", type=click.Path(path_type=Path), help="Folder of the results.  [out]")
@click.option("--in-place", is_flag=True, help="Write the executed cells back into the notebook, cleaned.")
def run(paths: tuple[Path, ...], given: tuple[tuple[str, str], ...], out: Path, in_place: bool) -> None:
    """Execute notebooks; results go to OUT/<notebook>/, their union to OUT/manifest.json.

    Exits with 1 if a claim is refuted, or at profile "full" if one is undecided.
    """
    from antinb.reporting import report

    if in_place and given:
        raise click.UsageError(f"--in-place commits the default parameters; got -p {given[0][0]}")
    if len({path.stem for path in paths}) < len(paths):
        raise click.UsageError(f"results are filed by name: got {[str(path) for path in paths]}")
    for path in paths:
        if (out / path.stem).resolve() in path.resolve().parents:
            raise click.UsageError(f"{str(path)!r} lies in {str(out / path.stem)!r}, which a run clears: choose --out")
    try:
        plans = [(path, notebooks.parameters(path, dict(given))) for path in paths]
    except ValueError as error:
        raise click.ClickException(str(error)) from None
    folders, strict = [], False
    for path, values in plans:
        folder = out / path.stem
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        click.echo(f"{path} -> {folder}")
        try:
            executed = notebooks.execute(path, folder / path.name, {**values, "out_dir": str(out)})
        except notebooks.CellError as error:
            raise click.ClickException(str(error)) from None
        if in_place:
            notebooks.write_back(executed, path)
        folders.append(folder)
        strict |= values.get("profile", "full") == "full"
    claims = report.merge(folders, out)
    for claim in claims:
        known = None not in (claim["estimate"], claim["low"], claim["high"])
        numbers = "{estimate:.4f} [{low:.4f}, {high:.4f}]".format(**claim) if known else "no estimate"
        click.echo(f"{claim['state']:<12}{claim['id']:<36}{numbers:<32}{claim['rule'] or ''}")
    bad = {"refuted", "undecided"} if strict else {"refuted"}
    if any(claim["state"] in bad for claim in claims):
        raise SystemExit(1)


@main.command()
@click.argument("model")
@click.option("--design", default="antithetic", type=click.Choice(["iid", "antithetic", "simplex"]), show_default=True)
@click.option("--units", required=True, type=int, help="Independent draws, pairs or groups.")
@click.option("--k", type=int, help="Members of a simplex unit.")
@click.option("--seed", required=True, type=int)
@click.option("--steps", type=int, help="Steps of the sampler.  [50]")
@click.option("--scheduler", type=click.Choice([name for names in SCHEDULERS.values() for name in names]))
@click.option("--condition", type=int, help="One class for all units, of a conditional model.")
@click.option("--prompt", "prompts", multiple=True, help="Condition 0, 1, ... of a text pipeline, in order.")
@click.option("--guidance", type=float, help="Scale of classifier-free guidance; 1 is none.")
@click.option("--batch", default=64, show_default=True)
@click.option(
    "--store", required=True, type=click.Path(path_type=Path), help="Zarr store: new, or a run to go on with."
)
def sample(
    model: str,
    design: str,
    units: int,
    k: int | None,
    seed: int,
    steps: int | None,
    scheduler: str | None,
    condition: int | None,
    prompts: tuple[str, ...],
    guidance: float | None,
    batch: int,
    store: Path,
) -> None:
    """Sample MODEL, a shipped name, a diffusers folder or an id of the hub, to a Zarr store."""
    from antinb import noise, sampling, zoo

    if (design == "simplex") != (k is not None):
        raise click.UsageError(f"--k belongs to the simplex design and to no other; got --design {design}, --k {k}")
    try:
        chosen = getattr(noise, design)(units, *([] if k is None else [k]))
        generator = zoo.load(model, steps=steps, scheduler=scheduler, guidance=guidance, prompts=prompts)
        sampling.sample(generator, chosen, seed=seed, condition=condition, store=store, batch=batch)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None


@main.command()
@click.argument("store", type=click.Path(path_type=Path))
def check(store: Path) -> None:
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
        click.echo(f"{name:<18}{row['kind']:<18}{row['licence']:<5}{row['megabytes']:>5.1f} MB  {row['quality']}")
