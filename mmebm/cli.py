"""The command line: every command parses, calls one function and prints what it returned."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from safetensors import SafetensorError

app = typer.Typer(
    help="Multimodal latent generative models with an energy-based prior.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()

RunArgument = Annotated[Path, typer.Argument(help="a run folder", metavar="RUN")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="key=value with dotted keys, e.g. train.updates=500")
]


def say(text: object) -> None:
    """A line as it is: no markup, and not broken, so that a path survives a pipe."""
    console.print(str(text), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """A bar that takes (update, metrics) and shows loss, energies and rate."""
    columns = (
        TextColumn("{task.description}"), BarColumn(12), MofNCompleteColumn(), TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[shown]}"),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, shown="")

        def show(update: int, metrics: dict[str, float]) -> None:
            shown = [f"{key} {metrics[key]:.4g}" for key in ("loss", "E_q", "E_p") if key in metrics]
            if rate := metrics.get("updates_per_second"):
                shown.append(f"{rate:.3g}/s")
            bar.update(task, completed=update, shown="  ".join(shown))

        yield show


def joint_table(title: str, rows: dict[str, dict[str, Any]], n: int) -> Table:
    """Joint coherence with its standard error, class entropy and Frechet distance of each way to draw z."""
    table = Table(title=escape(f"{title} ({n} samples)"))
    for column in ("draws of z", "joint coherence", "class entropy", "Frechet"):
        table.add_column(column, justify="left" if column == "draws of z" else "right")
    for name, row in rows.items():
        coherence = f"{row['coherence']:.3f} ± {row['standard_error']:.3f}"
        table.add_row(name, coherence, f"{row['entropy']:.3f}", f"{row['mean_frechet']:.1f}")
    return table


def sizes_table(title: str, result: dict[str, Any]) -> Table:
    """By number of observed modalities: cross coherence, the probe's accuracy and the targets' errors."""
    table = Table(title=escape(title))
    for column in ("observed", "cross coherence", "macro", "linear probe", "rmse"):
        table.add_column(column, justify="right")
    cross, probe = (result["cross"] or {}).get("by_size", {}), result["probe_by_size"] or {}
    errors = result["reconstruction"]["by_size"]
    for size in sorted({*cross, *probe, *errors}, key=int):
        row = cross.get(size)
        low, high = row["interval"] if row else (0.0, 0.0)
        rmse = [e["rmse"] for e in errors.get(size, {}).values()]
        table.add_row(
            size,
            f"{row['micro']:.3f} ({low:.3f} to {high:.3f})" if row else "-",
            f"{row['macro']:.3f}" if row else "-",
            f"{probe[size]['test']:.3f}" if size in probe else "-",
            f"{sum(rmse) / len(rmse):.4f}" if rmse else "-",
        )
    return table


def show_evaluation(name: str, result: dict[str, Any]) -> None:
    if result["joint"]:
        first = next(iter(result["joint"].values()))
        console.print(joint_table(f"{name}, {result['split']} split", result["joint"], first["n"]))
        accuracy = ", ".join(f"{m} {a:.3f}" for m, a in result["classifier_accuracy"].items())
        say(f"classifier accuracy: {accuracy}; real tuples agree: {result['real_agreement']:.3f}")
    if result["cross"]:
        say(f"cross coherence: {result['cross']['mean']:.3f} (n = {result['cross']['n']} rows a pair)")
    n = result["reconstruction"]["n"]
    console.print(sizes_table(f"{name}, by number of observed modalities ({n} rows)", result))
    if result["probe"]:
        say(f"linear probe on z: {result['probe']['test']:.3f}")
    for name, distances in result.get("fid", {}).get("joint", {}).items():
        mean = sum(distances.values()) / len(distances)
        say(f"FID of draws from {name}: {mean:.2f} ({result['fid']['samples']} samples)")
    if "likelihood" in result:
        found = result["likelihood"]["joint"]
        shift = "" if found["log_z"] is None else f", log Z = {found['log_z']:.3f} by annealed importance sampling"
        say(f"log p(X): {found['mean']:.2f} ± {found['standard_error']:.2f} (K = {found['samples']}{shift})")
    say(f"objective: {result['objective']['value']:.2f} ({result['objective']['label']})")
    say("  ".join(f"{k}={v}" for k, v in result["settings"].items()))


@app.command()
def train(
    config: Annotated[Path | None, typer.Option(help="a TOML file")] = None,
    preset: Annotated[str | None, typer.Option(help="a configuration of the package")] = None,
    overrides: SetOption = None,
    output: Annotated[Path | None, typer.Option(help="the run folder; default runs/NAME")] = None,
    resume: Annotated[bool, typer.Option(help="continue the run in the folder")] = False,
    force: Annotated[bool, typer.Option(help="replace the run in the folder")] = False,
) -> None:
    """Train a model; leaves weights, metrics and the configuration in a run folder."""
    from mmebm import data
    from mmebm.training import Run, load_config
    from mmebm.training import train as run_training

    if resume:
        if output is None or config or preset or overrides or force:
            raise ValueError("--resume: expected --output RUN and nothing else, the run holds its configuration")
        source: str | Path = Run.open(output).config
    elif (config is None) == (preset is None):
        raise ValueError("expected one of --config FILE and --preset NAME")
    else:
        source = preset or config  # type: ignore[assignment]
    settings = load_config(source, overrides or [])
    folder = output or Path("runs") / Path(source).stem
    dataset = data.load(settings.data.name, "train", **settings.data.options)
    with progress_bar(escape(f"train {folder.resolve().name}"), settings.updates) as show:
        run_training(settings, dataset, folder, resume=resume, force=force, progress=show)
    say(f"trained: {folder}")


@app.command()
def evaluate(
    run: RunArgument,
    split: Annotated[str, typer.Option(help="test, or validation while recipes are chosen")] = "test",
    likelihood: Annotated[
        int | None, typer.Option(min=0, help="samples K of the joint log-likelihood; 0: none; default the run's")
    ] = None,
    inception: Annotated[
        Path | None, typer.Option(help=r"Inception's weights, for its Frechet distances (pip install 'mmebm\[fid]')")
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure joint and cross coherence, class entropy, Frechet distance, probes, errors and likelihood."""
    from mmebm.evaluation.runs import evaluate_run

    result = evaluate_run(run, split, likelihood_samples=likelihood, weights=inception, device=device)
    show_evaluation(run.resolve().name, result)


