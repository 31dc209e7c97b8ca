"""The least program that Typer makes: what `shufflectl --help` is measured against."""

import typer

app = typer.Typer()


@app.command()
def hello(name: str = typer.Argument(help="Whom to greet.")) -> None:
    """Greet somebody."""
    typer.echo(f"Hello {name}")


app()
