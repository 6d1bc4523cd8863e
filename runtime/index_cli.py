"""`fluxtalk index`: build an index of one modality, and search it from any other."""

from __future__ import annotations

from pathlib import Path

import click

from fluxtalk.console import debug_option, option, sentence_errors
from fluxtalk.errors import IndexFileError
from fluxtalk.runtime.cli import embed_with_progress, serving_options
from fluxtalk.runtime.embedder import load
from fluxtalk.runtime.index import SearchIndex, build_index
from fluxtalk.runtime.inputs import gather_items


@click.group(name="index")
def main() -> None:
    """Build and search an index of pooled embeddings."""


@main.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("modality")
@click.argument("items", nargs=-1)
@click.option("--input", "list_file", type=click.Path(path_type=Path), help="A file with one more item per line.")
@click.option(
    "-o", "--output", required=True, type=click.Path(path_type=Path), help="The index's folder, new or empty."
)
@click.option("-k", "--tokens", "k", type=int, help="Register tokens to compute.  [default: all]")
@serving_options
@debug_option
@sentence_errors
def build(
    bundle: Path,
    modality: str,
    items: tuple[str, ...],
    list_file: Path | None,
    output: Path,
    k: int | None,
    backend: str,
    precision: str | None,
    threads: int | None,
    batch_size: int,
) -> None:
    """Embed ITEMS (texts, or paths of files or folders) of MODALITY with BUNDLE into an index.

    fluxtalk index build BUNDLE image photos/ -o photos.index
    """
    with load(bundle, backend, threads, precision=precision) as embedder:
        gathered = gather_items(embedder.input_kind(modality), items, list_file)
        vectors = embed_with_progress(embedder, modality, gathered, k, "pooled", batch_size)
        count = k or embedder.num_tokens
        manifest = build_index(
            output, vectors, gathered, str(bundle), embedder.bundle.manifest.bundle_hash, modality, count
        )
    click.echo(f"{output}: {manifest.items} {modality} items, dimension {manifest.dim}, k = {manifest.k}")


@main.command()
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("modality")
@click.argument("query")
@click.option("-n", "--count", default=10, show_default=True, type=click.IntRange(1), help="Answers.")
@click.option("-k", "--tokens", "k", type=int, help="Register tokens of the query.  [default: the index's]")
@option("--bundle", type=click.Path(path_type=Path), help="Where the bundle lies, if it was moved.")
@serving_options
@debug_option
@sentence_errors
def search(
    index: Path,
    modality: str,
    query: str,
    count: int,
    k: int | None,
    bundle: Path | None,
    backend: str,
    precision: str | None,
    threads: int | None,
    batch_size: int,
) -> None:
    """Find what is most similar to QUERY, a text or a path, of MODALITY.

    fluxtalk index search photos.index text "a dog on a beach"
    """
    opened = SearchIndex(index)
    with load(bundle or opened.manifest.bundle, backend, threads, [modality], precision=precision) as embedder:
        if embedder.bundle.manifest.bundle_hash != opened.manifest.bundle_hash:
            raise IndexFileError(
                f"{index} was built with another bundle than {embedder.bundle.folder}; "
                "name that one with --bundle, or build again."
            )
        vectors = embedder.embed(modality, [query], opened.manifest.k if k is None else k, batch_size=batch_size)
    for hit in opened.search(vectors, count)[0]:
        click.echo(f"{hit.similarity:7.4f}  {hit.item}")
