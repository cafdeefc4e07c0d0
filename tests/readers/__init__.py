"""All that reads files, each with a valid file of its kind: `READERS`, by their names."""

from readers import clips, commands, foreign, judges, models, runs, sentiment

READERS = {
    name: make
    for part in (commands, clips, runs, foreign, judges, sentiment, models)
    for name, make in part.READERS.items()
}
