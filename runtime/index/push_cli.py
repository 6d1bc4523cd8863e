"""`fluxtalk index push`: an index into a vector database."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import click

from fluxtalk.console import debug_option, option, sentence_errors
from fluxtalk.errors import UsageError
from fluxtalk.runtime.index.databases import lancedb, pgvector, qdrant
from fluxtalk.runtime.index.databases.common import Contents
from fluxtalk.runtime.index.search import SearchIndex


@click.command()
@click.argument("index", type=click.Path(path_type=Path))
@option("--to", "database", required=True, type=click.Choice(["qdrant", "lancedb", "pgvector"]), help="The database.")
@option("--url", help="Address of its server, such as http://localhost:6333 or postgresql://localhost/NAME.")
@option("--path", help="Folder of an embedded one: LanceDB, or Qdrant's local mode.")
@option("--collection", "--table", "name", required=True, help="Name of the collection or table to make.")
@debug_option
@sentence_errors
def push(index: Path, database: str, url: str | None, path: str | None, name: str) -> None:
    """Write INDEX into a new collection or table of a vector database.

    Search there with QdrantSearch, LanceDBSearch or PgvectorSearch of fluxtalk.runtime.index.databases.

    fluxtalk index push photos.index --to qdrant --url http://localhost:6333 --collection photos
    """
    if (url is None) == (path is None) or (database == "pgvector" and url is None):
        given = ", ".join(f"--{key}" for key, value in (("url", url), ("path", path)) if value is not None)
        wanted = "--url" if database == "pgvector" else "one of --url and --path"
        raise UsageError(f"{database} is reached by {wanted}; got {given or 'neither'}.")
    opened = SearchIndex(index)
    Contents.of(opened)
    if database == "qdrant":
        with closing(qdrant.connect(url, path)) as client:
            pushed = qdrant.push(opened, client, name)
    elif database == "lancedb":
        pushed = lancedb.push(opened, lancedb.connect(str(url or path)), name)
    else:
        with closing(pgvector.connect(str(url))) as connection:
            pushed = pgvector.push(opened, connection, name)
    click.echo(
        f"{name}: {pushed.items} {pushed.modality} items, {pushed.output}, k = {pushed.k}, dimension {pushed.dim}"
    )
