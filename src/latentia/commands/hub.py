"""The subcommands of `latentia` that save, share and check; heavy modules are imported by the one that needs them."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

Saved = Annotated[str, arg(metavar="FOLDER|USER/NAME")]


def verify(path: Positional[Saved], revision: str | None = None) -> None:
    """Check that something is whole: hashes where there are some, and every weight where it belongs.

    Exit code 5, with the file named, if it is not.

    Args:
        path: a checkpoint, the output folder of a run (its checkpoints and its pipeline), a saved pipeline, a saved
            network, or a repository on the Hub, which is fetched for it and deleted again.
        revision: branch, tag or commit on the Hub.
    """
    from latentia.commands.verify import verify

    for line in verify(path, revision):
        print(line)


def push(
    folder: Positional[Path],
    repo_id: Positional[str],
    private: bool = False,
    create_pr: bool = False,
    revision: str | None = None,
    diffusers_code: bool = False,
) -> None:
    """Upload a saved pipeline and its card to the Hub; never checkpoints, logs or optimizer state.

    Log in first with `hf auth login`, or set HF_TOKEN.

    Args:
        folder: a saved pipeline with its card, such as the output folder of a run.
        repo_id: user/name.
        private: make the repository private.
        create_pr: open a pull request.
        revision: branch to commit to.
        diffusers_code: upload a pipeline.py of a few lines too, by which a program that knows diffusers alone loads
            the repository; the card says how. latentia itself never runs it.
    """
    from latentia.hub.push import push_to_hub

    print(
        push_to_hub(
            folder, repo_id, private=private, create_pr=create_pr, revision=revision, diffusers_code=diffusers_code
        )
    )


def pull(repo_id: Positional[str], folder: Positional[Path], revision: str | None = None) -> None:
    """Fetch a saved pipeline or network from the Hub into a folder, all of it or nothing, and prove that it loads.

    Everything comes from one commit, and no pickles and no code are fetched. Log in with `hf auth login`, or set
    HF_TOKEN, for private and gated repositories.

    Args:
        repo_id: user/name.
        folder: where it goes; new or empty.
        revision: branch, tag or commit; the main branch if not given.
    """
    from latentia.hub.pull import pull

    found = pull(repo_id, folder, revision=revision)
    print(f"{repo_id} at commit {found.commit}")
    print(f"{folder}: {found.loaded}; {len(found.files)} files, {found.size / 1e6:.1f} MB, every hash and weight right")
    if found.left:
        more = f" and {len(found.left) - 5} more" if len(found.left) > 5 else ""
        print(f"Left on the Hub, as it is no part of an export: {', '.join(found.left[:5])}{more}")


def convert(
    source: Positional[Annotated[Path, arg(metavar="FILE|FOLDER")]],
    output: Positional[Path],
    key: str | None = None,
    max_memory_gb: float | None = None,
    max_seconds: float = 600,
) -> None:
    """Turn old weights (.bin, .pt, .pth, .ckpt) into safetensors, without running what may hide in them.

    They are read by torch's reader for data alone, in a process of its own with bounded memory and time. What is
    refused leaves nothing behind.

    Args:
        source: a file; or a folder of diffusers' format, a network or a whole pipeline, with such weights in it.
        output: the .safetensors file, or the new folder.
        key: the entry of the file that holds the weights, such as state_dict, if there are several.
        max_memory_gb: for reading, beside torch itself; three times the largest file and 1 GB if not given.
        max_seconds: of the processor, for reading.
    """
    from latentia.hub.convert import convert

    for line in convert(source, output, key=key, max_memory_gb=max_memory_gb, max_seconds=max_seconds):
        print(line)


def card(
    folder: Positional[Path],
    write: bool = False,
    name: str | None = None,
    dataset: str | None = None,
    license: str | None = None,
    repo_id: str | None = None,
) -> None:
    """Make the card of a saved pipeline from what lies in its folder, and say what it lacks.

    Prints it; with --write it becomes README.md. What you wrote yourself stays: sections of your own, keys of the
    metadata, and generated parts that you have changed.

    Args:
        folder: a saved pipeline, such as the output folder of a run.
        write: put it into README.md.
        name: of the model.
        dataset: what it was trained on, a Hub id or any name.
        license: the Hub's identifier, such as apache-2.0.
        repo_id: user/name, for the lines that say how to load it.
    """
    from latentia.hub.folder_card import folder_card

    found = folder_card(folder, name=name, dataset=dataset, license=license, repo_id=repo_id)
    if write:
        found.write()
        print(f"{folder / 'README.md'} is written.")
    else:
        print(found.text)
    for line in found.remarks:
        print(line)
