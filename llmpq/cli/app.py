"""The table of contents of the command line."""

import typer

from llmpq.cli.bench import bench
from llmpq.cli.eval_perplexity import perplexity
from llmpq.cli.eval_tasks import tasks
from llmpq.cli.export import export
from llmpq.cli.fidelity import fidelity
from llmpq.cli.plan import plan
from llmpq.cli.profile import profile
from llmpq.cli.results import cancel, results
from llmpq.cli.run_batch import run_batch
from llmpq.cli.sensitivity import sensitivity
from llmpq.cli.status import status
from llmpq.cli.trace import trace
from llmpq.cli.up import up

app = typer.Typer(
    name="llmpq",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Serve a large language model over unlike devices.

    For each batch a planner chooses which device runs which layers, at which
    precision each layer is stored, and how large the micro-batches are.

    [bold]On one machine[/bold], without starting anything first:

      llmpq run-batch -i prompts.jsonl -o answers.jsonl --model MODEL --stages 2

    [bold]On several[/bold], or to keep the services running: start them (`llmpq up`
    does it for one host), then pass --coordinator HOST:PORT to the other
    commands, or set LLMPQ_COORDINATOR once.
    """,
)
evaluations = typer.Typer(no_args_is_help=True, help="Measure the quality of what the mesh serves.")
evaluations.command("ppl")(perplexity)
evaluations.command("tasks")(tasks)

app.command("up")(up)
app.command("run-batch")(run_batch)
app.command("results")(results)
app.command("cancel")(cancel)
app.command("status")(status)
app.command("trace")(trace)
app.command("plan")(plan)
app.command("profile")(profile)
app.command("fidelity")(fidelity)
app.command("sensitivity")(sensitivity)
app.command("export")(export)
app.add_typer(evaluations, name="eval")
app.add_typer(bench, name="bench")
