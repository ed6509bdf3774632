"""Pushing saved features to the hub: the files that belong to them, in one commit, and no other."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from param_features.errors import HubError, SettingError, StoreError
from param_features.files.hub import FILES, hub_errors, hub_library, is_hub_name
from param_features.fitted import Fitted
from param_features.machine import launched
from param_features.sharing.card import CARD, PICTURE, write_card
from param_features.sharing.settings import CardSettings

MESSAGE = "Upload parameter features"


def push(features: Fitted, repo: str, card: CardSettings | None, **settings: Any) -> str:
    """Save features and their card in a folder that is gone afterwards, and push it; `settings` are `push_folder`'s.

    Of several processes that accelerate launched the main one pushes, and the others return "".

    Raises:
        SettingError: `repo` is not `owner/name`.
    """
    check_name(repo)
    if not launched().is_main:
        return ""
    with TemporaryDirectory() as place:
        folder = Path(place)
        features.save_pretrained(folder)
        if card is not None:
            write_card(features, folder, card, repo=repo)
        return push_folder(folder, repo, **settings)


def push_folder(
    folder: Path,
    repo: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    branch: str | None = None,
    create_pr: bool = False,
    commit_message: str = MESSAGE,
) -> str:
    """Push a folder's saved features, with its card and picture where it has them; other files in it stay here.

    Returns:
        The commit's address, or that of the pull request.

    Raises:
        StoreError: The folder holds no saved features.
        SettingError: `repo` is not `owner/name`; or it is to be private, and there is a public one; or the hub does not
            understand the card's first lines.
        HubAccessError: The hub does not let the caller write there.
        HubOfflineError: It was not reached.
        HubError: It refuses otherwise.
        MissingExtraError: huggingface-hub is not installed.
    """
    check_name(repo)
    _check_files(folder)
    library = hub_library()
    names = [name for name in (*FILES, CARD, PICTURE) if (folder / name).is_file()]
    with hub_errors(f"Repository {repo!r}"):
        api = library.HfApi(token=token, library_name="param_features")
        api.create_repo(repo, private=private, exist_ok=True)
        if private and api.model_info(repo).private is False:
            raise SettingError(
                f"{repo!r} is on the hub already and public; private=True makes new repositories private, not old ones. "
                "Make it private in its settings on the hub, or push under another name."
            )
        if branch is not None and not branch.startswith("refs/"):
            api.create_branch(repo, branch=branch, exist_ok=True)
        added = [library.CommitOperationAdd(name, str(folder / name)) for name in names]
        target = {"revision": branch, "create_pr": create_pr, "commit_message": commit_message}
        try:
            done = api.create_commit(repo, added, **target)
        except ValueError as error:
            raise SettingError(f"The hub does not take the card or a setting: {' '.join(str(error).split())}") from error
        except RuntimeError as error:
            raise HubError(f"Repository {repo!r} did not take a file. Try again. ({error.__cause__})") from error
    return str(done.pr_url if create_pr else done.commit_url)


def check_name(repo: str) -> None:
    """Refuse what cannot be a repository's name, before anything is computed.

    Raises:
        SettingError: It is not `owner/name`.
    """
    if "/" not in repo or not is_hub_name(repo):
        raise SettingError(
            f"repo={repo!r} is no name of a repository. Give 'owner/name', your own name or an organization's."
        )


def _check_files(folder: Path) -> None:
    for name in FILES:
        if not (folder / name).is_file():
            raise StoreError(f"{folder} holds no {name}. Give a folder that save_pretrained wrote.")