@app.command()
def figures(run: RunArgument, device: DeviceOption = "auto") -> None:
    """Draw joint samples, cross generation, the Markov transition and training curves."""
    from mmebm.evaluation.runs import draw_figures

    for path in draw_figures(run, device=device):
        say(path)


@app.command("report")
def report_runs(
    run: Annotated[list[Path], typer.Argument(help="run folders, one or several", metavar="RUN...")],
    output: Annotated[Path, typer.Option(help="the page; an earlier report is replaced")] = Path("report.html"),
) -> None:
    """Write one self-contained HTML page of runs: curves, tables, samples, cross generation, the transition."""
    from mmebm.evaluation.report import write_report

    say(f"report: {write_report(run, output)}")


def _shard(text: str) -> tuple[int, int]:
    """ "i/n", i from 1 to n, as (i - 1, n)."""
    left, _, right = text.partition("/")
    if not (left.isdecimal() and right.isdecimal() and 1 <= int(left) <= int(right)):
        raise ValueError(f"--shard: expected i/n with 1 <= i <= n, got {text!r}")
    return int(left) - 1, int(right)


OutputOption = Annotated[Path, typer.Option(help="folder of the files and their index")]
ToOption = Annotated[str | None, typer.Option("--to", help="modalities to make, comma-separated")]
ShardOption = Annotated[str, typer.Option(help="i/n: every n-th file from the i-th on")]
FormatOption = Annotated[str, typer.Option("--format", help="safetensors or npy")]
TypeOption = Annotated[str, typer.Option("--dtype", help="float32, or uint8 for images")]
SeedOption = Annotated[int, typer.Option(help="of every row's draws")]


