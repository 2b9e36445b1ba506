"""scratchlm inspect: look into a trained model. Each thing to be seen is a file, loaded when it is called."""

from cyclopts import App

COMMANDS = {
    "attention": "Draw what each token looks at, in every layer and head.",
    "senses": "Show what each sense of a word pushes up and down, and what it adds to a prediction.",
    "bias": "Measure whether a profession calls for he or she, and reduce it by one sense.",
}

app = App(name="inspect", help="Look into a trained model.", version_flags=[])
for _name, _summary in COMMANDS.items():
    app.command(f"scratchlm.cli.inspect.{_name}:command", name=_name, help=_summary)
