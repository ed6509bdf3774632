"""Fetching shared features: two files of one commit, into huggingface-hub's own cache, and nothing else."""

from os import PathLike
from pathlib import Path

from param_features.files.bundle import CONFIG, TENSORS
from param_features.files.hub.client import hub_errors, hub_library
from param_features.files.hub.places import HubPlace, features_place

FILES = (CONFIG, TENSORS)
"""The two files of saved features."""


def located(where: str | PathLike, *, revision: str | None = None, token: str | bool | None = None) -> tuple[Path, Path]:
    """Find the folder that holds saved features, which are fetched first where they are on the hub.

    Args:
        where: A folder, or `owner/name` or `owner/name@revision` on the hub.
        revision: Of the hub.
        token: For the hub.

    Returns:
        The folder, and the folder inside which links of its files may lead: itself, or the repository's cache.

    Raises:
        SourceError: It reads like a path, and there is nothing there.
        SettingError: A revision is given for a folder, or the hub accepts no such name.
        MissingExtraError: It is on the hub, and huggingface-hub is not installed.
        HubError: The hub does not give it; see `fetched_folder`.
    """
    place = features_place(where, revision)
    return (place, place) if isinstance(place, Path) else fetched_folder(place, token=token)


def fetched_folder(place: HubPlace, *, token: str | bool | None = None) -> tuple[Path, Path]:
    """Fetch the two files of saved features, or find them in the cache.

    The first file says which commit a branch stands for, and the second is asked of that commit: both are of one save, even
    if somebody pushes in between. Without network, what was fetched before is taken.

    Cost: two requests for headers, and the files where they are not in the cache.

    Args:
        place: Repository and revision.
        token: The caller's; None for the one that `hf auth login` left, False for none.

    Returns:
        The commit's folder, whose files are links to `../../blobs`, and the cache's folder of the repository.

    Raises:
        HubNotFoundError: There is no such repository, revision or file.
        HubAccessError: The caller may not read it.
        HubOfflineError: The hub was not reached, and the files are not in the cache.
        HubError: The hub refuses otherwise.
        SettingError: The hub accepts no such name.
        MissingExtraError: huggingface-hub is not installed.
    """
    download = hub_library().hf_hub_download
    named = place.repo if place.revision is None else f"{place.repo}@{place.revision}"
    revision = place.revision
    folder = Path()
    for name in FILES:
        with hub_errors(f"There is no folder {place.repo!r} here; repository {named!r}"):
            folder = Path(download(place.repo, name, revision=revision, token=token)).parent
        revision = folder.name  # the commit
    return folder, folder.parents[1]
