"""Pushing saved features to the hub: the files that belong to them, in one commit, and no other."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from param_features.errors import HubError, SettingError, StoreError
from param_features.files.hub import FILES, hub_errors, hub_library, is_hub_name
from param_features.fitted import Fitted
from param_features.machine import launched
from param_features.sharing.card import CARD, PICTURE, write_card
from param_features.sharing.settings import CardSettings

MESSAGE = "Upload parameter features"


@dataclass(frozen=True)
class PushTarget:
    """A place on the hub, and how a push gets there.

    Attributes:
        repo: `owner/name`; made where there is none.
        private: Whether a new repository is private; by default it is public, or as the organization has it.
        token: The hub's access token; by default the one that `hf auth login` left.
        branch: The branch that gets the commit, made where there is none; the main branch by default.
        create_pr: Whether to open a pull request instead.
        commit_message: The one commit's message.

    Raises:
        SettingError: `repo` is not `owner/name`.
    """

    repo: str
    private: bool | None = None
    token: str | bool | None = None
    branch: str | None = None
    create_pr: bool = False
    commit_message: str = MESSAGE

    def __post_init__(self) -> None:
        """Refuse what cannot be a repository's name, before anything is computed."""
        check_name(self.repo)


def push(features: Fitted, target: PushTarget, card: CardSettings | None) -> str:
    """Save features and their card in a folder that is gone afterwards, and push it.

    Of several processes that accelerate launched the main one pushes, and the others return "". Errors are those of
    `push_folder`.
    """
    if not launched().is_main:
        return ""
    with TemporaryDirectory() as place:
        folder = Path(place)
        features.save_pretrained(folder)
        if card is not None:
            write_card(features, folder, card, repo=target.repo)
        return push_folder(folder, target)


def push_folder(folder: Path, target: PushTarget) -> str:
    """Push a folder's saved features, with its card and picture where it has them; other files in it stay here.

    Returns:
        The commit's address, or that of the pull request.

    Raises:
        StoreError: The folder holds no saved features.
        SettingError: The repository is to be private, and there is a public one; or the hub does not understand the
            card's first lines.
        HubAccessError: The hub does not let the caller write there.
        HubOfflineError: The hub was not reached.
        HubError: The hub refuses for another reason.
        MissingExtraError: huggingface-hub is not installed.
    """
    _check_files(folder)
    library, repo, branch = hub_library(), target.repo, target.branch
    names = [name for name in (*FILES, CARD, PICTURE) if (folder / name).is_file()]
    with hub_errors(f"Repository {repo!r}"):
        api = library.HfApi(token=target.token, library_name="param_features")
        api.create_repo(repo, private=target.private, exist_ok=True)
        if target.private and api.model_info(repo).private is False:
            raise SettingError(
                f"{repo!r} is on the hub already and public; private=True makes new repositories private, not old ones. "
                "Make it private in its settings on the hub, or push under another name."
            )
        if branch is not None and not branch.startswith("refs/"):
            api.create_branch(repo, branch=branch, exist_ok=True)
        added = [library.CommitOperationAdd(name, str(folder / name)) for name in names]
        try:
            commit = api.create_commit(
                repo, added, revision=branch, create_pr=target.create_pr, commit_message=target.commit_message
            )
        except ValueError as error:
            raise SettingError(f"The hub does not take the card or a setting: {' '.join(str(error).split())}") from error
        except RuntimeError as error:
            raise HubError(f"Repository {repo!r} did not take a file. Try again. ({error.__cause__})") from error
    return str(commit.pr_url if target.create_pr else commit.commit_url)


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