@app.command("generate")
def generate_rows(
    run: RunArgument,
    output: OutputOption,
    rows: Annotated[int, typer.Option(min=0, help="how many")],
    to: ToOption = None,
    steps: Annotated[int | None, typer.Option(min=0, help="of the energy prior's chains; default the run's")] = None,
    shard: ShardOption = "1/1",
    file_format: FormatOption = "safetensors",
    dtype: TypeOption = "float32",
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Draw joint samples of any number; starts again where it was cut off."""
    from mmebm.generate import generate

    index = generate(
        run, output, rows=rows, gen_mod=to.split(",") if to else None, steps=steps, seed=seed, shard=_shard(shard),
        file_format=file_format, dtype=dtype, device=device,
    )  # fmt: skip
    say(f"generated: {index}")


@app.command("cross-generate")
def cross_generate_rows(
    run: RunArgument,
    given: Annotated[str, typer.Option("--from", help="modalities observed, comma-separated")],
    source: Annotated[str, typer.Option("--input", help="NAME:SPLIT of a dataset, .npz, .safetensors or .npy folder")],
    output: OutputOption,
    to: ToOption = None,
    rows: Annotated[int | None, typer.Option(min=0, help="how many; default the input's, which is repeated")] = None,
    refine: Annotated[int, typer.Option(min=0, help="Langevin steps of z on energy and observations")] = 0,
    refine_step_size: Annotated[float, typer.Option(help="s of those steps")] = 0.05,
    shard: ShardOption = "1/1",
    file_format: FormatOption = "safetensors",
    dtype: TypeOption = "float32",
    seed: SeedOption = 0,
    device: DeviceOption = "auto",
) -> None:
    """Make modalities from others, for any number of rows; starts again where it was cut off."""
    from mmebm.generate import cross_generate

    index = cross_generate(
        run, output, source, cond_mod=given.split(","), gen_mod=to.split(",") if to else None, rows=rows,
        refine_steps=refine, refine_step_size=refine_step_size, seed=seed, shard=_shard(shard),
        file_format=file_format, dtype=dtype, device=device,
    )  # fmt: skip
    say(f"generated: {index}")


@app.command("fit-prior")
def fit_prior(
    run: Annotated[Path | None, typer.Argument(help="a run whose posterior is kept frozen", metavar="[RUN]")] = None,
    latents: Annotated[Path | None, typer.Option(help=r"latents \[n, d] as .npy, instead of a run")] = None,
    output: Annotated[Path | None, typer.Option(help="folder of the fitted prior; default RUN/fitted-prior")] = None,
    updates: Annotated[int, typer.Option(min=1, help="of the energy, 512 latents each")] = 3000,
    seed: Annotated[int, typer.Option(help="of the posterior's draws, the weights and the chains")] = 0,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key=value under prior. or train.energy., e.g. prior.bound=20")
    ] = None,
    force: Annotated[bool, typer.Option(help="replace a fitted prior in the folder")] = False,
) -> None:
    """Fit an energy prior to a trained model's frozen posterior, or to latents of yours."""
    from mmebm.fit import fit_prior_of

    with progress_bar("fit prior", updates) as show:
        folder, result = fit_prior_of(
            run, latents, output, updates=updates, seed=seed, overrides=overrides or [], force=force, progress=show
        )
    if result:
        console.print(joint_table("frozen posterior, validation split", result, next(iter(result.values()))["n"]))
    say(f"fitted prior: {folder}")


@app.command()
def demo(
    output: Annotated[Path, typer.Option(help="folder of the two runs")] = Path("runs/demo"),
    overrides: SetOption = None,
) -> None:
    """Train `digits` with the plain and with the energy prior, and show the difference."""
    from mmebm.demo import run_demo

    run_demo(output, overrides or [])


@app.command()
def profile(
    call: Annotated[str, typer.Argument(help="an operator, or a saved call", metavar="CALL")],
    tool: Annotated[str, typer.Option(help="nsys, ncu or none")] = "nsys",
    source: Annotated[str, typer.Option("--from", help="preset or file whose training makes the call")] = "digits",
    output: Annotated[Path, typer.Option(help="folder of the call and of what the tool writes")] = Path("profiles"),
    repeat: Annotated[int, typer.Option(min=1, help="calls to run")] = 20,
    device: DeviceOption = "auto",
    backend: Annotated[str, typer.Option(help="who serves the call")] = "auto",
) -> None:
    """Save one real operator call of a training and run it again under Nsight; prints the exact command."""
    from mmebm.profiling import profile as run_profile

    line, obstacle = run_profile(call, tool, output, source=source, repeat=repeat, device=device, backend=backend)
    say(line)
    if obstacle:
        say(f"not run: {obstacle}")


@app.command()
def info() -> None:
    """What is built, what the machine has, and which backend serves each operator."""
    from mmebm.info import report

    say(report())


def main() -> None:
    """Entry point: expected failures end in one line, not in a traceback."""
    try:
        app()
    except (ValueError, TypeError, OSError, RuntimeError, SafetensorError) as error:
        Console(stderr=True).print(Text.assemble(("error:", "bold red"), f" {error}"), soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
